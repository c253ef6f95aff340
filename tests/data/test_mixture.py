"""Several datasets as one: weights, statistics together, and what keeps them apart."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tests.support import make_dataset

from apprentice.common.errors import UserError
from apprentice.data.contract import Contract
from apprentice.data.dataset import column, open_dataset
from apprentice.data.mixture import open_mixture
from apprentice.simulators.libero.convention import contract as libero_contract


@pytest.fixture(scope="module")
def other_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images in tables, five episodes."""
    return make_dataset(tmp_path_factory.mktemp("data") / "other", video=False, episodes=5)


def test_statistics_are_those_of_all_frames(small_dataset: Path, other_dataset: Path) -> None:
    mixture = open_mixture([f"{small_dataset}=1", f"{other_dataset}=9"])
    assert mixture.weights == [1.0, 9.0]
    for key in ("observation.state", "action"):
        together = np.concatenate([column(dataset, key) for dataset in mixture.datasets])
        stats = mixture.meta.stats[key]
        np.testing.assert_allclose(stats["mean"], together.mean(0), atol=1e-5)
        np.testing.assert_allclose(stats["std"], together.std(0), atol=1e-5)
        np.testing.assert_array_equal(stats["min"], together.min(0))
        np.testing.assert_array_equal(stats["max"], together.max(0))
    alone = open_mixture(str(small_dataset))
    assert alone.weights is None and alone.meta.stats is alone.datasets[0].meta.stats


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "expected a dataset, found none"),
        ("A=1 B", r"a weight for every dataset or for none, found .*; fix: FOLDER=WEIGHT for all"),
        ("A=0 B=1", r"a weight above 0, found .*=0; fix"),
        ("A=x", r"a weight above 0, found .*=x; fix"),
        ("A=1 C=1", r"expected a LeRobotDataset in .*none, found"),
    ],
)
def test_words_that_mean_nothing(small_dataset: Path, other_dataset: Path, words: str, message: str) -> None:
    places = {"A": str(small_dataset), "B": str(other_dataset), "C": str(small_dataset.parent / "none")}
    with pytest.raises(UserError, match=message):
        open_mixture([places[word[0]] + word[1:] for word in words.split()])


def test_a_folder_may_have_an_equals_sign(small_dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "seed=3").symlink_to(small_dataset)
    assert open_mixture(str(tmp_path / "seed=3")).weights is None
    assert open_mixture(f"{tmp_path / 'seed=3'}=2").weights == [2.0]


def test_names_of_columns_may_be_in_groups(small_dataset: Path, other_dataset: Path, tmp_path: Path) -> None:
    grouped = tmp_path / "grouped"
    shutil.copytree(other_dataset, grouped)
    info = json.loads((grouped / "meta" / "info.json").read_text())
    for key in ("observation.state", "action"):
        info["features"][key]["names"] = {"motors": info["features"][key]["names"]}
    (grouped / "meta" / "info.json").write_text(json.dumps(info))
    assert len(open_mixture([str(small_dataset), str(grouped)]).datasets) == 2
    info["features"]["action"]["names"]["motors"].reverse()
    (grouped / "meta" / "info.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match="action: dataset"):
        open_mixture([str(small_dataset), str(grouped)])


def test_datasets_that_differ_are_named_with_the_field(small_dataset: Path, tmp_path: Path) -> None:
    wide = make_dataset(tmp_path / "wide", video=False, episodes=1, state=9)
    with pytest.raises(UserError, match=r"observation\.state: dataset .*small has \(8,\).*, dataset .*wide has \(9,\)"):
        open_mixture([str(small_dataset), str(wide)])
    large = make_dataset(tmp_path / "large", video=False, episodes=1, size=96)
    with pytest.raises(UserError, match=r"observation\.images\.image: .*3, 64, 64\), dataset .*large has \(3, 96"):
        open_mixture([str(small_dataset), str(large)])


def test_every_contract_is_held_against_all_before_it(small_dataset: Path, tmp_path: Path) -> None:
    """Also against what the first does not know, but the second."""
    plain, turned = (make_dataset(tmp_path / name, video=False, episodes=1) for name in ("plain", "turned"))
    (plain / "meta" / "contract.json").unlink()
    libero_contract(64, "exact").having(rotation=0).save(turned / "meta")
    with pytest.raises(UserError, match=r"rotation: .* has 180, dataset .*turned has 0; fix: rotate"):
        open_mixture([str(plain), str(small_dataset), str(turned)])
    known = open_mixture([str(plain), str(small_dataset)]).contract
    assert known.rotation == 180 and known.versions == Contract.of_dataset(small_dataset).versions
    assert known.render is None and open_dataset(small_dataset).meta.fps == known.fps
