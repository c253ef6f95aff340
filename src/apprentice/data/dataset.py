"""A LeRobotDataset v3.0, read the way distillation reads it: whole columns at once, and frames in order.

LeRobot's own reader seeks in the video for every sample; whoever needs every frame once is many times faster decoding
each file from its beginning to its end. Items in any order: `apprentice.data.items`.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import av
import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.utils.constants import ACTION, OBS_STATE
from numpy.typing import NDArray

from apprentice.data.images import images
from apprentice.errors import UserError

Bounds = tuple[NDArray[np.int64], NDArray[np.int64]]


def open_dataset(folder: Path | str) -> LeRobotDataset:
    """Open a dataset folder, without network. Raises UserError if it is missing, too old or lacks a column."""
    folder = Path(folder)
    try:
        info = json.loads((folder / "meta" / "info.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(
            f"expected a LeRobotDataset in {folder}, found {error}; "
            "fix: name the folder that holds meta/, data/ and videos/"
        ) from error
    version = info.get("codebase_version")
    if version != "v3.0":
        raise UserError(
            f"expected dataset version v3.0 in {folder}, found {version}; fix: "
            f"python -m lerobot.scripts.convert_dataset_v21_to_v30 --repo-id=local --root={folder} --push-to-hub=false"
        )
    missing = {OBS_STATE, ACTION} - set(info["features"])
    if missing:
        raise UserError(
            f"expected columns {sorted(missing)} in {folder}, found none; fix: record them, or rename yours"
        )
    return LeRobotDataset(f"local/{folder.name}", root=folder, video_backend="pyav", return_uint8=True)


def values(dataset: LeRobotDataset, key: str) -> NDArray[Any]:
    """One column (F, ...) as it is stored, F frames, without decoding anything else."""
    return np.asarray(dataset.hf_dataset.with_format("numpy").select_columns([key])[:][key])


def column(dataset: LeRobotDataset, key: str) -> NDArray[np.float32]:
    """One numeric column as (F, ...) float32."""
    return values(dataset, key).astype(np.float32)


def episode_bounds(dataset: LeRobotDataset) -> Bounds:
    """For every frame (F,), the index of its episode's first frame and of the one after its last."""
    lengths = np.asarray(dataset.meta.episodes["length"])
    ends = np.cumsum(lengths)
    return np.repeat(ends - lengths, lengths), np.repeat(ends, lengths)


def surroundings(
    bounds: Bounds, index: NDArray[np.int64], steps: Sequence[int] | NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """For frames (b,) the indices (b, W) of the frames `steps` after each, and which are padding.

    Outside the episode, whose `bounds` are known, its first or last frame is repeated, as LeRobot does.
    """
    wanted = index[:, None] + np.asarray(steps)
    inside = np.clip(wanted, bounds[0][index, None], bounds[1][index, None] - 1)
    return inside, wanted != inside


def neighbours(dataset: LeRobotDataset, steps: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The surroundings (F, W) of every frame."""
    bounds = episode_bounds(dataset)
    return surroundings(bounds, np.arange(len(bounds[0])), steps)


def action_chunks(dataset: LeRobotDataset, steps: Sequence[int]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Every frame's actions (F, W, A) at `steps` (0 is the frame's own), and which are padding (F, W)."""
    inside, absent = neighbours(dataset, steps)
    return column(dataset, ACTION)[inside], absent


def task_names(dataset: LeRobotDataset) -> dict[int, str]:
    """The instruction behind every number in the column `task_index`."""
    return {int(index): str(name) for name, index in dataset.meta.tasks["task_index"].items()}


def instructions(dataset: LeRobotDataset) -> list[str]:
    """The instruction of every frame."""
    names = task_names(dataset)
    return [names[int(index)] for index in values(dataset, "task_index")]


def frames(dataset: LeRobotDataset, camera: str, start: int = 0) -> Iterator[NDArray[np.uint8]]:
    """One camera's images (h, w, 3), in the order of the frames from `start` on. Raises UserError if some are lost."""
    if dataset.meta.features[camera]["dtype"] != "video":
        stored = images(dataset, camera)
        for index in range(start, dataset.num_frames):
            yield stored[np.array([index])][0]
        return
    passed = 0
    for path, group in groupby(
        range(dataset.meta.total_episodes), lambda e: dataset.meta.get_video_file_path(e, camera)
    ):
        expected = sum(int(dataset.meta.episodes["length"][episode]) for episode in group)
        if passed + expected > start:
            found = 0
            with av.open(str(Path(dataset.root) / path)) as container:
                for frame in container.decode(video=0):
                    if passed + found >= start:
                        yield np.asarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8)
                    found += 1
            if found != expected:
                raise UserError(
                    f"expected {expected} frames in {path}, found {found}; fix: copy or record the dataset again"
                )
        passed += expected
