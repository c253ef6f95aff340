"""Jobs in processes: what comes back, with how many threads, and what happens when a process or a machine is killed."""

import importlib
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from apprentice.common.errors import UserError
from apprentice.common.pool import _prepare, spread
from apprentice.common.process import ordinary_priority
from apprentice.common.watch import time_limit

NO_RAY = "no Ray here: pip install 'lerobot_policy_apprentice[ray]'"


def test_every_job_is_done_once_though_workers_are_renewed() -> None:
    assert sorted(spread(abs, [-3, -2, -1, 4, 5], 2, renew=1)) == [1, 2, 3, 4, 5]
    assert list(spread(abs, [], 2)) == []


def test_workers_have_one_thread_each_and_we_keep_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("LP_NUM_THREADS", raising=False)
    assert list(spread(os.getenv, ["OMP_NUM_THREADS"], 1)) == ["1"]
    assert os.environ["OMP_NUM_THREADS"] == "7" and "LP_NUM_THREADS" not in os.environ


def test_workers_have_our_environment_of_now(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("before", "after"):
        monkeypatch.setenv("APPRENTICE_ENVIRONMENT", value)
        assert list(spread(os.getenv, ["APPRENTICE_ENVIRONMENT"], 1)) == [value]
    monkeypatch.delenv("APPRENTICE_ENVIRONMENT")
    assert list(spread(os.getenv, ["APPRENTICE_ENVIRONMENT"], 1)) == [None]


def tried(job: str) -> str:
    """What a job may do to its worker."""
    if job == "hang":
        with time_limit(0.2):
            time.sleep(60)
    elif job == "leave":
        sys.exit(0)
    elif job != "well":
        os.kill(os.getpid(), {"crash": signal.SIGSEGV, "grow": signal.SIGKILL}[job])
    return job


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ("hang", r"hung \(limit 0:00:00.2.*\) at .*test_pool.py:\d+ in tried while it did hang; .*leave it out"),
        ("leave", "ended itself with code 0 while it did leave;"),
        ("crash", r"crashed \(SIGSEGV\) at .*test_pool.py:\d+ in tried while it did crash;"),
        ("grow", r"killed \(out of memory\?\) while it did grow; .*fewer workers"),
    ],
    ids=lambda text: text.split()[0],
)
def test_a_dead_worker_is_named_with_its_job_instead_of_a_wait_for_ever(job: str, message: str) -> None:
    results = spread(tried, ["well", job], 1)
    assert next(results) == "well"
    with pytest.raises(UserError, match=message):
        list(results)


@dataclass(frozen=True)
class Weak:
    number: int
    marks: Path


def weak(job: Weak) -> int:
    """Number 2 kills its process, the first time."""
    with (job.marks / str(job.number)).open("a") as file:
        file.write("tried\n")
    if job.number == 2 and (job.marks / "2").read_text() == "tried\n":
        os.kill(os.getpid(), signal.SIGABRT)
    return job.number


