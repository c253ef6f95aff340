"""Samples of datasets in batches, for every stage: which ones a step trains on, and what a batch of them holds.

Images, or what was computed from them, come from caches on the disk; the rest is small and kept in memory.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.utils.constants import ACTION, OBS_STATE
from numpy.typing import NDArray

from apprentice.common.errors import UserError
from apprentice.data.batch import ACTION_COUNT, ACTION_IS_PAD, STATE_NOISE, STEP_COUNT, TASK, Batch
from apprentice.data.dataset import action_chunks, column, episode_bounds, instructions, neighbours
from apprentice.data.local import LocalDataset
from apprentice.distill.caches.rows import Joined, Views
from apprentice.policy.configuration_apprentice import ApprenticeConfig
from apprentice.policy.history import each_step

NEAR_CHANGE = 0.5  # s before and after a change of the gripper

Balance = Literal["task", "frame"]


@dataclass(frozen=True, eq=False)
class Weights:
    """How often samples are drawn.

    Attributes:
        each: (n,), above 0; only relations count.
        group: (n,), numbers of groups; an epoch holds each group's share to within one sample.
    """

    each: NDArray[np.float64]
    group: NDArray[np.int64]


class Samples:
    """Batches of every n-th frame of a dataset, or of several.

    With K `views`, there are as many samples of each frame: number `view * frames + frame`, view 0 first. To a student
    observations are of its own steps. Raises UserError if these are not among every n-th frame.

    Attributes:
        frames: those that are sampled, (len(self),).
        weights: how often each is; None for all alike.
        prepare: what is done to a batch before a policy computes its loss.
    """

    def __init__(
        self,
        dataset: LocalDataset,
        config: PreTrainedConfig,
        rows: dict[str, Views],
        device: torch.device,
        every: int = 1,
    ):
        self.rows: dict[str, Any] = {**rows}
        self.device, self.config = device, config
        self.views = max(map(len, rows.values()), default=1)
        self.weights: Weights | None = None
        self.prepare: Callable[[Batch], Batch] = lambda batch: batch
        steps = observed_steps(config)
        if steps and any(step % every for step in steps):
            raise UserError(
                f"expected --every to divide the {steps[1] - steps[0]} frames between steps of a history, "
                f"found {every}; fix: --every=1"
            )
        self.in_time = steps is not None
        self.state = torch.from_numpy(column(dataset, OBS_STATE)[::every])
        self.task = instructions(dataset)[::every]
        actions, pad = action_chunks(dataset, config.action_delta_indices)
        self.actions, self.action_is_pad = torch.from_numpy(actions[::every]), torch.from_numpy(pad[::every])
        seen, is_pad = (each[::every] for each in neighbours(dataset, steps or [0]))
        # What lies before an episode is not read; its first frame need not be among every n-th.
        self.seen = np.where(is_pad, np.arange(len(seen))[:, None], seen // every)
        self.state_is_pad = torch.from_numpy(is_pad)
        starts, ends = (bound[::every] for bound in episode_bounds(dataset))
        self.episode = np.unique(starts, return_inverse=True)[1]
        self.source = np.zeros(len(starts), np.int64)
        self.changes = near_gripper_change(dataset)[::every]
        left = ends - np.arange(len(starts)) * every
        self.frames: np.ndarray = np.flatnonzero(left > (getattr(config, "drop_n_last_frames", 0) or 0))

    @classmethod
    def of(
        cls,
        datasets: Sequence[LocalDataset],
        config: PreTrainedConfig,
        rows: Sequence[dict[str, Views]],
        device: torch.device,
        every: int = 1,
    ) -> "Samples":
        """The samples of several datasets, one after the other, each with its own rows."""
        parts = [cls(dataset, config, of_it, device, every) for dataset, of_it in zip(datasets, rows, strict=True)]
        if len(parts) == 1:
            return parts[0]
        whole = copy.copy(parts[0])
        sizes = [len(part.task) for part in parts]
        firsts = np.cumsum([0, *sizes[:-1]])
        episodes = np.cumsum([0, *(part.episode[-1] + 1 for part in parts[:-1])])
        whole.task = [task for part in parts for task in part.task]
        for name in ("state", "actions", "action_is_pad", "state_is_pad"):
            setattr(whole, name, torch.cat([getattr(part, name) for part in parts]))
        for name, shifts in (("seen", firsts), ("frames", firsts), ("episode", episodes)):
            moved = [getattr(part, name) + shift for part, shift in zip(parts, shifts, strict=True)]
            setattr(whole, name, np.concatenate(moved))
        whole.changes = np.concatenate([part.changes for part in parts])
        whole.source = np.repeat(np.arange(len(parts)), sizes)
        whole.rows = {key: Joined([part.rows[key] for part in parts], sizes) for key in whole.rows}
        return whole

    def __len__(self) -> int:
        """How many frames there are."""
        return len(self.frames)

    def __getitem__(self, index: np.ndarray) -> Batch:
        """A raw batch with cached rows, for samples `index` (B,): as LeRobot's data loader yields it."""
        view, index = index // len(self), self.frames[index % len(self)]
        tensors = {ACTION: self.actions[index], ACTION_IS_PAD: self.action_is_pad[index]}
        seen = self.seen[index]
        if self.in_time:
            cameras = [key for key in self.rows if key.startswith("observation.")]
            tensors |= {f"{key}_is_pad": self.state_is_pad[index] for key in (OBS_STATE, *cameras)}
        else:
            seen = seen[:, 0]
        tensors[OBS_STATE] = self.state[seen]
        tensors |= {key: rows.at(seen, view) for key, rows in self.rows.items()}
        batch: Batch = {key: value.to(self.device) for key, value in tensors.items()}
        return batch | {TASK: [self.task[i] for i in index]}

    def split(self, count: int) -> tuple["Samples", "Samples"]:
        """Those without `count` episodes, taken evenly from the whole dataset, and those of these episodes.

        Raises UserError if nothing would be left to train on.
        """
        episodes = int(self.episode[-1]) + 1
        if count >= episodes:
            raise UserError(f"expected fewer than {episodes} episodes to keep out, found {count}; fix: --validate=1")
        held = np.isin(self.episode, ((np.arange(count) + 0.5) * episodes / count).astype(int))[self.frames]
        rest, kept = copy.copy(self), copy.copy(self)
        rest.frames, kept.frames = self.frames[~held], self.frames[held]
        return rest, kept

    def weigh(self, weights: Sequence[float] | None, balance: Balance, gripper_change_factor: float) -> None:
        """Draw each dataset as often as its weight says, or as it has frames if there are none; inside a dataset, with
        `balance` "task", each instruction as often as every other; inside an instruction, samples around a change of
        the gripper so many times as often as others.

        Raises UserError for a factor that is not above 0, or that has no change of the gripper to count for.
        """
        if not 0 < gripper_change_factor < np.inf:
            raise UserError(
                f"expected a factor above 0, found {gripper_change_factor}; fix: --gripper-change-factor=1 for none"
            )
        if gripper_change_factor != 1 and not self.changes[self.frames].any():
            raise UserError(
                "expected a gripper, the last column of the action, that opens or closes, found none that does; "
                "fix: leave --gripper-change-factor out"
            )
        source = self.source[self.frames]
        names = [self.task[frame] if balance == "task" else "" for frame in self.frames]
        group = np.unique(
            [f"{number} {name}" for number, name in zip(source, names, strict=True)], return_inverse=True
        )[1]
        each = np.where(self.changes[self.frames], gripper_change_factor, 1.0)
        of_source = np.bincount(source).astype(float) if weights is None else np.asarray(weights, float)
        groups = np.bincount(np.unique(np.stack([source, group]), axis=1)[0], minlength=len(of_source))
        each *= (of_source / np.maximum(groups, 1))[source] / np.bincount(group, each)[group]
        self.weights = None if np.allclose(each, each[0], rtol=1e-9) else Weights(each, group)

    def order(self, step: int, batch_size: int, seed: int, moved: int = 0) -> np.ndarray:
        """Which samples (batch_size,) step number `step` trains on."""
        return order(step, batch_size, len(self), seed, self.views, self.weights, moved)

    def subsample(self, count: int) -> Iterator[Batch]:
        """Batches of about `count` samples of view 0, taken evenly."""
        index = np.unique(np.linspace(0, len(self) - 1, count).astype(int))
        return (self[part] for part in np.array_split(index, -(-len(index) // 64)))

    def share(self, index: np.ndarray, part: int, parts: int, seed: int = 0) -> Batch:
        """The `part`-th of `parts` shares of the samples `index` (B,), ready for the policy, such that the mean of the
        shares' losses is the loss of all: with what a loss is the mean of, of all, and a student's with its rows of one
        noise.
        """
        batch = self.prepare(self[index[part::parts]])
        frames = self.frames[index % len(self)]
        targets: Batch = {TASK: [""] * len(index), ACTION_IS_PAD: self.action_is_pad[frames]}
        if isinstance(self.config, ApprenticeConfig):
            shape = batch[OBS_STATE].shape[1:]
            noise = torch.randn(len(index), *shape, generator=torch.Generator().manual_seed(seed))
            batch |= {STATE_NOISE: noise[part::parts].to(self.device)}
            if self.config.n_obs_steps > 1:
                targets = each_step(self.config, targets, ~self.state_is_pad[frames])
            batch |= {STEP_COUNT: len(targets[ACTION_IS_PAD]) / parts}
        return batch | {ACTION_COUNT: max(1, int((~targets[ACTION_IS_PAD]).sum())) / parts}


def observed_steps(config: PreTrainedConfig) -> list[int] | None:
    """The steps of observation in a policy's batches, 0 is now; None if they have no axis of time."""
    if not isinstance(config, ApprenticeConfig):
        return config.observation_delta_indices
    return config.history if config.n_obs_steps > 1 else None


def near_gripper_change(dataset: LocalDataset) -> NDArray[np.bool_]:
    """Which frames (F,) are less than `NEAR_CHANGE` away from one at which the gripper, the action's last column,
    crosses the middle of its range.
    """
    gripper = column(dataset, ACTION)[:, -1]
    closes = gripper > (gripper.min() + gripper.max()) / 2
    starts, ends = episode_bounds(dataset)
    places = np.arange(len(closes))
    change = (places > starts) & (closes != closes[np.maximum(places - 1, 0)])
    near = np.zeros(len(closes), bool)
    reach = round(NEAR_CHANGE * dataset.meta.fps)
    for place in np.flatnonzero(change):
        near[max(place - reach, starts[place]) : min(place + reach, ends[place])] = True
    return near


def order(
    step: int,
    batch_size: int,
    count: int,
    seed: int,
    views: int = 1,
    weights: Weights | None = None,
    moved: int = 0,
) -> np.ndarray:
    """Which samples (batch_size,) step number `step` trains on: an endless chain of epochs of `count` frames, cut into
    batches, after `moved` samples more; from one epoch to the next a frame shows its next view, beginning with any.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size) + moved
    epochs = positions // count
    shuffled = {int(e): epoch(int(e), count, seed, weights) for e in np.unique(epochs)}
    frames = np.array([shuffled[int(e)][p % count] for e, p in zip(epochs, positions, strict=True)])
    if views == 1:
        return frames
    first = np.random.default_rng([seed, count, views]).integers(views, size=count)
    return (first[frames] + epochs) % views * count + frames


@lru_cache(maxsize=4)
def epoch(number: int, count: int, seed: int, weights: Weights | None) -> np.ndarray:
    """The frames (count,) of an epoch, shuffled: each once or, with weights w, count * w / sum(w) times, rounded down
    or up at random (systematic resampling: one random start, then equal steps along the sum of the weights).
    """
    generator = np.random.default_rng([seed, number])
    shuffled = generator.permutation(count)
    if weights is None:
        return shuffled
    shuffled = shuffled[np.argsort(weights.group[shuffled], kind="stable")]
    edges = np.cumsum(weights.each[shuffled])
    points = (generator.random() + np.arange(count)) * (edges[-1] / count)
    return generator.permutation(shuffled[np.searchsorted(edges, points, side="right").clip(max=count - 1)])
