"""One camera's images in any order: only those are decoded that are asked for, and in a video those on the way.

A frame's picture in a video is the one at its time, its episode's first time in the file plus its timestamp, as LeRobot
reads it. Between episodes a file may hold pictures that belong to none: those of takes that were thrown away.
"""

import io
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from PIL import Image

from apprentice.common.errors import UserError
from apprentice.data.local import LocalDataset

NEAR = 8  # frames ahead that are sooner decoded than searched
APART = 0.1  # of the time between frames: a picture may lie so far from its frame; a drift soon comes to more
DEPTH = ("I", "F")  # first letters of PIL's modes of more than 8 bits


def images(dataset: LocalDataset, camera: str, recent: int = 0) -> "Images":
    """One camera's images; the last `recent` of them are kept, for windows that overlap. They may go to other
    processes, forked or started anew.
    """
    return (Filmed if dataset.meta.features[camera]["dtype"] == "video" else Stored)(dataset, camera, recent)


class Images(ABC):
    """Images (n, h, w, 3), uint8, at frames (n,), each decoded once. Raises UserError if one is missing."""

    def __init__(self, dataset: LocalDataset, camera: str, recent: int = 0):
        self.dataset, self.camera, self.recent = dataset, camera, recent
        self._recent: dict[int, NDArray[np.uint8]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.dataset, self.camera, self.recent)

    def __getitem__(self, index: NDArray[np.int64]) -> NDArray[np.uint8]:
        wanted = np.unique(index)
        found = {frame: self._recent[frame] for frame in wanted.tolist() if frame in self._recent}
        order = self.order(np.array([frame for frame in wanted.tolist() if frame not in found], np.int64))
        found |= zip(order.tolist(), self.each(order), strict=True)
        self._recent = {frame: found[frame] for frame in wanted[max(0, len(wanted) - self.recent) :].tolist()}
        return np.stack([found[frame] for frame in index.tolist()])

    def order(self, frames: NDArray[np.int64]) -> NDArray[np.int64]:
        """Frames, given in their own order, in the order in which they are fastest decoded."""
        return frames

    @abstractmethod
    def each(self, index: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
        """Image by image (h, w, 3)."""


class Stored(Images):
    """Encoded images, each in a cell of the dataset's table, which is mapped from the disk."""

    def __init__(self, dataset: LocalDataset, camera: str, recent: int = 0):
        super().__init__(dataset, camera, recent)
        self.cells = dataset.hf_dataset.data.column(camera)

    def each(self, index: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
        for frame in index:
            yield sized(self._decoded(int(frame)), self.dataset, self.camera, f"frame {frame}")

    def _decoded(self, frame: int) -> NDArray[np.uint8]:
        cell = self.cells[frame]
        data = cell["bytes"].as_buffer() if cell.is_valid else None
        if data is None:
            raise UserError(
                f"expected images inside the files of {self.dataset.root}/data, found none of {self.camera} at frame "
                f"{frame}; fix: write the dataset with LeRobot, which puts them there"
            )
        try:
            picture = Image.open(io.BytesIO(data))
            if not picture.mode.startswith(DEPTH):
                return np.asarray(picture.convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(
                f"expected a picture of {self.camera} at frame {frame} of {self.dataset.root}, found: {error}; "
                "fix: copy or record the dataset again"
            ) from error
        raise UserError(
            f"expected pictures of 8 bits in {self.camera} of {self.dataset.root}, found {picture.mode} (a depth map?) "
            f"at frame {frame}; fix: mark the camera as a depth map in meta/info.json (info: is_depth_map), or turn "
            "its pictures into colours"
        )


class Filmed(Images):
    """Frames of videos. A video stays open between calls, so frames that are asked for in order are decoded once."""

    def __init__(self, dataset: LocalDataset, camera: str, recent: int = 0):
        super().__init__(dataset, camera, recent)
        episodes = dataset.meta.episodes
        self.stored = dataset.stored.get(camera, camera)
        lengths = np.asarray(episodes["length"])
        starts = np.asarray(episodes[f"videos/{self.stored}/from_timestamp"], np.float64)
        stamps = dataset.hf_dataset.data.column("timestamp").to_numpy()
        self.seconds = np.repeat(starts, lengths) + stamps  # (F,) in its file
        chunks, files = (np.asarray(episodes[f"videos/{self.stored}/{name}_index"]) for name in ("chunk", "file"))
        self.files, numbers = np.unique(np.stack([chunks, files], 1), axis=0, return_inverse=True)
        self.file_of = np.repeat(numbers.ravel(), lengths)
        # By process: a fork cannot read its parent's open file.
        self._open: dict[int, Video] = {}

    def order(self, frames: NDArray[np.int64]) -> NDArray[np.int64]:
        """Frames of one file in the order in which it holds them, so no part of it is decoded twice."""
        return frames[np.lexsort((self.seconds[frames], self.file_of[frames]))]

    def each(self, index: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
        for frame in index:
            path, seconds = self._path(int(self.file_of[frame])), float(self.seconds[frame])
            try:
                picture = self._film(path).at(seconds)
            except (av.FFmpegError, OSError) as error:
                self._open.pop(os.getpid(), None)
                raise UserError(
                    f"expected a video in {path}, found: {error}; fix: copy or record the dataset again"
                ) from error
            yield sized(picture, self.dataset, self.camera, f"{seconds:.3f} s in {path}")

    def _film(self, path: Path) -> "Video":
        film = self._open.get(os.getpid())
        if film is None or film.path != path:
            film = self._open[os.getpid()] = Video(path, self.dataset.meta.fps)
        return film

    def _path(self, file: int) -> Path:
        chunk, number = self.files[file]
        pattern = self.dataset.meta.video_path
        assert pattern is not None
        path = pattern.format(video_key=self.stored, chunk_index=int(chunk), file_index=int(number))
        return Path(self.dataset.root) / path


class Video:
    """An open video, read forwards; what lies behind, or behind a later key frame, is searched.

    Attributes:
        key: time of the last key frame that was decoded, in ticks.
        reach: ticks from there in which no other is expected: the last distance of key frames. After a search, twice
            what lay between its key frame and its goal, if that is more: frames in order are then soon not searched.
    """

    def __init__(self, path: Path, fps: float):
        self.container, self.path = av.open(str(path)), path
        self.stream = self.container.streams.video[0]
        self.stream.codec_context.thread_count = 1  # a thread for each core, and each film that is open, would be many
        self.step = 1 / (fps * float(self.stream.time_base or 0))  # ticks of a frame
        self.reformatter = VideoReformatter()
        self.decoder: Iterator[Any] = iter(())
        self.before: Any = None  # the last picture before the time that was asked for, and the first that is not
        self.after: Any = None
        self.key, self.reach = 0.0, NEAR * self.step

    def at(self, seconds: float) -> NDArray[np.uint8]:
        """The picture (h, w, 3) nearest to a time. Raises UserError if it is more than `APART` away."""
        target = seconds / float(self.stream.time_base or 0)
        first = self.before or self.after
        if first is None or target < first.pts:
            self._search(target)
        while self.after is not None and self.after.pts < target:
            if target > max(self.after.pts + NEAR * self.step, self.key + self.reach):
                self._search(target)
            self.before, self.after = self.after, next(self.decoder, None)
            if self.after is not None and self.after.key_frame:
                self.key, self.reach = self.after.pts, max(NEAR * self.step, self.after.pts - self.key)
        known = [each for each in (self.before, self.after) if each is not None]
        nearest = min(known, key=lambda each: abs(each.pts - target), default=None)
        if nearest is None or abs(nearest.pts - target) > APART * self.step:
            raise UserError(
                f"expected a frame at {seconds:.3f} s in {self.path}, found none; fix: copy or record the dataset "
                "again, or correct its timestamps (seconds from the episode's beginning)"
            )
        return np.asarray(self.reformatter.reformat(nearest, format="rgb24").to_ndarray(), dtype=np.uint8)

    def _search(self, target: float) -> None:
        """Begin at the last key frame before a time."""
        self.container.seek(max(0, round(target) - 1), backward=True, stream=self.stream)
        self.decoder = (each for each in self.container.decode(self.stream) if each.pts is not None)
        self.before, self.after = None, next(self.decoder, None)
        if self.after is not None:
            self.key, self.reach = self.after.pts, max(self.reach, 2 * (target - self.after.pts))


def sized(picture: NDArray[np.uint8], dataset: LocalDataset, camera: str, place: str) -> NDArray[np.uint8]:
    """A picture (h, w, 3) in the size that the dataset gives its camera. Raises UserError if it has another one."""
    height, width = dataset.meta.features[camera]["shape"][:2]
    if camera in dataset.sizes:
        return resized(picture, height, width)
    if picture.shape[:2] != (height, width):
        raise UserError(
            f"expected pictures of {height} x {width} px (height x width) of {camera} in {dataset.root}, as "
            f"meta/info.json says, found {picture.shape[0]} x {picture.shape[1]} at {place}; fix: correct the shape "
            "there, or record the dataset again"
        )
    return picture


def resized(picture: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """A picture (h, w, 3) as (height, width, 3), by averages (PIL's bilinear filter)."""
    if picture.shape[:2] == (height, width):
        return picture
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR))
