"""Contracts find what is planted in them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from apprentice.common.errors import UserError
from apprentice.data.contract import Contract, hash_of
from apprentice.simulators.libero.convention import contract as libero_contract

LIBERO = libero_contract(128, "fast")

PLANTED = {
    "cameras": LIBERO.cameras[::-1] if LIBERO.cameras else None,
    "image_size": (256, 256),
    "rotation": 0,
    "state": ("joint_1 rad",),
    "action": ("x m",),
    "gripper": "opens",
    "fps": 10,
}


@pytest.mark.parametrize("field", PLANTED)
def test_each_difference_is_named_with_both_values_and_a_fix(field: str) -> None:
    other = LIBERO.having(**{field: PLANTED[field]})
    with pytest.raises(UserError) as error:
        LIBERO.check(other, "the student", "the dataset")
    lines = str(error.value).splitlines()
    assert len(lines) == 2 and lines[1].startswith(f"  {field}: the student has")
    assert str(getattr(LIBERO, field)) in lines[1] and str(PLANTED[field]) in lines[1] and "fix:" in lines[1]


def test_another_mujoco_is_named_and_unknown_fields_are_not_compared() -> None:
    with pytest.raises(UserError, match=r"versions: .*3\.4\.0"):
        LIBERO.check(LIBERO.having(versions={"mujoco": "3.4.0"}), "a", "b")
    LIBERO.check(Contract(fps=20, versions={"vlm": "me/mine"}), "a", "b")


def test_round_trip_and_what_a_plain_dataset_tells(tmp_path: Path, small_dataset: Path) -> None:
    contract = LIBERO.having(horizon=8, statistics="abc")
    contract.save(tmp_path)
    assert Contract.load(tmp_path) == contract
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "info.json").write_text((small_dataset / "meta" / "info.json").read_text())
    plain = Contract.of_dataset(tmp_path)
    assert (
        plain.cameras == LIBERO.cameras and plain.image_size == (64, 64) and plain.fps == 20 and plain.gripper is None
    )


def test_a_missing_and_a_damaged_contract_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a contract"):
        Contract.load(tmp_path)
    (tmp_path / "contract.json").write_text("{")
    with pytest.raises(UserError, match="write it again"):
        Contract.load(tmp_path)


def test_statistics_hash_sees_values_not_containers() -> None:
    values = [0.1, 0.2, 3.0]
    as_list, as_array = {"action": {"mean": values}}, {"action": {"mean": np.array(values, dtype=np.float32)}}
    as_tensor = {"action": {"mean": torch.tensor(values)}}
    assert hash_of(as_list) == hash_of(as_array) == hash_of(as_tensor)
    assert hash_of(as_list) != hash_of({"action": {"mean": [0.1, 0.2, 3.1]}})
