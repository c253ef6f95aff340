"""The command `apprentice`: read and check its flags, call the room that does the work, and turn every failure into
one clear line.
"""

import errno
import importlib
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import is_dataclass
from typing import Any

from apprentice.commands import COMMANDS, called, parse
from apprentice.common.errors import UserError
from apprentice.common.files import is_disk_full
from apprentice.common.garbage_collection import collect_rarely
from apprentice.common.progress import console
from apprentice.common.result import Result, as_json

MENDED, UNFORESEEN, STOPPED = 2, 70, 130  # exit codes; 70 is EX_SOFTWARE in BSD's sysexits


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0, 1 if it found something wrong (it returned False), 2 after a mistake that the user
    can mend, 70 after a failure that was not foreseen, 130 after an interruption.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, _interrupt)
    collect_rarely()
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    try:
        command, keywords = parse(words)
        debug, as_data = keywords.pop("debug"), keywords.pop("json", False)
        console.stderr = as_data
        found = _call(command, keywords)
        if as_data:
            print(as_json(found.content))
        return int(found is False or (isinstance(found, Result) and not found.good))
    except KeyboardInterrupt as interruption:
        return _complain(str(interruption) or "interrupted; run the same command again to resume", STOPPED)
    except Exception as error:
        if debug:
            traceback.print_exc()
        return _complain(*explained(error))
    finally:
        console.stderr = False


def explained(error: Exception) -> tuple[str, int]:
    """What to tell of a failure, and the exit code. The traceback of one that was not foreseen is kept in a file."""
    if isinstance(error, UserError):
        return str(error), MENDED
    if is_disk_full(error):
        return (
            f"expected room on the disk, found none left while writing {_file(error) or 'a file'}; what was finished "
            "before is kept; fix: free some space and run the same command again"
        ), MENDED
    if isinstance(error, OSError) and error.errno is not None and _file(error):
        how = os.strerror(error.errno)
        return f"expected to read or write {_file(error)}, found: {how}; fix: {_remedy(error)}", MENDED
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return (
            f"expected enough memory, found too little ({_first_line(error)}); fix: a smaller batch or image, fewer "
            "--workers, or for training a larger --accumulate"
        ), MENDED
    with tempfile.NamedTemporaryFile("w", prefix="apprentice-", suffix=".txt", delete=False) as kept:
        kept.writelines(traceback.format_exception(error))
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f"{os.sep}apprentice{os.sep}" in f.filename]
    place = f" at {os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""
    return (
        f"expected to finish, found {type(error).__name__}{place}: {_first_line(error)}; fix: if it names a file of "
        f"yours, mend that; if not, it is a fault of ours: report it with its traceback, which is in {kept.name} "
        "(--debug prints it)"
    ), UNFORESEEN


def _call(command: str, keywords: dict[str, Any]) -> Any:
    declared, function = _load(COMMANDS[command].flags), called(command, keywords)
    if is_dataclass(declared):
        return _load(function)(declared(**keywords))  # type: ignore[operator]
    return _load(function)(**keywords)


def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def _file(error: Exception) -> str:
    return str(getattr(error, "filename", None) or "")


def _remedy(error: OSError) -> str:
    if error.errno == errno.EMFILE:
        return "allow more open files (ulimit -n), and run the same command again"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "give yourself the right to it, or name another place"
    return "name a file or folder that is there, or put it there"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or "no words").splitlines()[0][:300]


def _complain(text: str, code: int) -> int:
    print(f"apprentice: {text}", file=sys.stderr)
    return code


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
