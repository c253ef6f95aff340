"""What is wrong with recorded episodes, found from what the simulator does with the same actions. NumPy alone.

Recorded and replayed motion part where an action was scaled or an object lies elsewhere, so nothing here asks for equal
paths: columns are found by what goes together, scales by how far the hand goes for what it was asked.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.transform import Rotation

FULL_STEP, FULL_TURN = 0.05, 0.5  # m and rad that a full action asks for
WINDOW, FREE = 8, 48  # steps: motion is summed over the first, in the second nothing has been grasped yet
APART = np.array([0.05] * 3 + [0.2] * 3 + [0.02] * 2)  # m, rad, m: starts that differ by this much are not the same
LIKELY = np.array([0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5, 1, 2, 4, 5, 10, 20, 50, 100])  # mistakes that people make
SURE = 0.8  # by how much permuted columns must fit better than those in order


@dataclass(frozen=True)
class Replay:
    """A recorded episode, and what the simulator did with its actions."""

    recorded: np.ndarray  # (T, 8) state
    actions: np.ndarray  # (T, 7)
    replayed: np.ndarray  # (T, 8) state


@dataclass(frozen=True)
class Fault:
    """How a recording differs from the convention. `columns[j]` is the recorded column that holds the j-th."""

    columns: tuple[int, ...] = tuple(range(8))
    gripper: int = 1
    translation: float = 1.0
    rotation: float = 1.0

    def then(self, other: "Fault") -> "Fault":
        """Both: `other` was found after this one had been repaired."""
        return Fault(
            tuple(self.columns[column] for column in other.columns),
            self.gripper * other.gripper,
            _likely(self.translation * other.translation),
            _likely(self.rotation * other.rotation),
        )

    def repaired(self, states: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """States (T, 8) and actions (T, 7) as they should have been recorded."""
        factors = [self.translation] * 3 + [self.rotation] * 3 + [self.gripper]
        return states[:, list(self.columns)], (actions / factors).astype(np.float32)


def diagnose(replays: Sequence[Replay]) -> Fault:
    """The fault that explains how recorded and replayed states differ."""
    columns = _columns(replays)
    replays = [Replay(r.recorded[:, list(columns)], r.actions, r.replayed) for r in replays]
    translation, rotation = (
        _likely(_gain(replays, turning, replayed=True) / _gain(replays, turning, replayed=False))
        for turning in (False, True)
    )
    return Fault(columns, _gripper(replays), translation, rotation)


def label_fault(labels: Sequence[np.ndarray], executed: Sequence[np.ndarray]) -> Fault:
    """How actions to learn from (T, 7) differ from those executed, apart from the noise on the latter.

    Whoever acts works against the noise, so averages are biased; but many steps have none, and the ratio that is
    found most often is theirs.
    """
    label, done = np.concatenate(labels), np.concatenate(executed)
    scales = []
    for part in (slice(0, 3), slice(3, 6)):
        commanded, given = label[:, part], done[:, part]
        same = (np.abs(given) > 0.01) & (commanded * given > 0)
        ratios = commanded[same] / given[same]
        values, counts = np.unique(np.round(50 * np.log(ratios)), return_counts=True)
        scales.append(_likely(float(np.exp(values[counts.argmax()] / 50))) if len(values) else 1.0)
    return Fault(gripper=-1 if np.sum(label[:, 6] * done[:, 6]) < 0 else 1, translation=scales[0], rotation=scales[1])


def followed(replays: Sequence[Replay]) -> float:
    """Correlation of recorded and replayed motion of the hand, -1 to 1."""
    ours, theirs = (
        np.concatenate([_moved(getattr(r, name)[:, :3]) for r in replays]) for name in ("replayed", "recorded")
    )
    return float(np.sum(ours * theirs) / max(np.linalg.norm(ours) * np.linalg.norm(theirs), 1e-9))


def deviation(replay: Replay) -> float:
    """How far (m) the replayed hand got from the recorded one before the fingers were first closed."""
    closing = np.flatnonzero(replay.actions[:, 6] > 0)
    free = slice(0, max(int(closing[0]) if len(closing) else len(replay.actions), 1))
    return float(np.linalg.norm(replay.replayed[free, :3] - replay.recorded[free, :3], axis=1).max())


def _columns(replays: Sequence[Replay]) -> tuple[int, ...]:
    """For each column of the replayed state the recorded one that starts where it starts and moves when it moves."""
    starts = np.mean([np.abs(r.recorded[0][:, None] - r.replayed[0]) for r in replays], axis=0) / APART
    recorded, replayed = (
        np.concatenate([getattr(r, name) - getattr(r, name).mean(axis=0) for r in replays])
        for name in ("recorded", "replayed")
    )
    lengths = np.linalg.norm(recorded, axis=0)[:, None] * np.linalg.norm(replayed, axis=0)
    together = recorded.T @ replayed / np.maximum(lengths, 1e-9)
    cost = np.minimum(starts, 3.0) + 1 - together  # (recorded, replayed)
    place, column = linear_sum_assignment(cost.T)
    sure = np.trace(cost) - cost.T[place, column].sum() > SURE
    return tuple(int(c) for c in column) if sure else tuple(range(8))


def _gripper(replays: Sequence[Replay]) -> int:
    """1, or -1 if the replayed fingers are open where the recorded ones are closed."""
    recorded, replayed = (
        np.concatenate([getattr(r, name)[:, 6] - getattr(r, name)[:, 7] - 0.04 for r in replays])
        for name in ("recorded", "replayed")
    )
    return -1 if np.sum(recorded * replayed) < 0 else 1


def _gain(replays: Sequence[Replay], turning: bool, replayed: bool) -> float:
    """How far the hand goes for what the recorded actions ask; 1 if they ask for nothing."""
    along = across = 0.0
    for replay in replays:
        actions = replay.actions[:FREE, 3:6] * FULL_TURN if turning else replay.actions[:FREE, :3] * FULL_STEP
        if replayed:  # the simulator clips
            actions = np.clip(actions, -FULL_TURN, FULL_TURN) if turning else np.clip(actions, -FULL_STEP, FULL_STEP)
        states = (replay.replayed if replayed else replay.recorded)[:FREE]
        moved = _turned(states[:, 3:6]) if turning else _moved(states[:, :3])
        total = np.concatenate([np.zeros((1, 3)), np.cumsum(actions, axis=0)])
        commanded = total[WINDOW : len(states)] - total[: len(states) - WINDOW]
        along += float(np.sum(commanded * moved))
        across += float(np.sum(commanded * commanded))
    return along / across if along > 0 and across > 1e-4 else 1.0


def _moved(positions: np.ndarray) -> np.ndarray:
    return positions[WINDOW:] - positions[:-WINDOW]


def _turned(rotations: np.ndarray) -> np.ndarray:
    turns = Rotation.from_rotvec(rotations)
    return (turns[WINDOW:] * turns[:-WINDOW].inv()).as_rotvec()


def _likely(scale: float) -> float:
    """The likely mistake near an estimated scale, or else the estimate."""
    nearest = LIKELY[np.abs(np.log(LIKELY / scale)).argmin()]
    return float(nearest if abs(np.log(nearest / scale)) < 0.22 else round(scale, 2))
