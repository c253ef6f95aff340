"""Atomic writes, content fingerprints and locks: a killed process leaves the old file or the new one, never a half."""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from apprentice.errors import UserError

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


@contextmanager
def only_one(folder: Path | str) -> Iterator[int]:
    """Work in `folder`, which is made if it is not there, as the only process; yield the lock's file descriptor.

    A process that inherits it holds the lock as long as it lives. Raises UserError, with the number of the process that
    works there already.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)
    deadline = time.monotonic() + PATIENCE
    try:
        while not _locked(descriptor):
            if time.monotonic() > deadline:
                other = os.pread(descriptor, 20, 0).decode() or "unknown"
                raise UserError(
                    f"expected {folder} to be free, found another run at work in it (process {other}); "
                    "fix: wait for it, stop it, or choose another folder"
                )
            time.sleep(0.1)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        try:
            yield descriptor
        finally:
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


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
