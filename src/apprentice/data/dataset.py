"""A LeRobotDataset v3.0, read the way distillation reads it: whole columns at once, and frames in order.

LeRobot's own reader seeks in the video for every sample; whoever needs every frame once is many times faster decoding
each file from its beginning to its end.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import av
import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.utils.constants import ACTION, OBS_STATE
from numpy.typing import NDArray

from apprentice.errors import UserError


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


def column(dataset: LeRobotDataset, key: str) -> NDArray[np.float32]:
    """One numeric column as (F, ...) float32, F frames, without decoding anything else."""
    values = dataset.hf_dataset.with_format("numpy").select_columns([key])[:][key]
    return np.asarray(values, dtype=np.float32)


def episode_bounds(dataset: LeRobotDataset) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For every frame (F,), the index of its episode's first frame and of the one after its last."""
    lengths = np.asarray(dataset.meta.episodes["length"])
    ends = np.cumsum(lengths)
    return np.repeat(ends - lengths, lengths), np.repeat(ends, lengths)


def neighbours(dataset: LeRobotDataset, steps: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """For every frame (F, W), the indices of the frames `steps` after it, and which are padding.

    Outside the episode its first or last frame is repeated, as LeRobot does.
    """
    starts, ends = episode_bounds(dataset)
    wanted = np.arange(len(starts))[:, None] + np.asarray(steps)
    inside = np.clip(wanted, starts[:, None], ends[:, None] - 1)
    return inside, wanted != inside


def action_chunks(dataset: LeRobotDataset, steps: Sequence[int]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Every frame's actions (F, W, A) at `steps` (0 is the frame's own), and which are padding (F, W)."""
    inside, absent = neighbours(dataset, steps)
    return column(dataset, ACTION)[inside], absent


def instructions(dataset: LeRobotDataset) -> list[str]:
    """The instruction of every frame."""
    names = {int(index): str(name) for name, index in dataset.meta.tasks["task_index"].items()}
    return [names[int(index)] for index in column(dataset, "task_index")]


def frames(dataset: LeRobotDataset, camera: str, start: int = 0) -> Iterator[NDArray[np.uint8]]:
    """One camera's images (h, w, 3), in the order of the frames from `start` on. Raises UserError if some are lost."""
    if dataset.meta.features[camera]["dtype"] != "video":
        images = dataset.hf_dataset.with_format(None).select_columns([camera])
        for index in range(start, len(images)):
            yield np.array(images[index][camera].convert("RGB"))
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


def image(dataset: LeRobotDataset, camera: str, index: int) -> NDArray[np.uint8]:
    """One camera's image (h, w, 3) of one frame."""
    if dataset.meta.features[camera]["dtype"] == "video":
        return np.asarray(dataset[index][camera].permute(1, 2, 0), dtype=np.uint8)
    row = dataset.hf_dataset.with_format(None).select_columns([camera])[index]
    return np.asarray(row[camera].convert("RGB"))
