from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import support

from apprentice.simulators.collection import episode_jobs
from apprentice.simulators.collection.collect import collect as collect_demonstrations
from apprentice.simulators.collection.config import CollectConfig
from apprentice.simulators.libero.dataset import doctor as doctors
from apprentice.simulators.libero.simulator.env import LiberoEnv


@pytest.fixture(scope="session")
def fast() -> Iterator[LiberoEnv]:
    env = LiberoEnv("libero_goal", 1)
    yield env
    env.close()


@pytest.fixture(scope="session")
def exact() -> Iterator[LiberoEnv]:
    env = LiberoEnv("libero_goal", 1, render="exact")
    yield env
    env.close()


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on, what workers would do is done here."""

    def begin() -> None:
        for module in (episode_jobs, doctors):
            monkeypatch.setattr(module, "spread", support.spread_here)

    return begin


@pytest.fixture
def interrupted(
    monkeypatch: pytest.MonkeyPatch, in_this_process: Callable[[], None]
) -> Callable[..., tuple[Path, dict[str, np.ndarray]]]:
    """Collects two episodes of a task in workers, is stopped before it writes them, and loses the second.

    What it returns: the folder where the first one waits, and what the second one held. From then on no worker is used.
    """

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    def collect(suite: str, task: int, out: Path, workers: int, **settings: Any) -> tuple[Path, dict[str, np.ndarray]]:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(episode_jobs, "assemble", stop)
            collect_demonstrations(
                CollectConfig(suite=suite, episodes=2, out=out, tasks=[task], workers=workers, **settings)
            )
        in_this_process()
        assert not out.exists()
        scratch = out.with_name(f".{out.name}.episodes")
        second = scratch / f"{task:02}_0001.npz"
        lost = dict(np.load(second))
        second.unlink()
        return scratch, lost

    return collect
