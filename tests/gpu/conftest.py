"""Tests on a GPU against the CPU. `APPRENTICE_TEST_DEVICE=cpu` runs their code where there is no GPU, CPU against CPU:
only then is it known to work when a GPU is lent for a quarter of an hour.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

DEVICE = os.environ.get("APPRENTICE_TEST_DEVICE", "cuda")
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = DEVICE == "cuda" and not torch.cuda.is_available()
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.cuda)
            if missing:
                item.add_marker(pytest.mark.skip(reason="there is no CUDA device"))


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """The device, with caches of its own, and float32 products that are float32's."""
    monkeypatch.setenv("APPRENTICE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    return torch.device(DEVICE)


@pytest.fixture
def using(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Let what follows train on "cpu" or on the GPU ("gpu"), and with "float32" in float32."""

    def choose(where: str) -> None:
        for state in (AcceleratorState, PartialState, GradientState):
            state._shared_state.clear()
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true" if where == "cpu" or DEVICE == "cpu" else "false")

    yield choose
    choose("gpu")


@contextmanager
def precise() -> Iterator[None]:
    """Inside, a GPU computes in float32."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("device", "distill.cache", "distill.stages", "distill.trainer"):
            patch.setattr(f"apprentice.{module}.fast_bfloat16", lambda device: False)
        yield
