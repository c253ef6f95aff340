"""The items of a LeRobotDataset, in order or in any: images, state, instruction, a chunk of actions.

`LeRobotDataset` with `delta_timestamps` decodes all columns of all rows that an action chunk spans: two cameras and 32
actions are 66 images for an item that shows 2. Here columns of numbers are in memory, and an image is decoded if it is
in the item.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from apprentice.data.batch import TASK, Batch
from apprentice.data.dataset import column, episode_bounds, surroundings, task_names, values
from apprentice.data.features import VECTORS, is_picture, policy_features
from apprentice.data.images import images
from apprentice.data.local import LocalDataset


class Items(Dataset[dict[str, Any]]):
    """What a LeRobotDataset with windows of steps yields, item by item or in batches; images are uint8.

    A map-style dataset for PyTorch's DataLoader, which asks it for a whole batch at a time.
    """

    def __init__(
        self,
        dataset: LocalDataset,
        windows: Mapping[str, Sequence[int]] | None = None,
        keys: Iterable[str] | None = None,
    ):
        """Args:
        dataset: with all of its episodes.
        windows: the steps of a feature that an item holds, 0 is the frame's own; the feature gets an axis of time, and
            `KEY_is_pad` marks the steps outside the episode, which repeat its first or last frame. Other features are
            those of the frame alone.
        keys: features that an item has besides its task; all numbers and pictures of colours if None.
        """
        features = dataset.meta.features
        chosen = [key for key in features if keys is None or key in set(keys)]
        cameras = {key for key in chosen if is_picture(key, features[key])}
        self.windows = {key: np.asarray(steps) for key, steps in (windows or {}).items() if key in chosen}
        self.bounds = episode_bounds(dataset)
        overlap = {key: len(steps) - 1 for key, steps in self.windows.items()}
        self.images = {key: images(dataset, key, overlap.get(key, 0)) for key in chosen if key in cameras}
        self.columns = {
            key: _tensor(column(dataset, key) if key in VECTORS else values(dataset, key))
            for key in chosen
            if _is_number(features[key]["dtype"])
        }
        self.names, self.tasks = task_names(dataset), values(dataset, "task_index")

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The item of one frame: images (3, h, w), actions (W, A)."""
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self.__getitems__([index % len(self)])[0]

    def __getitems__(self, index: list[int]) -> list[dict[str, Any]]:
        """Items of several frames; the DataLoader calls it once for a batch."""
        batch = self.batch(np.asarray(index))
        return [{key: value[place] for key, value in batch.items()} for place in range(len(index))]

    def batch(self, index: NDArray[np.int64]) -> Batch:
        """Frames (b,) as LeRobot's data loader would yield them: images (b, 3, h, w) or (b, W, 3, h, w).

        Batches of a video are fastest in the order of its frames: then each frame is decoded once.
        """
        seen, batch = {}, {}
        for key, steps in self.windows.items():
            seen[key], is_pad = surroundings(self.bounds, index, steps)
            batch[f"{key}_is_pad"] = torch.from_numpy(is_pad)
        for key, numbers in self.columns.items():
            batch[key] = numbers[seen.get(key, index)]
        for key, pictures in self.images.items():
            frames = seen.get(key, index)
            decoded = torch.from_numpy(pictures[frames.ravel()]).permute(0, 3, 1, 2).contiguous()
            batch[key] = decoded.reshape(*frames.shape, *decoded.shape[1:])
        return batch | {TASK: [self.names[int(number)] for number in self.tasks[index]]}


def observed(dataset: LocalDataset, steps: int = 1, keys: Iterable[str] | None = None) -> Items:
    """The observations `keys`, or all that a policy could read, of each frame; with more than one step, of the frames
    right before it too, oldest first.
    """
    if keys is None:
        keys = [key for key in policy_features(dataset.meta.features) if key.startswith("observation.")]
    keys = list(keys)
    return Items(dataset, {key: range(1 - steps, 1) for key in keys} if steps > 1 else {}, keys)


def present(batch: Batch) -> Batch:
    """The last step of observations that have an axis of time."""
    kept = {key: value for key, value in batch.items() if not key.endswith("_is_pad")}
    return {key: value[:, -1] if key.startswith("observation.") else value for key, value in kept.items()}


def _is_number(dtype: str) -> bool:
    return dtype == "bool" or dtype.startswith(("int", "uint", "float"))


def _tensor(column: NDArray[Any]) -> Tensor:
    """A column (F, ...) with the types that LeRobot's items have: float32, int64 or bool."""
    kind = {"f": np.float32, "i": np.int64, "u": np.int64, "b": np.bool_}[column.dtype.kind]
    return torch.from_numpy(np.ascontiguousarray(column, dtype=kind))
