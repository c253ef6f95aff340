"""Jobs spread over processes."""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import TimeoutError, active_children, get_context
from multiprocessing.process import BaseProcess

from apprentice.errors import UserError

PATIENCE = 2.0  # s between looks at the workers' health


def spread[J, R](run: Callable[[J], R], jobs: Sequence[J], workers: int, renew: int | None = None) -> Iterator[R]:
    """Run jobs in fresh processes with one thread each (more only take cores from one another); yield what they return.

    A process is replaced after `renew` jobs. Raises UserError if one is killed: the pool would wait for ever.
    """
    limits = {"OMP_NUM_THREADS": "1", "LP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    before = {key: os.environ.get(key) for key in limits}
    os.environ.update(limits)
    try:
        with get_context("spawn").Pool(max(1, min(workers, len(jobs))), _prepare, maxtasksperchild=renew) as pool:
            seen: set[BaseProcess] = set(active_children())
            running = pool.imap_unordered(run, jobs)
            while True:
                try:
                    yield running.next(timeout=PATIENCE)
                except StopIteration:
                    return
                except TimeoutError:
                    seen |= set(active_children())
                    if any(process.exitcode for process in seen):
                        raise UserError(
                            "expected every worker to finish its jobs, found one that was killed (out of memory?); "
                            "nothing finished is lost; fix: run the same command again, with fewer workers"
                        ) from None
    finally:
        for key, value in before.items():
            os.environ.pop(key)
            if value is not None:
                os.environ[key] = value


def _prepare() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
