"""Atomic writes and content fingerprints: a killed process leaves the old file or the new one, never a half."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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
