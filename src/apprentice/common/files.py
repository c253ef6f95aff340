"""Atomic writes, content fingerprints and locks: a killed process leaves the old file or the new one, never a half."""

import ctypes
import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from apprentice.common.errors import FileError, UserError, meant

PATIENCE = 10.0  # s for what a killed run left behind to end
FIX = "put back what was written there, or write it again"  # of a file that is damaged
UNFINISHED = ".unfinished"  # how the names of folders end in which something is being written
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h
RENAME_SWAP = 2  # macOS: sys/stdio.h


@contextmanager
def replacing(target: Path | str) -> Iterator[Path]:
    """Yield a fresh path beside `target`; on success move what was written there (a file or a folder) to `target`.

    At every moment `target` is what it was before or what it is after. What a killed process left beside `target` is
    removed. Raises UserError that names the file if the disk is full, otherwise OSError as the file system does.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target.parent, f".{target.name}.*{UNFINISHED}")
    workspace, held = _workspace(target)
    try:
        fresh = workspace / target.name
        with disk_full_at(fresh, target):
            yield fresh
            move(fresh, target)
    finally:
        shutil.rmtree(workspace, ignore_errors=True)
        os.close(held)


def move(fresh: Path, target: Path) -> None:
    """Put a file or a folder in the place of another, in one step where the system can: what was there is then at
    `fresh`, if it was a folder.
    """
    if not target.is_dir():
        os.replace(fresh, target)
    elif not _exchange(fresh, target):
        old = fresh.with_name(f"{fresh.name}.old")
        os.replace(target, old)
        os.replace(fresh, target)
        os.replace(old, fresh)


def sweep(folder: Path, pattern: str = f"*{UNFINISHED}", deep: bool = False) -> None:
    """Remove what killed processes were writing in `folder`; what a living one writes stays."""
    for left in [*(folder.rglob(pattern) if deep else folder.glob(pattern))]:
        held = _held(left)
        if held is not None:
            shutil.rmtree(left, ignore_errors=True)
            os.close(held)


@contextmanager
def disk_full_at(place: Path, final: Path | None = None) -> Iterator[None]:
    """Inside, a full disk becomes a UserError that names the file: libraries often do not tell which. `place` is what
    is written, a file or a folder, named `final` in the message.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or not is_disk_full(error):
            raise
        named = Path(getattr(error, "filename", None) or _being_written(error, place) or place)
        if final is not None and named.is_relative_to(place):
            named = final / named.relative_to(place)
        raise UserError(
            f"expected room on the disk, found none left while writing {named}; what was finished before is kept; "
            "fix: free some space and run the same command again"
        ) from error


def is_disk_full(error: BaseException) -> bool:
    """Whether a disk, a quota or the largest file's size is what failed; safetensors and pyarrow tell in words."""
    words = str(error)
    return getattr(error, "errno", None) in FULL or any(os.strerror(number) in words for number in FULL)


def _being_written(error: BaseException, place: Path) -> Path | None:
    """The path inside `place` that the innermost function, of those that the error came through, was given."""
    for frame, _ in reversed([*traceback.walk_tb(error.__traceback__)]):
        for value in frame.f_locals.values():
            if isinstance(value, str | Path) and place in (path := Path(value)).parents and not path.is_dir():
                return path
    return None


def _workspace(target: Path) -> tuple[Path, int]:
    """A folder of our own beside `target`, and a descriptor that holds it, so that no other process sweeps it away."""
    while True:
        made = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=UNFINISHED, dir=target.parent))
        held = _held(made)
        if held is not None:
            return made, held


def _held(folder: Path) -> int | None:
    """A descriptor that holds `folder` alone, or None if a living process does, or it is gone."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.exists(folder):
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False if this system or its file system cannot."""
    call = _exchange_call()
    return call is not None and call(os.fsencode(one), os.fsencode(other)) == 0


def _exchange_call() -> Callable[[bytes, bytes], int] | None:
    library = ctypes.CDLL(None)
    if sys.platform == "linux" and hasattr(library, "renameat2"):
        return lambda one, other: library.renameat2(AT_FDCWD, one, AT_FDCWD, other, RENAME_EXCHANGE)
    if sys.platform == "darwin" and hasattr(library, "renamex_np"):
        return lambda one, other: library.renamex_np(one, other, RENAME_SWAP)
    return None


