from collections.abc import Iterator

import pytest

from apprentice.simulators.so101.simulator.env import TwinEnv


@pytest.fixture(scope="session")
def clean() -> Iterator[TwinEnv]:
    """The task of the blocks, without faults; tests reset it. Success of any task can be asked."""
    env = TwinEnv("so101_twin_clean", 2)
    yield env
    env.close()
