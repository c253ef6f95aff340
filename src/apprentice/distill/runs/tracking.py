"""What a run reports while it trains: its clock, its log, and curves in a browser.

The log is the truth. Trackers, trackio or Weights & Biases, get a copy of it and keep that on this machine; one that is
missing or breaks is never the end of a training.
"""

import contextlib
import importlib
import io
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict

from apprentice.common.errors import FileError
from apprentice.common.files import disk_full_at, fingerprint, read_lines, write_text
from apprentice.common.progress import show

PROJECT, LOG = "apprentice", "log.jsonl"
HELD_OUT = "validation_loss"
SAVE_SHARE = 0.05  # of the time, at most


class Clock:
    """The seconds that a run has trained, those of before it was killed included, and when to save."""

    def __init__(self, spent: float):
        self._start = time.monotonic() - spent
        self._saved, self._took = time.monotonic(), 0.0

    def seconds(self) -> float:
        return time.monotonic() - self._start

    def due(self, every: float) -> bool:
        """Whether a checkpoint is due: after `every` seconds, or later if saving takes long."""
        return time.monotonic() - self._saved > max(every, self._took / SAVE_SHARE)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Inside, the policy is validated: that is no part of what training costs."""
        start = time.monotonic()
        yield
        self._start += time.monotonic() - start

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Inside, a checkpoint is written."""
        start = time.monotonic()
        yield
        self._saved = time.monotonic()
        self._took = self._saved - start


class Cost(TypedDict):
    """What `run/cost.json` tells of a finished run."""

    stage: str
    seconds: float
    samples: int
    trainable_parameters: int
    total_parameters: int


def read_log(run: Path) -> list[dict[str, float]]:
    """The lines of `run/log.jsonl`, without one that a kill cut off. Raises FileNotFoundError and FileError."""
    lines: list[dict[str, float]] = read_lines(
        run / LOG, dict[str, int | float], "a line of a training's log", whole=True
    )
    for number, line in enumerate(lines, 1):
        if lacking := [key for key in ("step", "samples", "loss") if key not in line]:
            raise FileError(
                f"expected {', '.join(lacking)} on line {number} of {run / LOG}, found {', '.join(line) or 'nothing'}; "
                "fix: put back what was written there, or train again"
            )
    return lines


class Log:
    """The lines of `run/log.jsonl`, cut off where the checkpoint after `done` steps was written; use it in a `with`.

    Attributes:
        last: the newest line.
        best: the line with the least held-out loss; empty without one.
        note: the losses, for a person.
    """

    def __init__(self, run: Path, done: int, tell: Callable[[dict[str, float]], None], main: bool):
        self._path, self._tell, self._main = run / LOG, tell, main
        self.last: dict[str, float] = {}
        self.best: dict[str, float] = {}
        self.note = ""
        if main:
            found = read_log(run) if done and self._path.exists() else []
            kept = [line for line in found if line["step"] < done]
            write_text(self._path, "".join(json.dumps(line) + "\n" for line in kept))
            for line in kept:
                self._compare(line)

    def __enter__(self) -> "Log":
        self._stream = self._path.open("a") if self._main else None
        return self

    def __exit__(self, *exception: object) -> None:
        if self._stream:
            self._stream.close()

    def write(self, entry: dict[str, float]) -> None:
        """Add a line; one with a held-out loss also tells the least so far, and after which step it was."""
        self._compare(entry)
        if HELD_OUT in entry:
            entry |= {"best_validation_loss": self.best[HELD_OUT], "best_step": self.best["step"]}
        self.note = f"loss {entry['loss']:.4f}"
        if self.best:
            self.note += f", best held-out {self.best[HELD_OUT]:.4f} after step {self.best['step']}"
        if self._stream:
            with disk_full_at(self._path):
                self._stream.write(json.dumps(entry) + "\n")
                self._stream.flush()
            self._tell(entry)

    def _compare(self, entry: dict[str, float]) -> None:
        self.last = entry
        if HELD_OUT in entry and entry[HELD_OUT] < self.best.get(HELD_OUT, math.inf):
            self.best = entry


@contextmanager
def tracked(kind: str, run: Path, settings: dict[str, Any]) -> Iterator[Callable[[dict[str, float]], None]]:
    """Yield what tells a tracker of a line of `run`'s log: of "trackio", if it is installed, of "wandb", or of "none".

    A run that goes on after it was killed goes on in the tracker too.
    """
    session = _begun(kind, run, settings)

    def tell(entry: dict[str, float]) -> None:
        nonlocal session
        if session is not None:
            try:
                session.log({key: value for key, value in entry.items() if key != "step"}, step=int(entry["step"]))
            except Exception as error:
                _give_up(kind, error)
                session = None

    try:
        yield tell
    finally:
        if session is not None:
            with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()):
                session.finish()


def _begun(kind: str, run: Path, settings: dict[str, Any]) -> Any:
    if kind == "none":
        return None
    name = "-".join(run.resolve().parts[-2:])
    own: dict[str, Any] = {"embed": False}
    if kind == "wandb":
        mode = os.environ.get("WANDB_MODE", "offline")
        own = {"id": fingerprint(str(run.resolve())), "mode": mode, "dir": str(run)}
    try:
        library = importlib.import_module(kind)
        with contextlib.redirect_stdout(io.StringIO()):  # trackio greets
            return library.init(project=PROJECT, name=name, config=settings, resume="allow", **own)
    except Exception as error:  # whatever it is, training does without
        if kind != "trackio" or not isinstance(error, ImportError):
            _give_up(kind, error)
        return None


def _give_up(kind: str, error: Exception) -> None:
    show(f"continuing without {kind}: {error}")
