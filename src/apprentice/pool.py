"""Jobs spread over processes."""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing import TimeoutError, active_children, get_context
from multiprocessing.process import BaseProcess
from tempfile import TemporaryDirectory
from typing import Any

from apprentice.errors import UserError
from apprentice.watch import busy, epitaph, keep_note

PATIENCE = 2.0  # s between looks at the workers' health


LIMITS = {"OMP_NUM_THREADS": "1", "LP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def spread[J, R](
    run: Callable[[J], R], jobs: Sequence[J], workers: int, renew: int | None = None, ray: str | None = None
) -> Iterator[R]:
    """Run jobs in fresh processes with one thread each (more only take cores from one another); yield what they return.

    A process is replaced after `renew` jobs. The processes belong to this machine, or to the Ray cluster at the
    address `ray`. Raises UserError if a process dies (the pool would wait for ever), with the job that it was at, or
    if there is no Ray.
    """
    before = {key: os.environ.get(key) for key in LIMITS}
    os.environ.update(LIMITS)
    try:
        with TemporaryDirectory() as notes, _pool(max(1, min(workers, len(jobs))), renew, ray, notes) as pool:
            seen: set[BaseProcess] = set(active_children())
            running = pool.imap_unordered(partial(busy, run), jobs, chunksize=1)
            while True:
                try:
                    yield running.next(timeout=PATIENCE)
                except StopIteration:
                    return
                except TimeoutError:
                    seen |= set(active_children())
                    if fates := [fate for p in seen if (fate := epitaph(notes, p.pid, p.exitcode))]:
                        raise UserError(fates[0]) from None
    finally:
        for key, value in before.items():
            os.environ.pop(key)
            if value is not None:
                os.environ[key] = value


def _pool(processes: int, renew: int | None, ray: str | None, notes: str) -> Any:
    if ray is None:
        return get_context("spawn").Pool(processes, _prepare, (notes,), maxtasksperchild=renew)
    try:
        from ray.util.multiprocessing import Pool
    except ImportError:
        raise UserError(
            "expected the package ray for --ray, found none; fix: pip install 'lerobot_policy_apprentice[ray]', "
            "or leave --ray out"
        ) from None
    arguments = {"runtime_env": {"env_vars": LIMITS}}  # a cluster does not see our environment
    return Pool(processes, maxtasksperchild=renew, ray_address=ray, ray_remote_args=arguments)


def _prepare(notes: str) -> None:
    keep_note(notes)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
