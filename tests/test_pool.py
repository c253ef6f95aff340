"""Jobs in processes: what comes back, with how many threads, and what happens when a process is killed."""

import multiprocessing.pool
import os
import signal
import sys
import time
from types import ModuleType

import pytest

from apprentice.errors import UserError
from apprentice.pool import spread
from apprentice.watch import time_limit


def test_every_job_is_done_once_though_workers_are_renewed() -> None:
    assert sorted(spread(abs, [-3, -2, -1, 4, 5], 2, renew=1)) == [1, 2, 3, 4, 5]
    assert list(spread(abs, [], 2)) == []


def test_workers_have_one_thread_each_and_we_keep_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("LP_NUM_THREADS", raising=False)
    assert list(spread(os.getenv, ["OMP_NUM_THREADS"], 1)) == ["1"]
    assert os.environ["OMP_NUM_THREADS"] == "7" and "LP_NUM_THREADS" not in os.environ


def end(how: str) -> None:
    """What a job may do to its worker."""
    if how == "hang":
        with time_limit(0.2):
            time.sleep(60)
    elif how == "leave":
        sys.exit(0)
    os.kill(os.getpid(), {"crash": signal.SIGSEGV, "too large": signal.SIGKILL}[how])


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("hang", r"hung \(limit 0:00:00.2.*\) at .*test_pool.py:\d+ in end while it did hang; .*leave it out"),
        ("leave", "ended itself with code 0 while it did leave;"),
        ("crash", r"crashed \(SIGSEGV\) at .*test_pool.py:\d+ in end while it did crash;"),
        ("too large", r"killed \(out of memory\?\) while it did too large; .*fewer workers"),
    ],
)
def test_a_dead_worker_is_named_with_its_job_and_what_was_finished_is_kept(how: str, told: str) -> None:
    results = spread(tried, ["well", how], 1)
    assert next(results) == "well"
    with pytest.raises(UserError, match=told):
        list(results)


def tried(job: str) -> str:
    return job if job == "well" else str(end(job))


def test_a_ray_cluster_does_the_jobs_or_its_absence_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "ray", None)
        with pytest.raises(UserError, match=r"pip install 'lerobot_policy_apprentice\[ray\]'"):
            list(spread(abs, [1], 1, ray="auto"))
    asked = []

    def pool(processes: int, **arguments: object) -> multiprocessing.pool.Pool:
        """Threads in place of a cluster, behind the same interface."""
        asked.append((processes, arguments))
        return multiprocessing.pool.ThreadPool(processes)

    packages = {name: ModuleType(name) for name in ("ray", "ray.util", "ray.util.multiprocessing")}
    packages["ray.util.multiprocessing"].Pool = pool  # type: ignore[attr-defined]
    for name, module in packages.items():
        monkeypatch.setitem(sys.modules, name, module)
    assert sorted(spread(abs, [-3, 2, 1], 2, ray="here:1")) == [1, 2, 3]
    ((processes, arguments),) = asked
    assert processes == 2 and arguments["ray_address"] == "here:1"
    assert arguments["ray_remote_args"]["runtime_env"]["env_vars"]["OMP_NUM_THREADS"] == "1"  # type: ignore[index]
