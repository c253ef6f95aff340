"""Jobs spread over processes, of this machine or of a Ray cluster."""

import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from multiprocessing import TimeoutError, active_children, get_context
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from tempfile import TemporaryDirectory
from typing import Any

from rich.markup import escape

from apprentice.common.errors import UserError
from apprentice.common.garbage_collection import collect_rarely
from apprentice.common.process import end_with_parent, ordinary_priority
from apprentice.common.progress import console
from apprentice.common.watch import WorkerDied, busy, epitaph, keep_note

PATIENCE = 2.0  # s between checks of the workers' health
STILLBORN = 3  # times that workers may die one after the other before they have begun a job
RETRIES = 3  # machines or processes that may die under one and the same job
SLOW = ("torch", "lerobot.policies")  # libraries that take long to import, start no thread and touch no GPU
LIMITS = {"OMP_NUM_THREADS": "1", "LP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def spread[J, R](
    run: Callable[[J], R], jobs: Sequence[J], workers: int, renew: int | None = None, ray: str | None = None
) -> Iterator[R]:
    """Run jobs in fresh processes with one thread each (more only take cores from one another); yield what they return.

    A process is replaced after `renew` jobs. The processes belong to this machine, or to the Ray cluster at the
    address `ray`. A job whose process or machine dies is begun again, and what ran beside it on this machine, too: a
    renderer's heap may break once in thousands of episodes. Raises UserError if it dies again (on this machine with
    what killed it and where), if no process lives to begin a job, or there is no such cluster. Processes on this
    machine end with this one, however it ends.
    """
    workers = max(1, min(workers, len(jobs)))
    return _locally(run, jobs, workers, renew) if ray is None else _across(ray, run, jobs, workers, renew)


def _locally[J, R](run: Callable[[J], R], jobs: Sequence[J], workers: int, renew: int | None) -> Iterator[R]:
    left, died, stillborn = dict(enumerate(jobs)), set[str](), list[WorkerDied]()
    while left:
        try:
            for number, result in _pooled(run, list(left.items()), workers, renew):
                stillborn.clear()
                del left[number]
                yield result
        except WorkerDied as death:
            if death.job in died or (not death.job and len(stillborn) + 1 == STILLBORN):
                raise
            if death.job:
                died.add(death.job)
            else:
                stillborn.append(death)
            console.print(f"[yellow]warning:[/] {escape(death.what)}; it is tried once more")


def _pooled[J, R](
    run: Callable[[J], R], jobs: list[tuple[int, J]], workers: int, renew: int | None
) -> Iterator[tuple[int, R]]:
    """Jobs' numbers and what they return; raises WorkerDied when a process ends before its job."""
    sent = [(number, ForkingPickler.dumps((run, job)).tobytes()) for number, job in jobs]
    with (
        TemporaryDirectory() as notes,
        _limits(),
        server().Pool(workers, _prepare, (notes, dict(os.environ)), renew) as pool,
    ):
        seen: set[BaseProcess] = set(active_children())
        running = pool.imap_unordered(_numbered, sent, chunksize=1)
        while True:
            try:
                yield running.next(timeout=PATIENCE)
            except StopIteration:
                return
            except TimeoutError:
                seen |= set(active_children())
                if deaths := [death for p in seen if (death := epitaph(notes, p.pid, p.exitcode))]:
                    raise deaths[0] from None


def server() -> BaseContext:
    """How workers begin: on Linux as forks of a server that has imported the slow libraries that we have, so that not
    each of them takes 10 s for that. It begins once, so its environment may be old.
    """
    processes = get_context("forkserver" if sys.platform == "linux" else "spawn")
    processes.set_forkserver_preload([name for name in SLOW if name in sys.modules])
    return processes


def _numbered(sent: tuple[int, bytes]) -> tuple[int, Any]:
    """In a worker: do a job. It is unpickled here, so that a module that cannot be imported is the job's exception, and
    does not end the worker.
    """
    number, (run, job) = sent[0], ForkingPickler.loads(sent[1])
    return number, busy(run, job)


@contextmanager
def _limits() -> Iterator[None]:
    """Processes that begin meanwhile inherit the limits."""
    before = {key: os.environ.get(key) for key in LIMITS}
    os.environ.update(LIMITS)
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key)
            if value is not None:
                os.environ[key] = value


def _prepare(notes: str, environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    ordinary_priority()
    end_with_parent()
    collect_rarely()
    keep_note(notes)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means


def _across[J, R](
    address: str, run: Callable[[J], R], jobs: Sequence[J], workers: int, renew: int | None
) -> Iterator[R]:
    try:
        import ray
        from ray.exceptions import RayError, RayTaskError
    except ImportError:
        raise UserError(
            "expected the package ray for --ray, found none; fix: pip install 'lerobot_policy_apprentice[ray]', "
            "or leave --ray out"
        ) from None
    terminated = signal.getsignal(signal.SIGTERM)
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if host:  # Ray itself would try for minutes, without a word
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
        signal.signal(signal.SIGTERM, terminated)  # Ray puts one in its place that ends the process without a word
    except (OSError, ValueError) as error:
        raise UserError(
            f"expected a Ray cluster at {address}, found none ({error}); fix: ray start --head, then --ray auto there"
        ) from error

    # A cluster does not see our environment.
    @ray.remote(max_retries=RETRIES, max_calls=renew or 0, runtime_env={"env_vars": LIMITS})
    def perform(job: J) -> R:
        return run(job)

    waiting = iter(jobs)
    running = [perform.remote(job) for job in islice(waiting, workers)]
    try:
        while running:
            (done,), running = ray.wait(running)
            result = ray.get(done)
            running += [perform.remote(job) for job in islice(waiting, 1)]
            yield result
    except RayTaskError as error:
        raise error.cause from error
    except RayError as error:
        raise UserError(
            f"expected the cluster to finish every job, found one that failed {RETRIES + 1} times ({error}); "
            "nothing finished is lost; fix: see `ray status`, then run the same command again"
        ) from error
    finally:
        ray.shutdown()
