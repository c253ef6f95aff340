"""Run a command so that its output is both seen and kept, and so that it never outlives us."""

import ctypes
import multiprocessing
import multiprocessing.connection
import os
import re
import signal
import subprocess
import sys
import termios
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

ESCAPES = re.compile(rb"\x1b(\[[0-9;?]*[A-Za-z]|[()][A-Z0-9]|[=>78])")
GRACE = 30.0  # s to end after an interruption
LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def ordinary_priority() -> None:
    """Let this thread share the cores again.

    SVT-AV1, with which LeRobot encodes videos, makes the thread that opens it a real-time one of the highest priority
    if it runs as root. Threads and processes that begin there inherit that, and then nothing else gets a core.
    """
    if hasattr(os, "sched_getscheduler") and os.sched_getscheduler(0) != os.SCHED_OTHER:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def end_with_parent() -> None:
    """In a process that `multiprocessing` has started: end when the parent ends, at once and however that was.

    A thread waits for it. PR_SET_PDEATHSIG is not for this: it tells of the end of the thread that started a process,
    and a pool's replaced workers are started by one that ends before them. Killed while they wait for a job, they leave
    the queue locked, and the pool never ends.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def run_logged(command: list[str], log: Path, environment: dict[str, str], keep: int) -> int:
    """Run `command`, show what it prints, append it to `log`, and return its exit code (minus the signal's
    number).

    On a terminal the command sees a terminal too, so its progress bars live; the log then holds their last
    state only. `keep` is a file descriptor that the command inherits. On KeyboardInterrupt, and if this
    process is killed, the command gets a signal to end as well. Raises FileNotFoundError if there is no such
    command.
    """
    if sys.stdout.isatty():
        ours, theirs = os.openpty()
        termios.tcsetwinsize(theirs, termios.tcgetwinsize(sys.stdout.fileno()))
    else:
        ours, theirs = os.pipe()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab", buffering=0) as stream, os.fdopen(ours, "rb", buffering=0) as source:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=theirs,
                stderr=theirs,
                env=environment,
                pass_fds=[keep],
                start_new_session=True,
                preexec_fn=partial(_end_with_parent, os.getpid()),
            )
        finally:
            os.close(theirs)
        copier = threading.Thread(target=_copy, args=(source, stream), daemon=True)  # not to outlive an interrupt here
        try:
            copier.start()
            return process.wait()
        except BaseException:
            _stop(process)
            raise
        finally:
            _signal(process, signal.SIGKILL)  # workers that its death left behind
            if copier.ident:
                copier.join()


def _copy(source: BinaryIO, log: BinaryIO) -> None:
    """Copy until the other end closes; the log gets whole lines, as they stood when they were finished."""
    line = b""
    while chunk := _read(source):
        with suppress(OSError):  # a full disk or a closed terminal must not block the command
            os.write(sys.stdout.fileno(), chunk)
        *lines, line = (line + chunk).replace(b"\r\n", b"\n").split(b"\n")
        with suppress(OSError):
            log.write(b"".join(_final(finished) + b"\n" for finished in lines))
        line = line[line.rfind(b"\r", 0, -1) + 1 :]  # a progress bar may be redrawn for hours before its line ends
    with suppress(OSError):
        log.write(_final(line) + b"\n" if line else b"")


def _read(source: BinaryIO) -> bytes:
    try:
        return source.read(65536)
    except OSError:  # how Linux reports the end of a pseudo-terminal
        return b""


def _final(line: bytes) -> bytes:
    """What a line shows in the end: without colours, and without what was drawn over."""
    return ESCAPES.sub(b"", line).rstrip(b"\r").rpartition(b"\r")[2]


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Interrupt the command and its children as Ctrl-C would; kill what does not end. A second Ctrl-C kills
    at once.
    """
    _signal(process, signal.SIGINT)
    try:
        process.wait(GRACE)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        _signal(process, signal.SIGKILL)
        process.wait()


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _end_with_parent(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell has what it starts in the background ignore it
    if sys.platform == "linux":
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it ended before that
            os._exit(1)
