"""A LeRobotDataset v3.0 in a folder, read the way distillation reads it: whole columns at once, and frames in order.

Here a dataset is opened and checked, once for all readers. Items in any order: `apprentice.data.items`.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.utils.constants import ACTION, OBS_STATE
from numpy.typing import NDArray

from apprentice.common.errors import UserError
from apprentice.common.progress import console
from apprentice.data.features import VECTORS, is_picture
from apprentice.data.images import images
from apprentice.data.info import COPY, read_object
from apprentice.data.local import LocalDataset
from apprentice.data.statistics import described
from apprentice.data.validate import cameras_described, check_files, read_table

Bounds = tuple[NDArray[np.int64], NDArray[np.int64]]

NEEDED = ("episode_index", "task_index")
STATS, TASKS = "meta/stats.json", "meta/tasks.parquet"


def open_dataset(
    folder: Path | str, rename: Mapping[str, str] | None = None, resize: Mapping[str, str] | None = None
) -> LocalDataset:
    """Open a dataset folder, without network, and check it.

    Its statistics are those of `meta/stats.json` where these describe its numbers, and computed else.

    Args:
        folder: holds meta/, data/ and videos/.
        rename: new names of features by those in the dataset, as LeRobot's rename map.
        resize: HEIGHTxWIDTH (px) of cameras, by their new names; their pictures are read in this size.

    Raises UserError if a file is missing or damaged, the version is old, a column is missing or has other numbers than
    finite ones, or an instruction is missing.
    """
    folder = Path(folder)
    check_files(folder)
    if (folder / STATS).exists():
        read_object(folder / STATS, "remove it, then statistics are computed")
    tasks = _read_tasks(folder)
    try:
        # No dataset of the hub can have this name, so what LeRobot might still miss here it finds nowhere.
        dataset = LocalDataset(f"local:{folder.name}", root=folder, video_backend="pyav", return_uint8=True)
    except Exception as error:  # whatever LeRobot, datasets or Arrow raise on files that they cannot read
        found = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"expected a dataset that LeRobot reads in {folder}, found {type(error).__name__}: {found}; fix: {COPY}"
        ) from error
    dataset.meta.tasks = tasks
    dataset.meta.info.features = cameras_described(dataset.meta.features)
    _rename(dataset, dict(rename or {}))
    _resize(dataset, dict(resize or {}))
    needed = {OBS_STATE, ACTION, *NEEDED, *(["timestamp"] if dataset.meta.video_keys else [])}
    missing = needed - set(dataset.meta.features)
    if missing:
        raise UserError(
            f"expected columns {sorted(missing)} in {folder}, found none; fix: record them, or rename yours with "
            "--rename YOURS=EXPECTED"
        )
    _check_rows(dataset)
    _complete_statistics(dataset)
    return dataset


def _read_tasks(folder: Path) -> Any:
    """The table of tasks as LeRobot has it: instructions as index, ordered by their numbers.

    Some tools write the instructions as a column of their own. Raises UserError if there are none.
    """
    table = read_table(folder / TASKS).to_pandas()
    tasks = table if "task" not in table.columns else table.set_index("task")
    texts = tasks.index.tolist()
    whole = "task_index" in tasks.columns and tasks["task_index"].dtype.kind in "iu" and tasks["task_index"].is_unique
    if not whole or not all(isinstance(text, str) for text in texts):
        raise UserError(
            f"expected instructions and their numbers (task, task_index) in {folder / TASKS}, found the columns "
            f"{list(table.columns)} and the index {texts[:3]}; fix: write the instructions as text"
        )
    tasks.index.name = "task"
    return tasks.sort_values("task_index")


def _rename(dataset: LocalDataset, names: dict[str, str]) -> None:
    features = dataset.meta.features
    new = [names.get(key, key) for key in features]
    if (unknown := [key for key in names if key not in features]) or len(set(new)) < len(new):
        wrong = f"no {unknown[0]}" if unknown else f"two features {next(name for name in new if new.count(name) > 1)}"
        raise UserError(
            f"expected --rename OLD=NEW of features of {dataset.root}, found {wrong}; "
            f"fix: name some of {', '.join(key for key in features if key.startswith(('observation.', 'action')))}"
        )
    if not names:
        return
    stored = {names.get(key, key): key for key in features}
    dataset.stored = stored
    dataset.meta.info.features = {names.get(key, key): feature for key, feature in features.items()}
    stats = dataset.meta.stats or {}
    dataset.meta.stats = {names.get(key, key): value for key, value in stats.items()}
    table = dataset.hf_dataset
    dataset.reader.hf_dataset = table.rename_columns({k: v for k, v in names.items() if k in table.column_names})


def _resize(dataset: LocalDataset, sizes: dict[str, str]) -> None:
    cameras = [key for key, feature in dataset.meta.features.items() if is_picture(key, feature)]
    features = dict(dataset.meta.features)
    for key, text in sizes.items():
        found = re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", text)
        if key not in cameras or found is None:
            raise UserError(
                f"expected --resize CAMERA=HEIGHTxWIDTH with a camera of {', '.join(cameras)}, found {key}={text}; "
                "fix: such as --resize observation.images.top=240x320"
            )
        dataset.sizes[key] = int(found[1]), int(found[2])
        features[key] = {**features[key], "shape": (*dataset.sizes[key], 3)}
    dataset.meta.info.features = features


def _check_rows(dataset: LocalDataset) -> None:
    """Every frame is of its episode, has an instruction and finite numbers, and each camera has pictures as described.

    Raises UserError, which names the first frame that has not.
    """
    root, lengths = dataset.root, np.asarray(dataset.meta.episodes["length"])
    episode = np.repeat(np.arange(len(lengths)), lengths)

    def place(frame: int) -> str:
        start = int(lengths[: episode[frame]].sum())
        return f"frame {frame - start} of episode {episode[frame]}"

    of_episode = values(dataset, "episode_index")
    if (wrong := np.flatnonzero(of_episode != episode)).size:
        raise UserError(
            f"expected the frames of {root / 'data'} in the order of the episodes, found episode "
            f"{of_episode[wrong[0]]} at {place(wrong[0])}; fix: {COPY}"
        )
    known = set(task_names(dataset))
    numbers = values(dataset, "task_index")
    if lost := sorted(set(np.unique(numbers).tolist()) - known):
        frame = int(np.argmax(numbers == lost[0]))
        raise UserError(
            f"expected an instruction for each task_index in {root / TASKS}, found none for {lost[0]}, which "
            f"{place(frame)} has; fix: write it there"
        )
    timed = ["timestamp"] if dataset.meta.video_keys else []
    for key in [*(key for key in VECTORS if key in dataset.meta.features), *timed]:
        numbers = column(dataset, key).reshape(len(episode), -1)
        bad = np.argwhere(~np.isfinite(numbers))
        if len(bad):
            frames_of = np.unique(bad[:, 0])
            more = f" (and in {len(frames_of) - 1} more frames)" if len(frames_of) > 1 else ""
            raise UserError(
                f"expected finite numbers in {key} of {root}, found {numbers[tuple(bad[0])]} in column {bad[0, 1]} at "
                f"{place(int(bad[0, 0]))}{more}; fix: lerobot-edit-dataset --operation.type delete_episodes "
                f'--operation.episode_indices "{sorted(set(episode[frames_of].tolist()))}"'
            )
    for key in timed:
        _check_times(dataset, values(dataset, key), place)
    for key, feature in dataset.meta.features.items():
        if is_picture(key, feature) and feature["dtype"] == "image":
            images(dataset, key)[np.array([0])]


def _check_times(dataset: LocalDataset, times: NDArray[Any], place: Callable[[int], str]) -> None:
    """Every frame's time lies in its episode's part of each video: else it would show another episode."""
    episodes, margin = dataset.meta.episodes, 0.5 / dataset.meta.fps
    lengths = np.asarray(episodes["length"])
    for key in dataset.meta.video_keys:
        name = f"videos/{dataset.stored.get(key, key)}"
        spans = np.subtract(episodes[f"{name}/to_timestamp"], episodes[f"{name}/from_timestamp"])
        wrong = np.flatnonzero((times < -margin) | (times > np.repeat(spans, lengths) + margin))
        if len(wrong):
            frame = int(wrong[0])
            raise UserError(
                f"expected timestamps of 0 to {np.repeat(spans, lengths)[frame]:.3f} s, the part of the episode in the "
                f"video of {key} in {dataset.root}, found {times[frame]:.3f} at {place(frame)}; fix: write timestamps "
                "in seconds from the episode's beginning"
            )


def _complete_statistics(dataset: LocalDataset) -> None:
    features = dataset.meta.features
    columns = {key: column(dataset, key) for key in VECTORS if key in features}
    pictures = [key for key, feature in features.items() if is_picture(key, feature)]
    known = dataset.meta.stats
    dataset.meta.stats, computed = described(known, columns, pictures)
    if computed:
        there = [key for key in computed if key in (known or {})]
        why = f"those of {', '.join(there)} in {STATS} do not describe its numbers" if there else f"{STATS} has none"
        console.print(
            f"{dataset.root}: statistics of {', '.join(computed)} are computed; {why}", highlight=False, soft_wrap=True
        )


@np.errstate(over="ignore")  # infinity is found by who opens the dataset
def values(dataset: LeRobotDataset, key: str) -> NDArray[Any]:
    """One column (F, ...) as it is stored, F frames, without decoding anything else; floats as float32."""
    table = dataset.hf_dataset.select_columns([key])
    stored = table.with_format("arrow")[:][key].combine_chunks()
    is_list = pa.types.is_fixed_size_list(stored.type)
    numbers = stored.flatten() if is_list else stored
    kind = numbers.type
    if stored.null_count or numbers.null_count or not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        return np.asarray(table.with_format("numpy")[:][key])  # an order of magnitude slower
    found = numbers.to_numpy().astype(np.float32 if pa.types.is_floating(kind) else np.int64)
    return found.reshape(len(stored), -1) if is_list else found


def column(dataset: LeRobotDataset, key: str) -> NDArray[np.float32]:
    """One numeric column as (F, ...) float32; a state or an action of one entry as (F, 1)."""
    numbers = values(dataset, key).astype(np.float32)
    return numbers.reshape(len(numbers), -1) if key in VECTORS else numbers


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
    inside, is_pad = neighbours(dataset, steps)
    return column(dataset, ACTION)[inside], is_pad


def task_names(dataset: LeRobotDataset) -> dict[int, str]:
    """The instruction behind every number in the column `task_index`."""
    return {int(index): str(name) for name, index in dataset.meta.tasks["task_index"].items()}


def instructions(dataset: LeRobotDataset) -> list[str]:
    """The instruction of every frame."""
    names = task_names(dataset)
    return [names[int(index)] for index in values(dataset, "task_index")]


def frames(dataset: LocalDataset, camera: str, start: int = 0) -> Iterator[NDArray[np.uint8]]:
    """One camera's images (h, w, 3), in the order of the frames from `start` on. Raises UserError if one is lost."""
    return images(dataset, camera).each(np.arange(start, dataset.num_frames))