def test_a_worker_that_dies_once_is_named_and_costs_no_result(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert sorted(spread(weak, [Weak(number, tmp_path) for number in range(5)], 2)) == [0, 1, 2, 3, 4]
    assert (tmp_path / "2").read_text() == "tried\ntried\n"
    message = " ".join("".join(capfd.readouterr()).split())  # the terminal's width breaks lines
    assert re.search(r"warning: .*crashed \(SIGABRT\).* while it did .*number=2.*; it is tried once more", message)


GROWING = """
import os, sys, time
from apprentice.common.pool import _prepare, spread

def work(job):
    print(os.getpid(), flush=True)
    while True:  # busy, and deaf to its queue
        pass

if __name__ == "__main__":
    list(spread(work, [1, 2], 2))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_their_parent_at_once(tmp_path: Path, number: signal.Signals) -> None:
    program = tmp_path / "busy.py"
    program.write_text(GROWING)
    with subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        workers = [int(parent.stdout.readline()) for _ in range(2)]
        start = time.monotonic()
        parent.send_signal(number)
        parent.wait()
        while any(map(is_running, workers)):
            time.sleep(0.01)
            assert time.monotonic() - start < 5  # s; about 0.1


def scheduler(job: int) -> int:
    return os.sched_getscheduler(0)


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs Linux, and root")
def test_workers_share_the_cores_though_their_parent_does_not() -> None:
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    try:
        assert list(spread(scheduler, [1], 1)) == [os.SCHED_OTHER]
    finally:
        ordinary_priority()


def is_running(process: int) -> bool:
    """Not even as what its parent has not asked after yet."""
    try:
        os.kill(process, 0)
        return Path(f"/proc/{process}/stat").read_text().split(")")[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def broken_start(notes: str, environment: dict[str, str]) -> None:
    """In place of `_prepare`: some workers die before they have begun anything."""
    marks = Path(environment["STILLBORN"])
    count = len(list(marks.iterdir()))
    if count < int(environment["DEATHS"]):
        (marks / str(os.getpid())).touch()
        os._exit(3)
    _prepare(notes, environment)


@pytest.mark.parametrize("deaths", [1, 100])
def test_a_worker_that_dies_before_its_first_job_is_replaced_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deaths: int
) -> None:
    monkeypatch.setattr("apprentice.common.pool._prepare", broken_start)
    monkeypatch.setattr("apprentice.common.pool.PATIENCE", 0.1)
    monkeypatch.setenv("STILLBORN", str(tmp_path))
    monkeypatch.setenv("DEATHS", str(deaths))
    if deaths == 1:
        assert sorted(spread(abs, [-1, 2], 1)) == [1, 2]
    else:
        with pytest.raises(UserError, match="ended itself with code 3 before it began"):
            list(spread(abs, [-1, 2], 1))


class Unreadable:
    """A job whose module is not there in the worker."""

    def __reduce__(self) -> tuple[Any, ...]:
        return importlib.import_module, ("no_such_module",)


def test_a_worker_that_cannot_import_its_job_ends_the_run_with_the_reason() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        list(spread(abs, [Unreadable()], 1))


def test_the_absence_of_ray_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'lerobot_policy_apprentice\[ray\]'"):
        list(spread(abs, [1], 1, ray="auto"))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:port"])
def test_the_absence_of_a_cluster_is_said(address: str) -> None:
    pytest.importorskip("ray", reason=NO_RAY)
    with pytest.raises(UserError, match=f"expected a Ray cluster at {address}, found none"):
        list(spread(abs, [1], 1, ray=address))


@dataclass(frozen=True)
class Job:
    number: int
    folder: Path
    doomed: str  # the node that will die


_done: list[int] = []  # of this process; with one CPU a node has one


def work(job: Job) -> tuple[int, str]:
    """The doomed node is killed in its third job; the other waits for that in its first."""
    import ray

    with (job.folder / "begun").open("a") as file:
        file.write(f"{job.number}\n")
    dying = job.folder / "dying"
    if ray.get_runtime_context().get_node_id() != job.doomed:
        while not dying.exists():
            time.sleep(0.05)
    elif len(_done) == 2:
        dying.touch()
        os.kill(os.getppid(), signal.SIGKILL)  # the raylet: its machine, as the cluster sees it
        os.kill(os.getpid(), signal.SIGKILL)
    _done.append(job.number)
    return job.number, os.environ["OMP_NUM_THREADS"]


def refuse(job: int) -> None:
    raise UserError(f"expected no {job}")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A Ray cluster of two nodes with one core each, the second to be killed."""
    pytest.importorskip("ray", reason=NO_RAY)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # else 15: on a busy machine tests would wait long
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "0")  # it kills what runs here for what runs beside it
    monkeypatch.setenv("RAY_health_check_period_ms", "500")  # a dead node is known as such sooner
    monkeypatch.setenv("RAY_health_check_initial_delay_ms", "500")
    from ray.cluster_utils import Cluster

    terminated = signal.getsignal(signal.SIGTERM)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        yield cluster
    finally:
        cluster.shutdown()
        signal.signal(signal.SIGTERM, terminated)


def test_a_cluster_does_every_job_once_though_a_node_dies(cluster: Any, tmp_path: Path) -> None:
    terminated = signal.getsignal(signal.SIGTERM)
    with pytest.raises(UserError, match=r"^expected no 7$"):
        list(spread(refuse, [7], 1, ray=cluster.address))
    (doomed,) = cluster.worker_nodes
    jobs = [Job(number, tmp_path, doomed.node_id) for number in range(8)]
    assert sorted(spread(work, jobs, 2, ray=cluster.address)) == [(number, "1") for number in range(8)]
    begun = Counter((tmp_path / "begun").read_text().split())
    assert sorted(begun.values()) == [1] * 7 + [2]
    assert signal.getsignal(signal.SIGTERM) is terminated
