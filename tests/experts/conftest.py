"""A short real `lerobot-train` run, shared by the tests of the experts."""

from pathlib import Path

import pytest
from tests import support


@pytest.fixture(scope="session")
def run(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of two steps of `lerobot-train --policy.type=seer`, a checkpoint after each."""
    output = tmp_path_factory.mktemp("runs") / "seer"
    support.train(small_dataset, output, "--policy.type=seer", *support.HELD_OUT, alone=True)
    return output


@pytest.fixture(scope="session")
def checkpoint(run: Path) -> Path:
    return run / "checkpoints" / "last" / "pretrained_model"
