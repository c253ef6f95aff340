"""What a worker is busy with, left where its parent finds it when the worker is gone; and a limit on its time."""

import faulthandler
import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from apprentice.common.errors import UserError

LONGEST = 300  # characters of a job's name
_note: IO[str] | None = None  # of this worker process


def keep_note(folder: str) -> None:
    """At a worker's start: from now on a crash, too, leaves its trace in this worker's file in `folder`."""
    global _note
    _note = (Path(folder) / str(os.getpid())).open("w")
    faulthandler.enable(_note)


def busy[J, R](run: Callable[[J], R], job: J) -> R:
    """Run a job; its name stands in the note until it returns or raises an exception."""
    _write(" ".join(str(job).split())[:LONGEST])
    try:
        result = run(job)
    except Exception:  # but not SystemExit, which ends the worker
        _write("")
        raise
    _write("")
    return result


def _write(text: str) -> None:
    if _note is not None:
        _note.seek(0)
        _note.truncate()
        _note.write(text + "\n")
        _note.flush()


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """In a worker: end the process, its trace in the note, if this takes longer, even in C. Elsewhere: no limit."""
    if _note is not None:
        faulthandler.dump_traceback_later(seconds, exit=True, file=_note)
    try:
        yield
    finally:
        if _note is not None:
            faulthandler.cancel_dump_traceback_later()


class WorkerDied(UserError):
    """A worker process ended before its job did.

    Attributes:
        job: what it was at; empty if it had not begun.
        what: how it ended.
    """

    def __init__(self, job: str, what: str, fix: str) -> None:
        super().__init__(f"{what}; nothing finished is lost; fix: {fix}run the same command again")
        self.job, self.what = job, what


def epitaph(folder: str, worker: int | None, code: int | None) -> WorkerDied | None:
    """How a worker with this process id and exit code ended, and at which job; None if nothing went wrong."""
    note = Path(folder) / str(worker)
    job, _, trace = note.read_text().partition("\n") if note.exists() else ("", "", "")
    if code is None or not (job or code):
        return None
    if limit := re.search(r"^Timeout \((.*)\)!", trace, re.MULTILINE):
        how, fix = f"that hung (limit {limit[1]})", "mend what it hangs in or leave it out, then "
    elif code == -signal.SIGKILL:
        how, fix = "that was killed (out of memory?)", "with fewer workers "
    elif code < 0:
        how, fix = f"that crashed ({signal.Signals(-code).name})", "mend what crashed or leave it out, then "
    else:
        how, fix = f"that ended itself with code {code}", "mend what ends it or leave it out, then "
    at = f" while it did {job}" if job else " before it began" if note.exists() else " before it began (see above why)"
    return WorkerDied(job, f"expected every worker to finish its jobs, found one {how}{_place(trace)}{at}", fix)


def _place(trace: str) -> str:
    """The innermost line of Python: of the thread that crashed, or of the oldest, which does the jobs."""
    frame = r'hread .*\n  File "(.*)", line (\d+) in (\S+)'
    found = re.findall(f"Current t{frame}", trace) or re.findall(f"T{frame}", trace)
    return " at {}:{} in {}".format(*found[-1]) if found else ""
