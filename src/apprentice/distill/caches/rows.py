"""A file of rows, one a frame.

It is written row after row, so a killed run goes on where it stopped and a full disk is an error instead of a crash; it
is renamed when complete and then read through a memory map. A file beside it holds a checksum of each row: rows that
are not what was written are computed again. Whoever reads it keeps it from being removed.
"""

import errno
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from apprentice.common.errors import UserError
from apprentice.common.files import Lock
from apprentice.common.progress import Meter, console
from apprentice.distill.caches.store import About, frames_folder

CHECKSUM = 4  # bytes of a row's CRC-32
PATIENCE = 0.5  # s before another check of rows that another process is about to fill


class Rows:
    """Rows on the disk, each a tensor of one shape and type.

    Attributes:
        about: what they are; `about.count` of them.
        path: the file, once it is complete; `partial` until then; `sums` holds a CRC-32 of each of its rows.
    """

    def __init__(self, name: str, about: About, dtype: torch.dtype):
        self.about, self.dtype = about, dtype
        folder = frames_folder() / name
        self.path, self.partial, self.sums = folder / "rows", folder / "rows.partial", folder / "sums"
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
        """How many rows are there already, a torn last one not counted; not whether they are intact."""
        if self.complete:
            return self.about.count
        return self.partial.stat().st_size // self.about.row_bytes if self.partial.exists() else 0

    def intact(self) -> int:
        """How many rows, from the first on, are what was written."""
        file = self.path if self.path.exists() else self.partial
        if not (file.exists() and self.sums.exists()):
            return 0
        with file.open("rb") as stream, self.sums.open("rb") as sums:
            for number in range(self.about.count):
                row, wanted = stream.read(self.about.row_bytes), sums.read(CHECKSUM)
                if len(row) < self.about.row_bytes or _checksum(row) != wanted:
                    return number
        return self.about.count

    def prepare(self, batches: Callable[[int], Iterator[Tensor]]) -> None:
        """Make sure that all rows are there: wait for the process that fills them, or do so, with batches of rows (b,
        *shape) from a given one on. From then on nobody removes them while this object lives. Rows that are there are
        compared with their checksums, at 1.9 GB in a second of a CPU; from the first that differs all are filled anew.

        Raises UserError if the disk is full.
        """
        while True:
            self._lock.together(f"another process computes {self.about.what}: waiting for it")
            intact = self.intact()
            if self.complete and intact == self.about.count:
                os.utime(self.path.parent / "about.json")
                return
            if self._lock.alone():
                self.about.save(self.path.parent)
                if self.done() > intact:
                    console.print(
                        f"{self.about.what} on the disk are damaged from row {intact} on: computing them again"
                    )
                if self.path.exists():
                    os.replace(self.path, self.partial)
                self._fill(batches(intact), intact)
            else:
                self._lock.release()
                if self.done() > intact:
                    console.print(
                        f"{self.about.what} on the disk are damaged, and another process reads them: waiting for it"
                    )
                    time.sleep(9 * PATIENCE)
                time.sleep(PATIENCE)

    def _fill(self, batches: Iterator[Tensor], done: int) -> None:
        for litter in self.path.parent.glob(".about.json.*"):
            shutil.rmtree(litter, ignore_errors=True)
        self.partial.touch()
        self.sums.touch()
        size = self.about.row_bytes
        try:
            with (
                self.partial.open("r+b") as stream,
                self.sums.open("r+b") as sums,
                Meter(self.about.what, self.about.count, done) as meter,
            ):
                stream.seek(done * size)  # over what is left of a torn row
                sums.seek(done * CHECKSUM)
                for rows in batches:
                    written = content(rows.to("cpu", self.dtype))
                    stream.write(written)
                    sums.write(b"".join(_checksum(written[i : i + size]) for i in range(0, len(written), size)))
                    meter.advance(len(rows))
                for each in (stream, sums):
                    each.truncate()
                    each.flush()
                    os.fsync(each.fileno())
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
        first = next(iter(parts.values()))
        found = first.new_empty(*frames.shape, *first.shape[frames.ndim :])
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
            of_part = number == part
            first = self.ends[part - 1] if part else 0
            rows = self.parts[part].at(frames[of_part] - first, views[of_part])
            found = rows.new_empty(len(frames), *rows.shape[1:]) if found is None else found
            found[torch.from_numpy(of_part)] = rows
        assert found is not None
        return found


def _checksum(row: bytes) -> bytes:
    return zlib.crc32(row).to_bytes(CHECKSUM, "little")


def content(tensor: Tensor) -> bytes:
    """A tensor's bytes."""
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()
