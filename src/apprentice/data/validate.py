"""The files of a dataset folder, checked before LeRobot reads them.

LeRobot fetches from the hub what a folder lacks, under a name that anybody can take there. So whatever is lost, cut
off, or of another shape than `meta/info.json` says is named here first.
"""

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from apprentice.common.errors import UserError
from apprentice.data.features import is_camera, is_depth, picture_shape
from apprentice.data.info import COPY, INFO, present, read_info

EPISODES, DATA = "meta/episodes", "data"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
# What a path's pattern may hold; others could take all memory, or read what is no part of a path.
FIELD = re.compile(r"\{(video_key|(chunk|file)_index(:0?[0-9]?d)?)\}")


def check_files(root: Path) -> dict[str, Any]:
    """The content of `meta/info.json` of a dataset that is whole. Raises UserError naming what is not."""
    info = read_info(root)
    columns = ["episode_index", "length", "dataset_from_index", "dataset_to_index"]
    columns += ["data/chunk_index", "data/file_index"]
    videos = [key for key, feature in info["features"].items() if feature["dtype"] == "video"]
    for key in videos:
        columns += [f"videos/{key}/{name}" for name in ("chunk_index", "file_index", "from_timestamp", "to_timestamp")]
    episodes = _read_episodes(root, columns)
    _check_episodes(root, info, episodes)
    pattern = info.get("data_path") or DATA_PATH
    _check_tables(root, info, sorted(set(_paths(root, "data_path", pattern, "", episodes, "data"))))
    for key in videos:
        paths = set(_paths(root, "video_path", info.get("video_path"), key, episodes, f"videos/{key}"))
        for path in sorted(paths):
            _check_video(path, key, info["features"][key])
    return info


