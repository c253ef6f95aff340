"""The settings that collections share, of demonstrations and of corrections."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class CollectConfig:
    """What to collect, and where to write it.

    Attributes:
        suite: name of a simulator's suite, such as libero_goal.
        episodes: number of successful episodes of each task, at most 1000.
        out: folder to write; it must not exist, or must hold the same dataset.
        tasks: indices of the tasks in the suite; all tasks if not given.
        workers: number of processes.
        ray: address of a Ray cluster whose processes do the work, such as auto.
        seed: seed of everything that varies.
        render: "fast" (simplified meshes) or "exact".
        size: width of the images (px); the simulator decides how high they are.
        images: keep each image as PNG instead of videos: exact and quick to read, many times larger.
        variants: number of variants of each task to play: its objects are exchanged and spread over the table;
            0 plays the task as published.
        reworded: give each instruction in other words.
    """

    suite: str
    episodes: int
    out: Path
    tasks: Sequence[int] | None = None
    workers: int = 2
    ray: str | None = None
    seed: int = 0
    render: Literal["fast", "exact"] = "fast"
    size: int = 128
    images: bool = False
    variants: int = 0
    reworded: bool = False

    @property
    def shared(self) -> dict[str, Any]:
        """What all episodes share, as fields of their jobs; what is not asked for is left out."""
        settings: dict[str, Any] = {"suite": self.suite, "seed": self.seed, "render": self.render, "size": self.size}
        others = {"variants": self.variants, "reworded": self.reworded}
        return settings | {key: value for key, value in others.items() if value}
