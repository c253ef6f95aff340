"""What an episode is made of: the job, and who acts."""

from dataclasses import dataclass
from typing import Protocol as Interface

import numpy as np

from apprentice.evaluate.episode.probes import PLAIN
from apprentice.evaluate.protocol import Protocol


@dataclass(frozen=True)
class EpisodeJob:
    """One episode to run: `task` is set up, the instruction is that of `instructed`."""

    policy: str
    place: str  # folder, experts.yaml or address
    checkpoint: str
    task: int
    instructed: int
    init_state: int
    protocol: Protocol
    film: str = "some"
    rerun: bool = False
    probe: str = PLAIN

    def __str__(self) -> str:
        words = f" with the instruction of task {self.instructed}" if self.instructed != self.task else ""
        return f"policy {self.policy}, {self.protocol.suite} task {self.task}{words}, initial state {self.init_state}"


class Policy(Interface):
    """What acts: a checkpoint in this process, or a server."""

    @property
    def n_action_steps(self) -> int: ...
    def reset(self, seed: int) -> None: ...
    def plan(self, observation: dict[str, np.ndarray], instruction: str) -> np.ndarray: ...
    def close(self) -> None: ...
