"""Faults of policies, planted in a healthy checkpoint: each is named before anything runs, or by policy and episode."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from apprentice.common.errors import UserError
from apprentice.data.contract import Contract, hash_of
from apprentice.evaluate.selfcheck.faults import check_statistics, doubts, watched
from apprentice.simulators.base import simulator_of
from apprentice.simulators.libero.convention import CAMERAS

HEALTHY = Path("assets/seer")
STATISTICS = next(HEALTHY.glob("policy_preprocessor_*_normalizer_processor.safetensors")).name


def nothing(values, config):
    pass


def swapped(values, config):
    one, other = (f"{camera}.mean" for camera in CAMERAS)
    values[one], values[other] = values[other], values[one]


def other_robot(values, config):
    values["observation.state.mean"][2] = 0.3
    values["observation.state.std"][2] = 0.05


def other_units(values, config):
    values["action.max"][0], values["action.min"][0] = 90, -90


def larger(values, config):
    for camera in CAMERAS:
        config["input_features"][camera]["shape"] = [3, 256, 256]


def night(values, config):
    for camera in CAMERAS:
        values[f"{camera}.mean"] *= 0.1


@pytest.mark.parametrize(
    ("plant", "contract", "named"),
    [
        (nothing, True, None),
        (nothing, False, "found none, so nothing tells which way its images were turned"),
        (swapped, True, "cameras swapped"),
        (other_robot, True, r"starts this suite at eef_z m = 1\.\d+, found a mean of 0.3 and a deviation of 0.05; fix"),
        (other_units, True, r"actions between -1 and 1 .* found dx 0.05m up to 90; fix"),
        (larger, True, r"128 x 128 px.* trained on observation.images.image of 256 x 256 px.* fix: --size 256"),
        (night, True, "mean colours .* fix: use the statistics of the dataset"),
    ],
)
def test_a_doubtful_checkpoint_is_named(plant, contract, named, tmp_path) -> None:
    folder = shutil.copytree(HEALTHY, tmp_path / "policy", ignore=shutil.ignore_patterns("model.safetensors"))
    values, config = load_file(folder / STATISTICS), json.loads((folder / "config.json").read_text())
    measured = json.loads(Path("assets/demonstrations/libero_goal/meta/stats.json").read_text())
    for camera in CAMERAS:  # the Seer's are ImageNet's, which tell nothing
        values[f"{camera}.mean"] = np.array(measured[camera]["mean"], np.float32)
    plant(values, config)
    save_file(values, folder / STATISTICS)
    (folder / "config.json").write_text(json.dumps(config))
    if not contract:
        (folder / "contract.json").unlink()
    libero = simulator_of("libero_goal")
    found = doubts(folder, libero.contract("libero_goal", 128, "fast"), libero.usual("libero_goal"))
    assert len(found) == (named is not None), found
    if named:
        with pytest.raises(UserError, match=named):
            raise UserError(found[0])


def test_a_students_statistics_are_those_of_its_contract(tmp_path) -> None:
    values = {
        f"{kind}_{part}": np.full(3, 0.5, np.float32) for kind in ("state", "action") for part in ("offset", "scale")
    }
    nested = {k: {p: values[f"{k}_{p}"] for p in ("offset", "scale")} for k in ("state", "action")}
    Contract(statistics=hash_of(nested)).save(tmp_path)
    save_file(values, tmp_path / "model.safetensors")
    check_statistics("mine", tmp_path)
    values["state_offset"][0] = 0.6
    save_file(values, tmp_path / "model.safetensors")
    with pytest.raises(
        UserError, match=r"statistics: the contract of policy mine has \w+, its weights .* has \w+; fix"
    ):
        check_statistics("mine", tmp_path)


def test_what_goes_wrong_in_a_plan_is_named() -> None:
    with pytest.raises(UserError, match="policy a, task 1: policy a: not finite"), watched("a", "policy a, task 1"):
        raise UserError("policy a: not finite")
    message = r"policy a, task 1: expected a plan, found ValueError: 3 .*test_faults.py:\d+"
    with pytest.raises(UserError, match=message), watched("a", "policy a, task 1"):
        raise ValueError(3)
