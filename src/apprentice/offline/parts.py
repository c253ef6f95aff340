"""Folders in parts of limited size, with checksums: for machines that take or give back small files alone.

This file needs nothing but Python's standard library, so it travels with the parts and runs by itself:

    python3 parts.py split FOLDER PARTS 15      # PARTS/part-000 ... of at most 15 MB each, and PARTS/parts.json
    python3 parts.py join PARTS FOLDER          # the same folder again, byte by byte
"""

import hashlib
import io
import json
import os
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

try:
    from apprentice.common.errors import UserError
except ModuleNotFoundError:  # alone on another machine

    class UserError(Exception):  # type: ignore[no-redef]
        """Something the user can mend."""


LISTED = "parts.json"
PART_MB = 15.0


def split(folder: Path, out: Path, mb: float = PART_MB) -> list[Path]:
    """Write the files of a folder as parts, in order, and a list of them with their SHA-256. Same files, same parts.

    Args:
        folder: folder to split, such as a checkpoint.
        out: folder of the parts, which must not exist.
        mb: largest size of a part (MB).

    Raises UserError if there are no files, already parts, or a link to a file elsewhere.
    """
    folder = Path(folder)
    files = {str(file.relative_to(folder)): file for file in sorted(folder.rglob("*")) if file.is_file()}
    for file in files.values():
        check_link(file, folder)
    return split_files(files, Path(out), mb)


def split_files(files: Mapping[str, Path], out: Path, mb: float) -> list[Path]:
    """The same for files from anywhere, under the names that they get."""
    if not files:
        raise UserError("expected files to split, found none; fix: name a folder that holds some")
    if (out / LISTED).exists():
        raise UserError(f"expected a folder without parts, found {out / LISTED}; fix: another one, or remove {out}")
    out.mkdir(parents=True, exist_ok=True)
    parts = _Parts(out, max(1, int(mb * 1e6)))
    with tarfile.open(fileobj=parts, mode="w|", format=tarfile.PAX_FORMAT) as archive:  # type: ignore[call-overload]
        for name, file in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = file.stat().st_size
            entry.mode = 0o755 if os.access(file, os.X_OK) else 0o644
            with file.open("rb") as stream:
                archive.addfile(entry, stream)
    parts.close()
    (out / LISTED).write_text(json.dumps({"parts": parts.listed, "files": len(files)}, indent=2) + "\n")
    return [out / part["name"] for part in parts.listed]


def check_link(file: Path, folder: Path) -> None:
    """Raise UserError for a link to a file elsewhere, whose content would travel along unseen; the hub's cache links
    its snapshots to its blobs.
    """
    root, found = folder.resolve(), file.resolve()
    homes = [root, root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [root]
    if file.is_symlink() and not any(home in found.parents for home in homes):
        raise UserError(
            f"expected files of {folder} alone, found {file}, a link to {found}; fix: put a copy in its place, or "
            "remove it"
        )


def join(parts: Path, out: Path) -> None:
    """Put a folder together from its parts. It appears when it is whole.

    Args:
        parts: folder of the parts.
        out: folder to write, which must not exist.

    Raises UserError if a part is missing or damaged, or the folder exists.
    """
    parts, out = Path(parts), Path(out)
    if out.exists():
        raise UserError(f"expected no {out}, found one; fix: another folder, or remove it")
    listed = _listed(parts / LISTED)
    for part in listed["parts"]:
        if fault := _fault(parts / part["name"], part):
            raise UserError(f"{fault}; fix: copy that part again")
    out.parent.mkdir(parents=True, exist_ok=True)
    workspace = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        stream = _Joined(parts / part["name"] for part in listed["parts"])
        with tarfile.open(fileobj=stream, mode="r|") as archive:  # type: ignore[call-overload]
            try:
                archive.extractall(workspace / "whole", filter="data")
            except tarfile.TarError as error:  # a file that would lie elsewhere, too
                raise UserError(
                    f"expected files of one folder in {parts}, found {error}; fix: split it again"
                ) from error
        found = sum(file.is_file() for file in (workspace / "whole").rglob("*"))
        if found != listed["files"]:
            raise UserError(f"expected {listed['files']} files in {parts}, found {found}; fix: split the folder again")
        os.replace(workspace / "whole", out)
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


def _listed(file: Path) -> dict[str, Any]:
    """The list of the parts, which lie beside it. Raises UserError."""
    try:
        text = file.read_text()
        if text.startswith("version https://git-lfs"):
            raise ValueError("a Git LFS pointer")
        listed: dict[str, Any] = json.loads(text)
        for part in listed["parts"]:
            if not isinstance(part["name"], str) or Path(part["name"]).name != part["name"]:
                raise ValueError(f"a part named {part['name']!r}")
            kinds = type(part["bytes"]), type(part["sha256"]), type(listed["files"])
            if kinds != (int, str, int):
                raise TypeError(f"other than numbers of bytes and files, and a checksum, for {part['name']}")
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(
            f"expected a list of the parts beside it in {file}, found {error!r}; fix: copy it from where the parts are"
        ) from error
    return listed


def _fault(file: Path, part: dict[str, Any]) -> str:
    if not file.is_file():
        return f"expected {file}, found nothing"
    if file.stat().st_size != part["bytes"]:
        return f"expected {part['bytes']} bytes in {file}, found {file.stat().st_size}"
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return "" if digest == part["sha256"] else f"expected {file} with SHA-256 {part['sha256']}, found {digest}"


class _Parts:
    """A stream that is written to one file after the other."""

    def __init__(self, out: Path, size: int):
        self.out, self.size = out, size
        self.listed: list[dict[str, Any]] = []
        self._stream: io.BufferedWriter | None = None
        self._written, self._digest = 0, hashlib.sha256()

    def write(self, data: bytes) -> int:
        view = memoryview(data)
        while view:
            if self._stream is None:
                self._stream = (self.out / f"part-{len(self.listed):03}").open("wb")
            piece, view = view[: self.size - self._written], view[self.size - self._written :]
            self._stream.write(piece)
            self._digest.update(piece)
            self._written += len(piece)
            if self._written == self.size:
                self.close()
        return len(data)

    def close(self) -> None:
        """End the present part."""
        if self._stream is not None:
            self._stream.close()
            name = Path(self._stream.name).name
            self.listed.append({"name": name, "bytes": self._written, "sha256": self._digest.hexdigest()})
            self._stream, self._written, self._digest = None, 0, hashlib.sha256()


class _Joined:
    """A stream that is read from one file after the other."""

    def __init__(self, files: Iterator[Path]):
        self._files, self._stream = files, io.BytesIO()

    def read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self._stream.read(size - len(data))
            if not piece:
                self._stream.close()
                following = next(self._files, None)
                if following is None:
                    self._stream = io.BytesIO()
                    break
                self._stream = following.open("rb")  # type: ignore[assignment]
            data += piece
        return data


def main() -> int:
    """Run one of both from the command line; 2 after a mistake that the user can mend."""
    match sys.argv[1:]:
        case ["split", folder, out, *mb] if len(mb) < 2:
            call = lambda: split(Path(folder), Path(out), *map(float, mb))  # noqa: E731
        case ["join", parts, out]:
            call = lambda: join(Path(parts), Path(out))  # type: ignore[assignment, return-value]  # noqa: E731
        case _:
            print(__doc__)
            return 2
    try:
        call()
    except UserError as error:
        print(f"parts: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
