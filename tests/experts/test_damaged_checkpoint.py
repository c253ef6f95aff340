"""A checkpoint that lacks something, or that another version wrote: one line that names the file and the way out."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests import support

from apprentice.common.errors import UserError
from apprentice.data.dataset import open_dataset
from apprentice.experts import load_expert
from apprentice.serve.checkpoint import Checkpoint

CPU = torch.device("cpu")
PROCESSORS = ("policy_preprocessor.json", "policy_postprocessor.json")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("damage")
    support.make_dataset(root / "data", video=False)
    return support.make_expert(root / "expert", open_dataset(root / "data"))


def without(*names: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / name).unlink() for name in names] and None


def configured(**fields: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without(*PROCESSORS), "found no policy_preprocessor.json, policy_postprocessor.json; fix: .*migrate_policy"),
        (without(PROCESSORS[0]), "found no policy_preprocessor.json; fix: give the folder"),
        (without(PROCESSORS[1]), "found no policy_postprocessor.json; fix: give the folder"),
        (without("model.safetensors"), "found no model.safetensors; fix: give the folder"),
        (without("config.json"), "config.json"),
        (configured(mlp_hidden_dim=3), r"knows, found: .*mlp_hidden_dim.*; fix: install the LeRobot that wrote it"),
        (configured(chunk_size="many"), r"settings of a policy .* found: .*many"),
        (configured(input_features=7), r"settings of a policy|input_features"),
    ],
)
@pytest.mark.parametrize(
    "load", [lambda f: load_expert(f, CPU), lambda f: Checkpoint("x", f, CPU)], ids=["expert", "policy"]
)
def test_what_is_missing_or_unknown_is_named(
    damage: Callable[[Path], None], message: str, load: Callable[[Path], object], checkpoint: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    damage(folder)
    with pytest.raises(UserError, match=message):
        load(folder)
