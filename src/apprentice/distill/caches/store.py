"""Where caches lie, what they hold, who uses them; `apprentice cache`.

A cache is a folder: `rows` (`rows.partial` until it is complete), `sums`, their checksums, `about.json`, and `lock`,
which whoever fills the rows holds alone and whoever reads them holds with others, for as long as its process lives.
"""

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

from apprentice.common.errors import FileError, UserError
from apprentice.common.files import Lock, cache_folder, read_json, write_json
from apprentice.common.progress import console
from apprentice.common.result import Result

DAY = 86400.0  # s
SHOWN = 40  # characters of a path


@dataclass(frozen=True)
class About:
    """What a cache holds.

    Attributes:
        what: image tokens, expert latents, or keys and values.
        dataset: folder of the dataset.
        model: the VLM or the expert that it was computed with.
        view: which view of the frames; 0 are the pictures themselves.
        dtype: of what is stored.
        shape: of a row.
        count: rows when complete, one a frame.
        row_bytes: bytes of a row.
        created: when it was begun.
    """

    what: str
    dataset: str
    model: str
    view: int
    dtype: str
    shape: tuple[int, ...]
    count: int
    row_bytes: int
    created: str = ""

    def save(self, folder: Path) -> None:
        """Write it beside the rows, unless it is there."""
        if not (folder / "about.json").exists():
            write_json(folder / "about.json", {**asdict(self), "created": datetime.now().isoformat(timespec="seconds")})


@dataclass(frozen=True)
class Entry:
    """A cache as it lies on the disk, or something else that lies among them."""

    path: Path

    @cached_property
    def about(self) -> About | None:
        """None if nothing tells, as of older versions' caches."""
        try:
            about: About = read_json(self.path / "about.json", About)
            return about
        except (OSError, FileError):
            return None

    @cached_property
    def size(self) -> int:
        """Bytes on the disk."""
        files = [self.path, *(self.path.iterdir() if self.path.is_dir() else ())]
        return sum(file.stat().st_size for file in files if file.is_file())

    @cached_property
    def done(self) -> int:
        """How many rows there are."""
        present = [file for file in (self.path / "rows", self.path / "rows.partial") if file.is_file()]
        return present[0].stat().st_size // self.about.row_bytes if present and self.about else 0

    @cached_property
    def used(self) -> float:
        """When a run last began to use it (s since 1970)."""
        about = self.path / "about.json"
        return (about if about.exists() else self.path).stat().st_mtime

    @cached_property
    def state(self) -> str:
        """complete, partial or, while a process reads or fills it, in use."""
        if self._busy():
            return "in use"
        if self.about is None:
            return "unknown"
        return "complete" if (self.path / "rows").exists() and self.done == self.about.count else "partial"

    def described(self) -> dict[str, Any]:
        """What the table shows, in bytes and seconds since 1970."""
        return {
            "name": self.path.name,
            "about": None if self.about is None else asdict(self.about),
            "rows": self.done,
            "bytes": self.size,
            "state": self.state,
            "used": self.used,
        }

    def remove(self) -> bool:
        """Remove it, unless a process uses it."""
        if self.path.is_file():
            self.path.unlink()
            return True
        lock = Lock(self.path / "lock")
        if not lock.alone():
            return False
        shutil.rmtree(self.path)
        lock.release()
        return True

    def _busy(self) -> bool:
        if not (self.path / "lock").exists():
            return False
        lock = Lock(self.path / "lock")
        try:
            return not lock.alone()
        finally:
            lock.release()


def frames_folder() -> Path:
    """Where caches of frames lie."""
    return cache_folder() / "frames"


def entries() -> Iterator[Entry]:
    """All that lies there, the last used first."""
    found = [Entry(path) for path in frames_folder().iterdir()] if frames_folder().is_dir() else []
    yield from sorted(found, key=lambda entry: -entry.used)


def cache(
    action: Literal["ls", "rm"], names: Sequence[str] = (), older_than: float | None = None, all: bool = False
) -> Result:
    """List what was computed once for the frames of datasets, or remove some of it.

    Args:
        action: ls lists caches, rm removes them; a cache that a running process uses is never removed.
        names: names of the caches to remove, as ls lists them.
        older_than: remove caches that were not used for so many days.
        all: remove all caches.

    Raises UserError if it is not said what to remove, or there is no such cache.
    """
    if action == "ls":
        found = list(entries())
        console.print(table(found))
        return Result([entry.described() for entry in found])
    if sum((bool(names), older_than is not None, all)) != 1:
        raise UserError(
            "expected what to remove, found none or more than one of names, --older-than and --all; fix: apprentice "
            "cache rm NAME, with a name that apprentice cache ls shows"
        )
    return _remove(_chosen(names, older_than))


def table(found: Sequence[Entry]) -> Table:
    """Caches for a reader, and how large they are together."""
    listing = Table(title=f"caches in {frames_folder()}", title_justify="left")
    for column in ("name", "what", "dataset", "model", "rows", "MB", "state", "last used"):
        listing.add_column(column, justify="right" if column in ("rows", "MB") else "left", overflow="fold")
    for entry in found:
        about = entry.about
        what, dataset, model, rows = "of an older version", "", "", ""
        if about is not None:
            what = f"{about.what}, {about.dtype}" + (f", view {about.view}" if about.view else "")
            dataset, model = about.dataset[-SHOWN:], about.model[-SHOWN:]
            rows = f"{entry.done:,}" + ("" if entry.done == about.count else f" of {about.count:,}")
        used = datetime.fromtimestamp(entry.used).isoformat(" ", "minutes")
        listing.add_row(entry.path.name, what, dataset, model, rows, _megabytes(entry.size), entry.state, used)
    listing.add_section()
    listing.add_row("total", *[""] * 4, _megabytes(sum(entry.size for entry in found)))
    return listing


def _chosen(names: Sequence[str], older_than: float | None) -> list[Entry]:
    found = {entry.path.name: entry for entry in entries()}
    if missing := [name for name in names if name not in found]:
        raise UserError(
            f"expected names of caches in {frames_folder()}, found {', '.join(missing)}; fix: apprentice cache ls "
            "shows the names"
        )
    if names:
        return [found[name] for name in names]
    latest = time.time() - (older_than or 0) * DAY
    return [entry for entry in found.values() if entry.used <= latest]


def _remove(chosen: Sequence[Entry]) -> Result:
    freed, kept = 0, 0
    for entry in chosen:
        size = entry.size
        if entry.remove():
            freed += size
        else:
            kept += 1
            console.print(f"{entry.path.name} is kept: a running process uses it")
    console.print(f"{len(chosen) - kept} removed, {_megabytes(freed)} MB freed")
    return Result({"removed": len(chosen) - kept, "in_use": kept, "bytes": freed}, good=not kept)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f}"
