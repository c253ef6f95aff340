"""Jobs in processes: what comes back, with how many threads, and what happens when a process is killed."""

import os

import pytest

from apprentice.errors import UserError
from apprentice.pool import spread


def test_every_job_is_done_once_though_workers_are_renewed() -> None:
    assert sorted(spread(abs, [-3, -2, -1, 4, 5], 2, renew=1)) == [1, 2, 3, 4, 5]
    assert list(spread(abs, [], 2)) == []


def test_workers_have_one_thread_each_and_we_keep_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("LP_NUM_THREADS", raising=False)
    assert list(spread(os.getenv, ["OMP_NUM_THREADS"], 1)) == ["1"]
    assert os.environ["OMP_NUM_THREADS"] == "7" and "LP_NUM_THREADS" not in os.environ


def test_a_dead_worker_is_an_error_instead_of_a_wait_for_ever() -> None:
    with pytest.raises(UserError, match="found one that was killed"):
        list(spread(os._exit, [1], 1))
