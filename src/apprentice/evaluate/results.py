"""Episodes on disk and the rates they add up to.

An evaluation is a folder: `protocol.json` (how, and which checkpoints), `episodes.jsonl` (a line per finished episode),
`traces/` (what each episode did, see `trace.py`), `videos/`, on request `recordings/`, and in the end all of it as one
table, `episodes.parquet`. Episodes of another checkpoint or protocol may stand in it too; they are never counted.
"""

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from apprentice.common.errors import UserError
from apprentice.common.files import disk_full_at, fingerprint, inside, read_json, read_lines, write_json
from apprentice.common.intervals import wilson
from apprentice.evaluate.episode.probes import PLAIN
from apprentice.evaluate.protocol import Protocol
from apprentice.serve.policy_card import PolicyCard
from apprentice.simulators.base import simulator_of

ALL = "all"
OTHER_TASK = "other task done"  # a kind of failure that every simulator has
Key = tuple[str, str, str, int, int, str, int]  # policy, checkpoint, conditions, task, instructed, probe, initial state
BLOCK = 5  # initial states of each task between two interim analyses of a question that may end an evaluation


@dataclass(frozen=True)
class Episode:
    """One finished closed-loop episode.

    Attributes:
        policy: the name that the policy goes by in this evaluation.
        checkpoint: fingerprint of its files.
        conditions: `Protocol.conditions` under which it ran.
        task, instructed: index of the task that was set up, and of the one whose instruction the policy was given.
        init_state: index of the benchmark's initial state.
        success: the goal of `task` held at some step.
        instructed_success: the goal of `instructed` held at some step; equals `success` unless the two tasks differ.
        steps: actions executed.
        seconds: wall-clock, of which `reset_seconds`, `policy_seconds`, `render_seconds`, `physics_seconds`.
        video: file name inside `videos/`, or None.
        seed: what the simulator and the policy's sampling were seeded with.
        probe: what was changed in it, a name of `PROBES`.
        failure: how it failed, one of `failure_meanings`; None if the instructed task was done.
        trace: file name inside `traces/`: states, actions and the latency of each chunk.
    """

    policy: str
    checkpoint: str
    conditions: str
    suite: str
    task: int
    instructed: int
    init_state: int
    instruction: str
    success: bool
    instructed_success: bool
    steps: int
    seconds: float
    reset_seconds: float
    policy_seconds: float
    render_seconds: float
    physics_seconds: float
    video: str | None
    seed: int = 0
    trace: str | None = None
    probe: str = PLAIN
    failure: str | None = None

    @property
    def key(self) -> Key:
        """What makes it the same episode: a second one with this key would be counted twice."""
        return self.policy, self.checkpoint, self.conditions, self.task, self.instructed, self.probe, self.init_state

    @property
    def stem(self) -> str:
        """Name of its files, without an ending; no other episode of any evaluation has it."""
        whose = fingerprint(self.policy, self.checkpoint, self.conditions)
        probe = "" if self.probe == PLAIN else f"-{self.probe}"
        return f"task{self.task}-instructed{self.instructed}{probe}-state{self.init_state}-{whose}"


@dataclass(frozen=True)
class Row:
    """A success rate. `task` is an index or "all"; `low95` and `high95` bound the rate (Wilson); wall-clock seconds."""

    policy: str
    suite: str
    task: int | str
    episodes: int
    successes: int
    low95: float
    high95: float
    seconds: float

    @property
    def rate(self) -> float:
        """Successes per episode, in [0, 1]."""
        return self.successes / self.episodes if self.episodes else 0.0


@dataclass(frozen=True)
class ProbeRow:
    """What a policy did in the scene of `task` with the instruction of `instructed`: that, its own task, or neither."""

    policy: str
    suite: str
    task: int
    instructed: int
    episodes: int
    did_instructed: int
    did_task: int
    did_neither: int
    instructed_low95: float
    instructed_high95: float


@dataclass(frozen=True)
class ProtocolFile:
    """What `protocol.json` holds: the protocol, the hash that it had when it was written, and which policies ran."""

    hash: str
    protocol: Protocol
    policies: dict[str, PolicyCard]


