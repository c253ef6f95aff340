"""Atomic writes, content fingerprints and locks: a killed process leaves the old file or the new one, never a half."""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from apprentice.errors import UserError
from apprentice.progress import console

PATIENCE = 10.0  # s for what a killed run left behind to end


@contextmanager
def replacing(target: Path | str) -> Iterator[Path]:
    """Yield a fresh path beside `target`; on success move what was written there (a file or a folder) to `target`.

    Raises OSError as the file system does; `target` is then as it was before.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    workspace = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        fresh = workspace / target.name
        yield fresh
        if target.is_dir():  # os.replace cannot replace a folder that is not empty
            os.replace(target, workspace / "old")
        os.replace(fresh, target)
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


class Lock:
    """A file that processes hold together, to read, or one alone, to write; let go of when a process ends."""

    def __init__(self, path: Path):
        self.path = path
        self._stream: IO[bytes] | None = None

    def together(self, note: str = "") -> None:
        """Hold it with others; while another process holds it alone, `note` is printed and that is waited for."""
        while not self._take(fcntl.LOCK_SH):
            if note:
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


def read_json(path: Path | str) -> Any:
    """Read a JSON file. Raises OSError and json.JSONDecodeError."""
    return json.loads(Path(path).read_text())


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
