"""What tests of training share: caches of their own, a log line for each step, and a small run."""

from pathlib import Path

import pytest

from apprentice.distill import trainer
from apprentice.distill.stages import StageConfig


@pytest.fixture
def own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APPRENTICE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(trainer, "LOG_EVERY", 1)


@pytest.fixture
def config(small_dataset: Path, small_expert: Path, small_vlm: Path, tmp_path: Path) -> StageConfig:
    paths = {"dataset": small_dataset, "expert": small_expert, "vlm": small_vlm, "out": tmp_path / "run"}
    return StageConfig(**{k: str(v) for k, v in paths.items()}, steps=6, batch_size=8, track="none")
