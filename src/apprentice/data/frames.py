"""Frames of a dataset in order, with as many past ones as a policy reads; no video is decoded twice."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lerobot.utils.constants import OBS_STATE
from torch import Tensor

from apprentice.data.dataset import column, frames, instructions, neighbours
from apprentice.data.features import policy_features
from apprentice.data.items import Items
from apprentice.data.local import LocalDataset


@dataclass(frozen=True)
class Frames:
    """Every n-th frame of a dataset, in order."""

    dataset: LocalDataset
    cameras: list[str]
    every: int
    vectors: tuple[str, ...] = (OBS_STATE,)

    def __len__(self) -> int:
        return len(range(0, self.dataset.num_frames, self.every))

    def batches(self, start: int, size: int, steps: int = 1) -> Iterator[dict[str, Any]]:
        """Batches from the `start`-th frame on, as LeRobot's data loader would yield them: uint8 images (b, 3, h, w),
        state (b, S) and other `vectors`, task.

        With more than one step, images (b, steps, 3, h, w) and state (b, steps, S) of the present and the frames right
        before it, oldest first; at the start of an episode its first frame is repeated, and `observation.state_is_pad`
        (b, steps) says so.
        """
        vectors = {key: torch.from_numpy(column(self.dataset, key)) for key in self.vectors}
        task = instructions(self.dataset)
        steps_of, absent = neighbours(self.dataset, range(1 - steps, 1))
        streams = [self._images(camera, start, steps_of) for camera in self.cameras]
        for first in range(start, len(self), size):
            index = np.arange(first, min(first + size, len(self))) * self.every
            batch: dict[str, Any] = {key: values[steps_of[index]] for key, values in vectors.items()}
            batch["task"] = [task[i] for i in index]
            batch[f"{OBS_STATE}_is_pad"] = torch.from_numpy(absent[index])
            batch |= {
                camera: torch.stack([next(stream) for _ in index])
                for camera, stream in zip(self.cameras, streams, strict=True)
            }
            yield batch if steps > 1 else present(batch)

    def _images(self, camera: str, start: int, steps_of: np.ndarray) -> Iterator[Tensor]:
        """One camera's images (steps, 3, h, w) of every n-th frame from the `start`-th on."""
        now = start * self.every
        first = int(steps_of[now, 0]) if now < len(steps_of) else now
        recent: deque[Tensor] = deque(maxlen=steps_of.shape[1])
        for index, image in enumerate(frames(self.dataset, camera, first), first):
            recent.append(torch.from_numpy(image).permute(2, 0, 1))
            if index >= now and index % self.every == 0:
                yield torch.stack([recent[i - index - 1] for i in steps_of[index]])


def present(batch: dict[str, Any]) -> dict[str, Any]:
    """The last step of observations that have an axis of time."""
    kept = {key: value for key, value in batch.items() if not key.endswith("_is_pad")}
    return {key: value[:, -1] if key.startswith("observation.") else value for key, value in kept.items()}


def seen_at(dataset: LocalDataset, index: np.ndarray, steps: int = 1) -> dict[str, Any]:
    """A batch as `Frames` makes it, of frames anywhere (b,), with all that a policy could read."""
    keys = [key for key in policy_features(dataset.meta.features) if key.startswith("observation.")]
    batch = Items(dataset, {key: range(1 - steps, 1) for key in keys}, keys).batch(index)
    return batch if steps > 1 else present(batch)
