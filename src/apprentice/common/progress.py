"""Progress with an ETA: a bar on a terminal, a line every half minute elsewhere."""

import time
from collections.abc import Iterable, Iterator, Sized

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console()
LINE_EVERY = 30.0  # s


def show(text: str) -> None:
    """Print a text as it is; to stderr while a command prints its result as JSON."""
    console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)


class Meter:
    """Counts work done and shows it with an ETA. Use as a context manager and call `advance`."""

    def __init__(self, description: str, total: int, done: int = 0):
        self.description, self.total, self.done, self._first = description, total, done, done
        self.note = ""
        self._start = self._last = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(description, total=total, completed=done, note="")

    def __enter__(self) -> "Meter":
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()
        if not console.is_terminal:
            self._print()

    def advance(self, amount: int = 1, note: str | None = None) -> None:
        """Add `amount` to what is done; `note` (a loss, a success rate) stands beside the bar."""
        self.done += amount
        self.note = self.note if note is None else note
        self._bar.update(self._task, completed=self.done, note=self.note)
        if not console.is_terminal and time.monotonic() - self._last > LINE_EVERY:
            self._print()

    def _print(self) -> None:
        self._last = time.monotonic()
        seconds, worked = self._last - self._start, self.done - self._first
        eta = f"ETA {seconds / worked * (self.total - self.done):.0f} s" if worked else "ETA unknown"
        line = f"{self.description}: {self.done}/{self.total}, {seconds:.0f} s, {eta} {self.note}"
        show(line.rstrip())


def track[T](items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Iterate over `items` behind a `Meter`."""
    if total is None:
        if not isinstance(items, Sized):
            raise TypeError("track needs total= for an iterable without a length")
        total = len(items)
    with Meter(description, total) as meter:
        for item in items:
            yield item
            meter.advance()
