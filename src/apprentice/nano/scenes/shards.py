"""Rows of arrays that lie in many uncompressed .npz files: read when asked for, never all in memory."""

import struct
import zipfile
from pathlib import Path

import numpy as np

from apprentice.common.errors import FileError

LOCAL_HEADER = 30  # bytes, before a zip member's name; its lengths of name and extra are at 26


def mapped(path: Path, key: str) -> np.ndarray:
    """The array `key` of an .npz that `np.savez` wrote, mapped from the file. Raises FileError if it is damaged."""
    try:
        return _mapped(path, key)
    except (zipfile.BadZipFile, KeyError, AssertionError, struct.error, ValueError, EOFError) as error:
        raise FileError(
            f"expected the array {key} in {path}, found: {type(error).__name__} {error}; fix: remove it and "
            "make the scenes again"
        ) from error


def _mapped(path: Path, key: str) -> np.ndarray:
    with zipfile.ZipFile(path) as archive, path.open("rb") as stream:
        member = archive.getinfo(f"{key}.npy")
        assert member.compress_type == zipfile.ZIP_STORED
        stream.seek(member.header_offset + LOCAL_HEADER - 4)
        name, extra = struct.unpack("<HH", stream.read(4))
        stream.seek(name + extra, 1)
        version = np.lib.format.read_magic(stream)  # type: ignore[no-untyped-call]
        assert version == (1, 0)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)  # type: ignore[no-untyped-call]
        assert not fortran
        return np.memmap(path, dtype, "r", stream.tell(), shape)


class ShardedRows:
    """Arrays of several files as one (N, ...), of which rows are taken: by number, slice or array of numbers."""

    def __init__(self, parts: list[np.ndarray]):
        self._parts, self._ends = parts, np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, rows: int | slice | np.ndarray) -> np.ndarray:
        if isinstance(rows, slice):
            rows = np.arange(len(self))[rows]
        if isinstance(rows, np.ndarray):
            return np.stack([self[int(row)] for row in rows])
        if not 0 <= rows < len(self):
            raise IndexError(f"expected a row below {len(self)}, found {rows}")
        part = int(np.searchsorted(self._ends, rows, side="right"))
        values = self._parts[part]
        return np.asarray(values[rows - self._ends[part] + len(values)])