def read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Columns of a parquet file, or all. Raises UserError if it cannot be read or lacks one."""
    file = _table(path)
    missing = [name for name in columns or [] if name not in file.schema_arrow.names]
    if missing:
        raise UserError(f"expected a column {missing[0]} in {path}, found {file.schema_arrow.names}; fix: {COPY}")
    try:
        return file.read(columns)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, "a table (parquet)", error) from None


def _table(path: Path) -> pq.ParquetFile:
    present(path)
    try:
        return pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, "a table (parquet)", error) from None


def _damaged(path: Path, what: str, error: Exception) -> UserError:
    found = (str(error).splitlines() or [type(error).__name__])[0]
    return UserError(f"expected {what} in {path}, found: {found}; fix: {COPY}")


def _read_episodes(root: Path, columns: list[str]) -> dict[str, np.ndarray]:
    paths = sorted((root / EPISODES).glob("*/*.parquet"))  # as LeRobot finds them
    if not paths:
        raise UserError(f"expected tables in {root / EPISODES}/*/, found none; fix: {COPY}")
    tables = [read_table(path, columns) for path in paths]
    found = {name: np.concatenate([table[name].to_numpy() for table in tables]) for name in columns}
    for name, values in found.items():
        if values.dtype.kind not in "iuf" or not np.isfinite(values).all():
            raise UserError(f"expected numbers in {root / EPISODES}, column {name}, found others; fix: {COPY}")
    return found


def _check_episodes(root: Path, info: dict[str, Any], episodes: dict[str, np.ndarray]) -> None:
    """The episodes are numbered, none is empty, and one after the other they are all frames."""
    count, lengths = len(episodes["length"]), episodes["length"]
    ends = np.cumsum(lengths)
    found = ""
    if count != info["total_episodes"] or (episodes["episode_index"] != np.arange(count)).any():
        found = f"{count} of {info['total_episodes']} episodes, or not in order"
    elif (lengths < 1).any():
        found = f"no frames in episode {int(np.argmax(lengths < 1))}"
    elif (episodes["dataset_to_index"] != ends).any() or (episodes["dataset_from_index"] != ends - lengths).any():
        episode = int(
            np.argmax((episodes["dataset_to_index"] != ends) | (episodes["dataset_from_index"] != ends - lengths))
        )
        found = f"frames before or in episode {episode} that belong to none"
    elif ends[-1] != info["total_frames"]:
        found = f"{ends[-1]} frames, and {info['total_frames']} in {INFO}"
    if found:
        raise UserError(f"expected episodes that follow one another in {root / EPISODES}, found {found}; fix: {COPY}")


def _paths(
    root: Path, name: str, pattern: Any, key: str, episodes: dict[str, np.ndarray], prefix: str
) -> Iterator[Path]:
    """The files that a pattern of `info.json` names, in this folder. Raises UserError if they could be elsewhere."""
    text = pattern if isinstance(pattern, str) else ""
    if not text or any(mark in FIELD.sub("", text) for mark in "{}"):
        raise UserError(
            f"expected in {root / INFO} a {name} of {{video_key}}, {{chunk_index:03d}} and {{file_index:03d}}, found "
            f"{pattern!r}; fix: {COPY}"
        )
    numbers = zip(episodes[f"{prefix}/chunk_index"], episodes[f"{prefix}/file_index"], strict=True)
    for chunk, file in sorted(set(numbers)):
        path = text.format(video_key=key, chunk_index=int(chunk), file_index=int(file))
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts or "\0" in path:
            raise UserError(
                f"expected files inside {root}, found {path} by {name} in {INFO}; fix: do not use this dataset, or "
                "correct the path"
            )
        yield root / path


def _check_tables(root: Path, info: dict[str, Any], expected: list[Path]) -> None:
    """The tables that episodes name are those that LeRobot reads, with all columns and frames."""
    columns = {key for key, feature in info["features"].items() if feature["dtype"] != "video"}
    rows = 0
    for path in expected:
        table = _table(path)
        names = set(table.schema_arrow.names)
        if differing := sorted(columns ^ names):
            problem = "no" if differing[0] in columns else "also a"
            raise UserError(
                f"expected the columns that {INFO} lists in {path}, found {problem} column {differing[0]}; fix: {COPY}"
            )
        rows += table.metadata.num_rows
    if strangers := sorted(set((root / DATA).glob("*/*.parquet")) - set(expected)):
        raise UserError(f"expected files of episodes alone in {root / DATA}, found {strangers[0]}; fix: remove it")
    if rows != info["total_frames"]:
        raise UserError(
            f"expected {info['total_frames']} frames in the tables of {root / DATA}, found {rows}; fix: {COPY}"
        )


def _check_video(path: Path, key: str, feature: dict[str, Any]) -> None:
    """It can be opened and is not cut off, and its pictures are as large as `info.json` says."""
    present(path)
    if _is_cut_off(path):
        raise UserError(f"expected a video in {path}, found that its end is cut off; fix: {COPY}")
    height, width, _ = picture_shape(key, feature)
    try:
        with av.open(str(path)) as container:
            found = container.streams.video[0].codec_context
            size = found.height, found.width
    except (av.FFmpegError, OSError, ValueError, IndexError) as error:
        raise _damaged(path, "a video", error) from None
    if size != (height, width):
        raise UserError(
            f"expected pictures of {height} x {width} px (height x width) in {path}, as {INFO} says of {key}, found "
            f"{size[0]} x {size[1]}; fix: correct the shape in {INFO}"
        )


def _is_cut_off(path: Path) -> bool:
    """Whether an MP4 ends before its last part does. Each part begins with its size (ISO/IEC 14496-12, 4.2)."""
    size, place = path.stat().st_size, 0
    with path.open("rb") as stream:
        if stream.read(8)[4:] != b"ftyp":
            return False
        while place < size:
            stream.seek(place)
            head = stream.read(16)
            length = int.from_bytes(head[:4])
            length = int.from_bytes(head[8:16]) if length == 1 else length
            if length == 0:  # up to the end
                return False
            place += max(length, 8)
    return place > size


def cameras_described(features: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Features with every camera's shape as (height, width, channels), and the names of these axes."""
    return {
        key: {**feature, "shape": picture_shape(key, feature), "names": ["height", "width", "channels"]}
        if is_camera(feature) and not is_depth(feature)
        else feature
        for key, feature in features.items()
    }
