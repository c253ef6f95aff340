"""What every test needs: no hub, no display, one thread: processes that fight for cores take three times as long."""

import os
import signal
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRACKIO_DIR", os.path.join(tempfile.gettempdir(), "apprentice-trackio"))

from collections.abc import Iterator
from pathlib import Path

import pytest

from apprentice.common.process import ordinary_priority
from tests import support

# What a shell starts in the background ignores Ctrl-C, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Files of more than a minute, the longest first: one that begins last leaves a core with nothing to do.
LONG = (
    *("distill/test_plan.py", "evaluate/test_rollout.py", "distill/test_processes.py"),
    *("simulators/libero/test_demonstrator.py", "policy/test_lerobot.py", "evaluate/test_correct.py"),
    *("policy/test_remembering.py", "distill/test_stages.py", "simulators/libero/test_doctor.py"),
    *("experts/test_seer.py", "simulators/libero/test_collect_variants.py", "test_pool.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {Path(__file__).parent / name: rank for rank, name in enumerate(LONG)}
    items.sort(key=lambda item: ranks.get(item.path, len(LONG)))


@pytest.fixture(autouse=True)
def shared_cores() -> Iterator[None]:
    """A test that encodes a video leaves this process as it was."""
    yield
    ordinary_priority()


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LeRobotDataset of 36 frames in 3 episodes, two cameras, two instructions."""
    return support.make_dataset(tmp_path_factory.mktemp("data") / "small")


@pytest.fixture(scope="session")
def small_expert(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint folder of a small Seer with random weights."""
    from apprentice.data.dataset import open_dataset

    return support.make_expert(tmp_path_factory.mktemp("expert") / "seer", open_dataset(small_dataset))


@pytest.fixture(scope="session")
def small_vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small VLM with random weights."""
    return support.make_vlm(tmp_path_factory.mktemp("vlm") / "nano")
