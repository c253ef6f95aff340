"""Demonstrations by the scripted demonstrator, written as a LeRobotDataset v3.0.

An episode is planned and acted without cameras; only if it succeeded are its recorded states drawn. How episodes are
kept and written: `episode_jobs.py`.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from apprentice.simulators.base import simulator_of
from apprentice.simulators.collection.episode_jobs import Collected, CollectJob, attempt, gather, settings_of


def collect(
    suite: str,
    episodes: int,
    out: Path | str,
    tasks: Sequence[int] | None = None,
    workers: int = 2,
    ray: str | None = None,
    seed: int = 0,
    render: str = "fast",
    size: int = 128,
    images: bool = False,
    variants: int = 0,
    reworded: bool = False,
) -> dict[str, Any]:
    """Write `episodes` successful demonstrations of each task into the dataset folder `out`; returns a summary.

    Finished episodes wait in a folder beside `out` until all are there: start again to go on after a kill. Starts from
    fresh scenes, never from the test states.

    Args:
        suite: name of a simulator's suite, such as libero_goal.
        episodes: number of successful demonstrations of each task, at most 1000.
        out: folder to write; it must not exist, or must hold the same dataset.
        tasks: indices of the tasks in the suite; all tasks if not given.
        workers: number of processes.
        ray: address of a Ray cluster whose processes do the work, such as auto.
        seed: seed of everything that varies.
        render: "fast" (simplified meshes) or "exact".
        size: height and width of the images (px).
        images: keep each image as PNG instead of videos: exact and quick to read, many times larger.
        variants: number of variants of each task to play: its objects are exchanged and spread over the table;
            0 plays the task as published.
        reworded: give each instruction in other words.

    Raises UserError if `out` exists, if what waits beside it was collected with other settings, if a task can have no
    variant, or, when all else is done, if a task could not be demonstrated.
    """
    settings = settings_of(suite, seed, render, size, variants, reworded)
    make = partial(CollectJob, **settings)
    return gather(
        Path(out), make, _collect_one, settings, tasks=tasks, episodes=episodes, workers=workers, ray=ray, images=images
    )


def _collect_one(job: CollectJob) -> Collected:
    """Collect one episode in a worker."""
    return attempt(job, simulator_of(job.suite).demonstrator().demonstrate)
