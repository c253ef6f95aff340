"""One camera's images in any order: only those are decoded that are asked for, and in a video those on the way."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from numpy.typing import NDArray
from PIL import Image

from apprentice.errors import UserError

NEAR = 8  # frames ahead that are sooner decoded than searched


class Images(Protocol):
    """Images (n, h, w, 3), uint8, at frames (n,). Raises UserError if one is missing."""

    def __getitem__(self, index: NDArray[np.int64]) -> NDArray[np.uint8]: ...


def images(dataset: LeRobotDataset, camera: str) -> Images:
    """One camera's images. They may go to other processes, forked or started anew."""
    return (Filmed if dataset.meta.features[camera]["dtype"] == "video" else Stored)(dataset, camera)


class Stored:
    """Encoded images, each in a cell of the dataset's table, which is mapped from the disk."""

    def __init__(self, dataset: LeRobotDataset, camera: str):
        self.dataset, self.camera = dataset, camera
        self.cells = dataset.hf_dataset.data.column(camera)

    def __reduce__(self) -> tuple[Any, ...]:
        return Stored, (self.dataset, self.camera)

    def __getitem__(self, index: NDArray[np.int64]) -> NDArray[np.uint8]:
        return np.stack([self._decoded(int(frame)) for frame in index])

    def _decoded(self, frame: int) -> NDArray[np.uint8]:
        data = self.cells[frame]["bytes"].as_buffer()
        if data is None:
            raise UserError(
                f"expected images inside the files of {self.dataset.root}/data, found none of {self.camera} at frame "
                f"{frame}; fix: write the dataset with LeRobot, which puts them there"
            )
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


class Filmed:
    """Frames of videos: those of one file in the order in which it holds them, so no part of it is decoded twice."""

    def __init__(self, dataset: LeRobotDataset, camera: str):
        self.dataset, self.camera = dataset, camera
        episodes, fps = dataset.meta.episodes, dataset.meta.fps
        lengths = np.asarray(episodes["length"])
        starts = np.asarray(episodes[f"videos/{camera}/from_timestamp"])
        steps = np.concatenate([np.arange(length) for length in lengths])
        self.seconds = np.repeat(starts, lengths) + steps / fps  # (F,) in its file
        chunks, files = (np.asarray(episodes[f"videos/{camera}/{name}_index"]) for name in ("chunk", "file"))
        self.files, numbers = np.unique(np.stack([chunks, files], 1), axis=0, return_inverse=True)
        self.file_of = np.repeat(numbers.ravel(), lengths)
        self.reformatter = VideoReformatter()

    def __reduce__(self) -> tuple[Any, ...]:
        return Filmed, (self.dataset, self.camera)

    def __getitem__(self, index: NDArray[np.int64]) -> NDArray[np.uint8]:
        found: dict[int, NDArray[np.uint8]] = {}
        wanted = np.unique(index)
        for file in np.unique(self.file_of[wanted]):
            here = wanted[self.file_of[wanted] == file]
            found |= self._read(int(file), here[np.argsort(self.seconds[here])])
        return np.stack([found[int(frame)] for frame in index])

    def _read(self, file: int, wanted: NDArray[np.int64]) -> dict[int, NDArray[np.uint8]]:
        """Frames of one file, in its order."""
        chunk, number = self.files[file]
        pattern = self.dataset.meta.video_path
        assert pattern is not None
        path = Path(self.dataset.root) / pattern.format(
            video_key=self.camera, chunk_index=int(chunk), file_index=int(number)
        )
        found: dict[int, NDArray[np.uint8]] = {}
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert stream.time_base is not None
            ticks = 1 / (self.dataset.meta.fps * float(stream.time_base))  # of a frame
            stands = -np.inf  # where the next decoded frame is, in ticks
            decoder: Iterator[Any] = iter(())
            for frame in wanted:
                target = self.seconds[frame] / float(stream.time_base)
                if not 0 <= target - stands < NEAR * ticks:
                    container.seek(round(target), backward=True, stream=stream)
                    decoder = container.decode(stream)
                picture = next((each for each in decoder if each.pts >= target - ticks / 2), None)
                if picture is None or picture.pts > target + ticks / 2:
                    raise UserError(
                        f"expected a frame at {self.seconds[frame]:.3f} s in {path}, found none; "
                        "fix: copy or record the dataset again"
                    )
                pixels = self.reformatter.reformat(picture, format="rgb24").to_ndarray()
                found[int(frame)] = np.asarray(pixels, dtype=np.uint8)
                stands = picture.pts + ticks / 2
        return found
