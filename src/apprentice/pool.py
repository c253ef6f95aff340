"""Jobs spread over processes."""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import TimeoutError, active_children, get_context
from multiprocessing.process import BaseProcess
from typing import Any

from apprentice.errors import UserError

PATIENCE = 2.0  # s between looks at the workers' health


LIMITS = {"OMP_NUM_THREADS": "1", "LP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def spread[J, R](
    run: Callable[[J], R], jobs: Sequence[J], workers: int, renew: int | None = None, ray: str | None = None
) -> Iterator[R]:
    """Run jobs in fresh processes with one thread each (more only take cores from one another); yield what they return.

    A process is replaced after `renew` jobs. The processes belong to this machine, or to the Ray cluster at the
    address `ray`. Raises UserError if a process is killed (the pool would wait for ever), or if there is no Ray.
    """
    before = {key: os.environ.get(key) for key in LIMITS}
    os.environ.update(LIMITS)
    try:
        with _pool(max(1, min(workers, len(jobs))), renew, ray) as pool:
            seen: set[BaseProcess] = set(active_children())
            running = pool.imap_unordered(run, jobs, chunksize=1)
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


def _pool(processes: int, renew: int | None, ray: str | None) -> Any:
    if ray is None:
        return get_context("spawn").Pool(processes, _prepare, maxtasksperchild=renew)
    try:
        from ray.util.multiprocessing import Pool
    except ImportError:
        raise UserError(
            "expected the package ray for --ray, found none; fix: pip install 'lerobot_policy_apprentice[ray]', "
            "or leave --ray out"
        ) from None
    arguments = {"runtime_env": {"env_vars": LIMITS}}  # a cluster does not see our environment
    return Pool(processes, maxtasksperchild=renew, ray_address=ray, ray_remote_args=arguments)


def _prepare() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
