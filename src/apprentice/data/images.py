"""One camera's images in any order: only those are decoded that are asked for, and in a video those on the way.

A frame's picture in a video is the one at its time, its episode's first time in the file plus its timestamp, as LeRobot
reads it. Between episodes a file may hold pictures that belong to none: those of takes that were thrown away.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from PIL import Image

from apprentice.common.errors import UserError
from apprentice.data.local import LocalDataset

NEAR = 8  # frames ahead that are sooner decoded than searched
APART = (
    0.1  # of the time between frames: how far a picture may lie from its frame; a drift comes to more sooner or later
)
DEPTH = ("I", "F")  # first letters of PIL's modes of more than 8 bits


class Images(Protocol):
    """Images (n, h, w, 3), uint8, at frames (n,). Raises UserError if one is missing."""

    def __getitem__(self, index: NDArray[np.int64]) -> NDArray[np.uint8]: ...

    def each(self, index: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
        """Image by image (h, w, 3); fastest in the order of the frames."""
        ...


def images(dataset: LocalDataset, camera: str) -> Images:
    """One camera's images. They may go to other processes, forked or started anew."""
    return (Filmed if dataset.meta.features[camera]["dtype"] == "video" else Stored)(dataset, camera)


class Stored:
    """Encoded images, each in a cell of the dataset's table, which is mapped from the disk."""

    def __init__(self, dataset: LocalDataset, camera: str):
        self.dataset, self.camera = dataset, camera
        self.cells = dataset.hf_dataset.data.column(camera)

    def __reduce__(self) -> tuple[Any, ...]:
        return Stored, (self.dataset, self.camera)

    def __getitem__(self, index: NDArray[np.int64]) -> NDArray[np.uint8]:
        return np.stack(list(self.each(index)))

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


class Filmed:
    """Frames of videos: those of one file in the order in which it holds them, so no part of it is decoded twice."""

    def __init__(self, dataset: LocalDataset, camera: str):
        self.dataset, self.camera = dataset, camera
        episodes = dataset.meta.episodes
        self.stored = dataset.stored.get(camera, camera)
        lengths = np.asarray(episodes["length"])
        starts = np.asarray(episodes[f"videos/{self.stored}/from_timestamp"], np.float64)
        stamps = dataset.hf_dataset.data.column("timestamp").to_numpy()
        self.seconds = np.repeat(starts, lengths) + stamps  # (F,) in its file
        chunks, files = (np.asarray(episodes[f"videos/{self.stored}/{name}_index"]) for name in ("chunk", "file"))
        self.files, numbers = np.unique(np.stack([chunks, files], 1), axis=0, return_inverse=True)
        self.file_of = np.repeat(numbers.ravel(), lengths)

    def __reduce__(self) -> tuple[Any, ...]:
        return Filmed, (self.dataset, self.camera)

    def __getitem__(self, index: NDArray[np.int64]) -> NDArray[np.uint8]:
        wanted = np.unique(index)
        order = wanted[np.lexsort((self.seconds[wanted], self.file_of[wanted]))]
        found = dict(zip(order.tolist(), self.each(order), strict=True))
        return np.stack([found[int(frame)] for frame in index])

    def each(self, index: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
        ends = np.flatnonzero(np.diff(self.file_of[index])) + 1
        for run in np.split(index, ends) if len(index) else []:
            path = self._path(int(self.file_of[run[0]]))
            try:
                with av.open(str(path)) as container:
                    film = Film(container, path, self.dataset.meta.fps)
                    for frame in run:
                        picture = film.at(float(self.seconds[frame]))
                        yield sized(picture, self.dataset, self.camera, f"{self.seconds[frame]:.3f} s in {path}")
            except (av.FFmpegError, OSError) as error:
                raise UserError(
                    f"expected a video in {path}, found: {error}; fix: copy or record the dataset again"
                ) from error

    def _path(self, file: int) -> Path:
        chunk, number = self.files[file]
        pattern = self.dataset.meta.video_path
        assert pattern is not None
        path = pattern.format(video_key=self.stored, chunk_index=int(chunk), file_index=int(number))
        return Path(self.dataset.root) / path


class Film:
    """An open video, read forwards; what lies behind, or far ahead, is searched."""

    def __init__(self, container: Any, path: Path, fps: float):
        self.container, self.path = container, path
        self.stream = container.streams.video[0]
        self.step = 1 / (fps * float(self.stream.time_base))  # ticks of a frame
        self.reformatter = VideoReformatter()
        self.decoder: Iterator[Any] = iter(())
        self.before: Any = None  # the last picture before the time that was asked for, and the first that is not
        self.after: Any = None

    def at(self, seconds: float) -> NDArray[np.uint8]:
        """The picture (h, w, 3) nearest to a time. Raises UserError if it is more than `APART` away."""
        target = seconds / float(self.stream.time_base)
        first = self.before or self.after
        if first is None or target < first.pts or target > (self.after or first).pts + NEAR * self.step:
            self.container.seek(max(0, round(target) - 1), backward=True, stream=self.stream)
            self.decoder = (each for each in self.container.decode(self.stream) if each.pts is not None)
            self.before, self.after = None, next(self.decoder, None)
        while self.after is not None and self.after.pts < target:
            self.before, self.after = self.after, next(self.decoder, None)
        known = [each for each in (self.before, self.after) if each is not None]
        nearest = min(known, key=lambda each: abs(each.pts - target), default=None)
        if nearest is None or abs(nearest.pts - target) > APART * self.step:
            raise UserError(
                f"expected a frame at {seconds:.3f} s in {self.path}, found none; fix: copy or record the dataset "
                "again, or correct its timestamps (seconds from the episode's beginning)"
            )
        return np.asarray(self.reformatter.reformat(nearest, format="rgb24").to_ndarray(), dtype=np.uint8)


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