@dataclass(frozen=True)
class Evaluation:
    """An evaluation's folder, read: only episodes that belong to its protocol and its checkpoints."""

    folder: Path
    protocol: Protocol
    policies: dict[str, PolicyCard]
    episodes: list[Episode]

    @classmethod
    def load(cls, folder: Path | str) -> "Evaluation":
        """Raises UserError if there is no evaluation in `folder`, or a file of it is damaged."""
        folder = Path(folder)
        try:
            file = read_json(folder / "protocol.json", ProtocolFile, "a protocol known to this version")
        except FileNotFoundError as error:
            raise UserError(f"expected an evaluation in {folder}, found none; fix: run `apprentice eval`") from error
        if file.hash != file.protocol.hash:
            raise UserError(
                f"expected in {folder}/protocol.json what was hashed as {file.hash}, found something else; "
                "fix: put back what was there, or evaluate into another folder"
            )
        evaluation = cls(folder, file.protocol, file.policies, [])
        finished = {episode.key: episode for episode in read_episodes(evaluation.log)}
        evaluation.episodes.extend(finished[key] for key in evaluation.wanted if key in finished)
        return evaluation

    @property
    def log(self) -> Path:
        """Where a line is added for each finished episode."""
        return self.folder / "episodes.jsonl"

    def file(self, kind: str, name: str | None) -> Path | None:
        """Where a file of an episode lies, its film or its trace, if it was kept.

        Args:
            kind: "videos" or "traces".
            name: as the episode has it.

        Raises UserError if the name leads out of that folder: an evaluation may come from somebody else.
        """
        if name is None:
            return None
        path = inside(self.folder / kind, name, self.log)
        return path if path.is_file() else None

    @property
    def wanted(self) -> list[Key]:
        """Keys of the episodes that the protocol asks for, in their order; neighbours share a scene.

        If a question may end the evaluation, every task comes by once in each `BLOCK` of initial states.
        """
        protocol, conditions = self.protocol, self.protocol.conditions
        block = BLOCK if protocol.until else protocol.episodes
        return [
            (name, card.checkpoint, conditions, task, instructed, probe, state)
            for first in range(0, protocol.episodes, block)
            for task, instructed, probe in protocol.variants
            for state in range(first, min(first + block, protocol.episodes))
            for name, card in self.policies.items()
        ]

    def save(self) -> None:
        """Write `protocol.json`."""
        write_json(
            self.folder / "protocol.json", asdict(ProtocolFile(self.protocol.hash, self.protocol, self.policies))
        )


def read_episodes(path: Path) -> list[Episode]:
    """Read finished episodes; a last line without its end is still being written, or was cut off by a kill.

    Raises UserError for a line that is no episode.
    """
    return read_lines(path, Episode, "a finished episode", whole=True) if path.exists() else []


def drop_half_line(path: Path) -> None:
    """Cut off what a kill left of a half-written last line, so that the next one starts on its own."""
    if path.exists():
        content = path.read_bytes()
        os.truncate(path, content.rfind(b"\n") + 1)


def append_episode(path: Path, episode: Episode) -> None:
    """Append a line in one write. Raises UserError if the disk is full."""
    with disk_full_at(path), path.open("ab") as stream:
        stream.write((json.dumps(asdict(episode)) + "\n").encode())


def failure_meanings(suite: str) -> dict[str, str]:
    """What each kind of failure in a suite means."""
    other = "Given another task's instruction, it did the task that the scene was set up for."
    return {**simulator_of(suite).failures, OTHER_TASK: other}


def success_rows(episodes: Iterable[Episode], probe: str = PLAIN) -> list[Row]:
    """Success rates of each policy: first over all tasks, then task by task. Episodes of other probes do not count."""
    counted = [e for e in episodes if e.task == e.instructed and e.probe == probe]
    return rows_by(counted, lambda e: e.task, lambda e: e.success)


def rows_by(
    episodes: list[Episode], task_of: Callable[[Episode], int], succeeded: Callable[[Episode], bool]
) -> list[Row]:
    """Of each policy how often it succeeded: first over all tasks, then task by task."""
    rows = []
    for policy in dict.fromkeys(e.policy for e in episodes):
        own = [e for e in episodes if e.policy == policy]
        indices: list[int | str] = [ALL, *sorted({task_of(e) for e in own})]
        for task in indices:
            group = [e for e in own if task in (ALL, task_of(e))]
            successes = sum(succeeded(e) for e in group)
            low, high = wilson(successes, len(group))
            seconds = round(sum(e.seconds for e in group), 1)
            rows.append(Row(policy, group[0].suite, task, len(group), successes, low, high, seconds))
    return rows


def probe_rows(episodes: Iterable[Episode]) -> list[ProbeRow]:
    """What each policy did when it was given another task's instruction, pair by pair."""
    episodes = [e for e in episodes if e.task != e.instructed]
    rows = []
    for policy, task, instructed in dict.fromkeys((e.policy, e.task, e.instructed) for e in episodes):
        group = [e for e in episodes if (e.policy, e.task, e.instructed) == (policy, task, instructed)]
        did_instructed = sum(e.instructed_success for e in group)
        did_task = sum(e.success for e in group)
        neither = sum(not e.success and not e.instructed_success for e in group)
        low, high = wilson(did_instructed, len(group))
        rows.append(
            ProbeRow(policy, group[0].suite, task, instructed, len(group), did_instructed, did_task, neither, low, high)
        )
    return rows
