"""What a command found, as JSON: one document on stdout, and nothing else there."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from tests import support

from apprentice.cli import main
from apprentice.common.progress import console
from apprentice.common.result import as_json, plain
from apprentice.data.dataset import open_dataset


@dataclass
class Inner:
    path: Path
    numbers: tuple[float, ...]


def test_values_become_jsons_own() -> None:
    inner = Inner(Path("x/y"), (1.0, float("nan"), float("inf")))
    assert plain({"a": inner, 3: [np.float32(0.5), torch.ones(2)]}) == {
        "a": {"path": "x/y", "numbers": [1.0, None, None]},
        "3": [0.5, [1.0, 1.0]],
    }
    assert json.loads(as_json({"é": True, "none": None})) == {"é": True, "none": None}
    with pytest.raises(TypeError, match="object"):
        plain(object())


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    support.make_dataset(tmp_path / "data", video=False)
    return support.make_expert(tmp_path / "expert", open_dataset(tmp_path / "data")), tmp_path / "data"


def test_a_check_is_json_and_its_exit_code_stays(places: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    expert, data = places
    try:
        code = main(["expert-check", str(expert), "--dataset", str(data), "--frames", "8", "--json"])
    finally:
        console.stderr = False
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert code == 1 and not found["can_teach"]  # random weights
    assert found["findings"]["difference"] < 1e-3 and len(found["findings"]["error"]) == 7
    assert "cannot teach" in printed.err
    assert main(["expert-check", str(expert), "--dataset", str(data), "--frames", "8"]) == 1
    assert "cannot teach" in capsys.readouterr().out
