"""A file of rows, one a frame.

It is written row after row, so a killed run goes on where it stopped and a full disk is an error instead of a crash; it
is renamed when complete and then read through a memory map. Whoever reads it keeps it from being removed.
"""

import errno
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from apprentice.distill.store import About, frames_folder
from apprentice.errors import UserError
from apprentice.files import Lock
from apprentice.progress import Meter

PATIENCE = 0.5  # s before another look at rows that another process is about to fill


class Rows:
    """Rows on the disk, each a tensor of one shape and type.

    Attributes:
        about: what they are; `about.count` of them.
        path: the file, once it is complete; `partial` until then.
    """

    def __init__(self, name: str, about: About, dtype: torch.dtype):
        self.about, self.dtype = about, dtype
        folder = frames_folder() / name
        self.path, self.partial = folder / "rows", folder / "rows.partial"
        self._lock = Lock(folder / "lock")

    @property
    def size(self) -> int:
        """Bytes of all rows."""
        return self.about.count * self.about.row_bytes

    @property
    def complete(self) -> bool:
        """Whether all rows are there."""
        return self.path.exists() and self.path.stat().st_size == self.size

    def done(self) -> int:
        """How many rows are there already, a torn last one not counted."""
        if self.complete:
            return self.about.count
        return self.partial.stat().st_size // self.about.row_bytes if self.partial.exists() else 0

    def prepare(self, batches: Callable[[int], Iterator[Tensor]]) -> None:
        """Make sure that all rows are there: wait for the process that fills them, or do so, with batches of rows (b,
        *shape) from a given one on. From then on nobody removes them while this object lives.

        Raises UserError if the disk is full.
        """
        while True:
            self._lock.together(f"another process computes {self.about.what}: waiting for it")
            if self.complete:
                os.utime(self.path.parent / "about.json")
                return
            if self._lock.alone():
                self.about.save(self.path.parent)
                self._fill(batches(self.done()))
            else:
                self._lock.release()
                time.sleep(PATIENCE)

    def _fill(self, batches: Iterator[Tensor]) -> None:
        done = self.done()
        self.partial.touch()
        try:
            with self.partial.open("r+b") as stream, Meter(self.about.what, self.about.count, done) as meter:
                stream.seek(done * self.about.row_bytes)  # over what is left of a torn row
                for rows in batches:
                    stream.write(content(rows.to("cpu", self.dtype)))
                    meter.advance(len(rows))
                stream.truncate()
                os.fsync(stream.fileno())
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise UserError(
                f"expected {(self.about.count - done) * self.about.row_bytes / 1e6:.0f} MB free for {self.path}, "
                "found a full disk; fix: free some (apprentice cache rm), give less (--cache-gb), or set "
                "APPRENTICE_CACHE to another disk; what is computed so far is kept"
            ) from error
        os.replace(self.partial, self.path)

    @cached_property
    def _map(self) -> np.memmap:
        return np.memmap(self.path, mode="r", dtype=np.uint8, shape=(self.about.count, self.about.row_bytes))

    def __getitem__(self, index: np.ndarray) -> Tensor:
        """Rows (*index's shape, *shape) at `index`. Raises IndexError if there is no such row."""
        if index.size and not 0 <= index.min() <= index.max() < self.about.count:
            raise IndexError(f"row {index.min()} or {index.max()} of {self.about.count}")
        rows = torch.empty(*index.shape, *self.about.shape, dtype=self.dtype)
        raw = rows.view(torch.uint8).reshape(index.size, self.about.row_bytes)
        np.take(self._map, index.reshape(-1), axis=0, out=raw.numpy(), mode="clip")  # to "raise" it would copy twice
        return rows


class Computed:
    """In place of rows that are not kept: what they would hold, computed each time that it is asked for."""

    def __init__(self, compute: Callable[[np.ndarray], Tensor], dtype: torch.dtype):
        self.compute, self.dtype = compute, dtype

    def __getitem__(self, index: np.ndarray) -> Tensor:
        """Rows (*index's shape, *shape) at `index`."""
        return self.compute(index.reshape(-1)).to(self.dtype).unflatten(0, index.shape)


class Readable(Protocol):
    """Rows (*index's shape, *shape) at `index`, from wherever they are."""

    dtype: torch.dtype

    def __getitem__(self, index: np.ndarray) -> Tensor: ...


class Views:
    """The rows of each view of the frames; what has one view shows it in place of every other."""

    def __init__(self, rows: Sequence[Readable]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, frames: np.ndarray, views: np.ndarray) -> Tensor:
        """Rows (B, ..., *shape) of `frames` (B, ...) in `views` (B,)."""
        if len(self) == 1:
            return self.rows[0][frames]
        parts = {view: self.rows[view][frames[views == view]] for view in np.unique(views).tolist()}
        some = next(iter(parts.values()))
        found = some.new_empty(*frames.shape, *some.shape[frames.ndim :])
        for view, part in parts.items():
            found[torch.from_numpy(views == view)] = part
        return found


class Joined:
    """The views of several datasets' frames, one dataset after the other: `sizes` frames each."""

    def __init__(self, parts: Sequence[Views], sizes: Sequence[int]):
        self.parts, self.ends = parts, np.cumsum(sizes)

    def __len__(self) -> int:
        return len(self.parts[0])

    def at(self, frames: np.ndarray, views: np.ndarray) -> Tensor:
        """Rows (B, ..., *shape) of `frames` (B, ...), those of a sample from one dataset, in `views` (B,)."""
        number = np.searchsorted(self.ends, frames.reshape(len(frames), -1)[:, 0], side="right")
        found: Tensor | None = None
        for part in np.unique(number).tolist():
            mine = number == part
            first = self.ends[part - 1] if part else 0
            rows = self.parts[part].at(frames[mine] - first, views[mine])
            found = rows.new_empty(len(frames), *rows.shape[1:]) if found is None else found
            found[torch.from_numpy(mine)] = rows
        assert found is not None
        return found


def content(tensor: Tensor) -> bytes:
    """A tensor's bytes."""
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()
