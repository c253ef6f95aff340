"""Statistics that are missing or of other numbers, and numbers in other units."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support import CAMERAS, make_dataset

from apprentice.common.errors import UserError
from apprentice.data.dataset import column, open_dataset
from apprentice.data.mixture import open_mixture
from apprentice.data.statistics import check_alike, unlike

STATE, ACTION = "observation.state", "action"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "images", video=False)


def of_state(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda stats: stats[STATE].update({name: value})


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "none at all": lambda stats: stats.clear(),
    "none of the state": lambda stats: stats.pop(STATE),
    "no deviation": lambda stats: stats[STATE].pop("std"),
    "no count": lambda stats: stats[STATE].pop("count"),
    "seven columns": lambda stats: stats[STATE].update({k: v[:7] for k, v in stats[STATE].items() if k != "count"}),
    "infinite": of_state("std", [float("inf")] * 8),
    "nan": of_state("mean", [float("nan")] * 8),
    "zero": of_state("std", [0.0] * 8),
    "negative": of_state("std", [-1.0] * 8),
    "degrees": lambda stats: stats[STATE].update({k: [57.3 * x for x in v] for k, v in stats[STATE].items()}),
    "text": of_state("mean", "eight numbers"),
    "nothing": of_state("mean", None),
    "a number": lambda stats: stats.update({STATE: 5}),
    "none of the cameras": lambda stats: [stats.pop(camera) for camera in CAMERAS],
}


@pytest.mark.parametrize("change", CHANGES)
def test_statistics_are_those_of_the_numbers(root: Path, change: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = root / "meta" / "stats.json"
    text = path.read_text()
    stats = json.loads(text)
    CHANGES[change](stats)
    path.write_text(json.dumps(stats))
    try:
        dataset = open_dataset(root)
        mixed = open_mixture([str(root), str(root)]).meta.stats
    finally:
        path.write_text(text)
    for key in (STATE, ACTION):
        numbers, found = column(dataset, key).astype(np.float64), dataset.meta.stats[key]
        for name in ("mean", "std", "min", "max"):
            np.testing.assert_allclose(found[name], getattr(numbers, name)(0), atol=1e-5)
            np.testing.assert_allclose(mixed[key][name], getattr(numbers, name)(0), atol=1e-5)
    assert all(dataset.meta.stats[camera]["mean"].shape == (3, 1, 1) for camera in CAMERAS)
    said = " ".join(capsys.readouterr().out.split())
    if change == "none at all":
        assert "statistics of observation.state, action are computed; meta/stats.json has none" in said
    elif "camera" not in change and change not in ("none of the state",):
        assert "observation.state in meta/stats.json do not describe its numbers" in said
    (root / "meta" / "stats.json").write_text(text)


def test_good_statistics_stay_as_they_are(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = json.loads((root / "meta" / "stats.json").read_text())
    found = open_dataset(root).meta.stats
    assert all(found[key][name].tolist() == value for key in known for name, value in known[key].items())
    assert "computed" not in capsys.readouterr().out


def described(numbers: np.ndarray) -> dict[str, np.ndarray]:
    return {name: getattr(numbers, name)(0) for name in ("mean", "std", "min", "max")}


def affines(numbers: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Offset and scale of LeRobot's two usual normalisations."""
    low, high = numbers.min(0), numbers.max(0)
    return {"mean and deviation": (numbers.mean(0), numbers.std(0)), "range": ((low + high) / 2, (high - low) / 2)}


@pytest.mark.parametrize("kind", ["mean and deviation", "range"])
def test_other_units_are_found_and_other_samples_are_not(kind: str) -> None:
    generator = np.random.default_rng(0)
    scales = np.array([0.3, 0.4, 0.5, 0.05, 0.07, 0.06])
    numbers = np.concatenate([generator.normal(size=(2000, 6)) * scales, generator.choice([-1, 1], (2000, 1))], 1)
    offset, scale = affines(numbers)[kind]
    for part in (slice(0, 2000), slice(0, 40), slice(100, 130)):
        assert unlike(described(numbers[part]), offset, scale) == {}
    for factor in (10, 57.3, 1 / 57.3, 1000, 0.001):
        found = unlike(described(numbers * factor), offset, scale)
        assert found, factor
    shifted = numbers + np.array([0, 0, 9, 0, 0, 0, 0])
    assert unlike(described(shifted), offset, scale) == {"far": [2]}
    assert unlike(described(numbers * 10), np.zeros(7), np.ones(7)) == {}  # the identity


def test_a_constant_must_be_the_same(root: Path) -> None:
    numbers = np.array([[0.1, 45.3, 1.0], [0.2, 45.3, 2.0], [0.3, 45.3, 3.0]])
    offset, scale = numbers.mean(0), np.array([0.08, 0.0, 0.8])
    assert unlike(described(numbers), offset, scale) == {}
    assert unlike(described(numbers + np.array([0, 1e-5, 0])), offset, scale) == {}
    with pytest.raises(
        UserError, match=r"column 1: the expert learned from 45\.3 alone, the dataset has 45\.4 to 45\.4"
    ):
        check_alike(described(numbers + np.array([0, 0.1, 0])), offset, scale, ACTION, "the expert", "the dataset")
