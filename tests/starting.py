"""A process that a test will kill, without the 10 s that Python takes to import everything once more."""

import os
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

from apprentice.common.pool import server


def start(run: Callable[..., Any], *arguments: Any, **keywords: Any) -> BaseProcess:
    """Let a process run it, whose id is that of a group with all that it starts."""
    process = server().Process(target=_alone, args=(run, arguments, keywords))
    process.start()
    return process


def _alone(run: Callable[..., Any], arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    os.setsid()
    run(*arguments, **keywords)