class Lock:
    """A file that processes hold together, to read, or one alone, to write; let go of when a process ends."""

    def __init__(self, path: Path):
        self.path = path
        self._stream: IO[bytes] | None = None

    def together(self, note: str = "") -> None:
        """Hold it with others; while another process holds it alone, `note` is printed and that is waited for."""
        while not self._take(fcntl.LOCK_SH):
            if note:
                from apprentice.common.progress import console

                console.print(note)
            self._take(fcntl.LOCK_SH, wait=True)

    def alone(self) -> bool:
        """Hold it alone, if no other process holds it."""
        return self._take(fcntl.LOCK_EX)

    def fileno(self) -> int:
        """The file descriptor, while it is held: a process that inherits it holds the lock, too."""
        assert self._stream is not None
        return self._stream.fileno()

    def release(self) -> None:
        """Let go of it."""
        if self._stream is not None:
            self._stream.close()
        self._stream = None

    def _take(self, kind: int, wait: bool = False) -> bool:
        while True:
            if self._stream is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with suppress(FileNotFoundError):  # its folder was removed between these lines
                    self._stream = self.path.open("a+b")
                continue
            try:
                fcntl.flock(self._stream, kind if wait else kind | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            if os.fstat(self._stream.fileno()).st_nlink:
                return True
            self.release()  # it was removed while we waited: what we hold is nothing


@contextmanager
def only_one(folder: Path | str) -> Iterator[int]:
    """Work in `folder`, which is made if it is not there, as the only process; yield the lock's file descriptor.

    A process that inherits it holds the lock as long as it lives. Raises UserError, with the number of the process that
    works there already.
    """
    lock = Lock(Path(folder) / ".lock")
    deadline = time.monotonic() + PATIENCE
    try:
        while not lock.alone():
            if time.monotonic() > deadline:
                other = os.pread(lock.fileno(), 20, 0).decode() or "unknown"
                raise UserError(
                    f"expected {folder} to be free, found another run at work in it (process {other}); "
                    "fix: wait for it, stop it, or choose another folder"
                )
            time.sleep(0.1)
        os.ftruncate(lock.fileno(), 0)
        os.write(lock.fileno(), str(os.getpid()).encode())
        sweep(Path(folder), deep=True)
        try:
            yield lock.fileno()
        finally:
            os.ftruncate(lock.fileno(), 0)
    finally:
        lock.release()


def write_text(path: Path | str, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as fresh:
        fresh.write_text(text)


def write_json(path: Path | str, content: Any) -> None:
    """Write JSON atomically, indented and with a final newline."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_text(path: Path | str, what: str = "a text file") -> str:
    """The text of a file. Raises FileNotFoundError, and FileError if it is no text or only a pointer to one."""
    try:
        text = Path(path).read_bytes().decode()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise FileError(f"expected {what} at {path}, found: {error.strerror}; fix: make it readable") from error
    except UnicodeDecodeError as error:
        raise FileError(f"expected {what} at {path}, found bytes that are no text; fix: write it again") from error
    if text.startswith("version https://git-lfs"):
        raise FileError(f"expected {what} at {path}, found a Git LFS pointer; fix: git lfs pull")
    return text


def read_json(path: Path | str, kind: Any = Any, what: str = "", more: bool = False) -> Any:
    """Read a JSON file that holds a `kind`: any type, also a dataclass. With `more`, a typed dictionary may have other
    fields, too. Raises FileNotFoundError and FileError.
    """
    what = what or "a JSON file"
    return checked(read_text(path, what), kind, what, f"at {path}", more)


def read_lines(path: Path | str, kind: Any, what: str, whole: bool = False) -> list[Any]:
    """Read a file with a `kind` as JSON on each line; with `whole`, a last line without its end is left out: it is
    being written, or was cut off by a kill. Raises FileNotFoundError and FileError, with the line.
    """
    lines = read_text(path, "lines of JSON").splitlines(keepends=True)
    if whole and lines and not lines[-1].endswith("\n"):
        lines.pop()
    return [checked(line, kind, what, f"on line {number} of {path}") for number, line in enumerate(lines, 1)]


def read_yaml(path: Path | str, kind: Any, what: str) -> Any:
    """Read a YAML file that holds a `kind`. Raises FileNotFoundError and FileError."""
    import yaml

    try:
        content = yaml.safe_load(read_text(path, what))
        text = json.dumps(content, default=str)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        place = getattr(error, "problem_mark", None)
        where = f" on line {place.line + 1}" if place else ""
        reason = str(getattr(error, "problem", None) or error).splitlines()[0]
        raise FileError(f"expected {what} at {path}, found{where}: {reason}; fix: mend that line") from error
    return checked(text, kind, what, f"at {path}")


def checked(text: str, kind: Any, what: str, where: str, more: bool = False, fix: str = FIX) -> Any:
    """JSON as a `kind`, checked against it field by field; without `more`, a field that it does not have is an error.

    Raises FileError, with the first field that is wrong.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_json(text, strict=True, extra="allow" if more else "forbid")
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        found = first["msg"][:1].lower() + first["msg"][1:]
        if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            found = (
                f"an unknown key; {meant(str(first['loc'][-1]), names := _keys(kind), f'known: {", ".join(names)}')}"
            )
        elif field and first["type"] not in ("missing", "json_invalid"):
            value = repr(first["input"])
            found += f", {value if len(value) < 60 else value[:57] + '...'}"
        others = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise FileError(
            f"expected {what} {where}, found{f' in {field}' if field else ''}: {found}{others}; fix: {fix}"
        ) from error


def _keys(kind: Any) -> list[str]:
    """The names of the fields of a dataclass or typed dictionary, and of those that it is made of."""
    inside = typing.get_args(kind)
    if isinstance(kind, type) and (dataclasses.is_dataclass(kind) or typing.is_typeddict(kind)):
        hints = typing.get_type_hints(kind)
        return list(dict.fromkeys([*hints, *(name for hint in hints.values() for name in _keys(hint))]))
    return list(dict.fromkeys(name for each in inside for name in _keys(each)))


def inside(folder: Path | str, name: object, where: Path | str) -> Path:
    """The path of `name` below `folder`, where a file that somebody else wrote names it; links are followed.

    Args:
        folder: where the file has to lie.
        name: the relative path as it was read; anything that is no text is refused too.
        where: the file in which the name stands, for the error.

    Raises UserError if the name, or the link that it is, leads out of the folder. A snapshot in the cache of Hugging
    Face's hub links to its own blobs.
    """
    if isinstance(name, str) and not Path(name).is_absolute() and ".." not in Path(name).parts:
        with suppress(OSError, ValueError):  # of a name that no file can have
            root, found = Path(folder).resolve(), Path(folder, name).resolve()
            homes = [root, root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [root]
            with suppress(FileNotFoundError, NotADirectoryError):
                found.lstat()
            if any(home in found.parents for home in homes):
                return Path(folder, name)
    raise UserError(
        f"expected in {where} the name of a file inside {folder}, found {str(name)[:200]!r}; "
        "fix: put the file there and write its name without a folder above it"
    )


def fingerprint(*parts: Path | str | bytes) -> str:
    """Hash strings, bytes and the content of files and folders (names included) into 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            files = sorted(p for p in part.rglob("*") if p.is_file()) if part.is_dir() else [part]
            for file in files:
                digest.update(str(file.relative_to(part) if part.is_dir() else file.name).encode())
                with file.open("rb") as stream:
                    digest.update(hashlib.file_digest(stream, "sha256").digest())
        else:
            digest.update(part if isinstance(part, bytes) else part.encode())
        digest.update(b"\0")
    return digest.hexdigest()[:16]


def cache_folder() -> Path:
    """Where things that can be computed again are kept: $APPRENTICE_CACHE, or ~/.cache/apprentice."""
    return Path(os.environ.get("APPRENTICE_CACHE", "~/.cache/apprentice")).expanduser()
