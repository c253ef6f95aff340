from collections.abc import Iterator

import pytest

from apprentice.libero.env import LiberoEnv


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
