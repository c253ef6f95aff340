import shutil
from pathlib import Path

import pytest
from tests.support import CAMERAS, make_dataset


@pytest.fixture
def damaged_dataset(small_dataset: Path, tmp_path: Path) -> Path:
    """The small dataset, one of its videos too short."""
    broken = Path(shutil.copytree(small_dataset, tmp_path / "broken"))
    shorter = make_dataset(tmp_path / "shorter", episodes=1)
    video = Path("videos") / CAMERAS[0] / "chunk-000" / "file-000.mp4"
    shutil.copy(shorter / video, broken / video)
    return broken
