"""Noise on the state in the units that a contract states."""

import math

import pytest
import torch

from apprentice.common.errors import UserError
from apprentice.data.noise import state_noise


def test_each_entry_gets_the_noise_of_its_unit_in_units_of_its_scale() -> None:
    state = ("x m", "y mm", "pan rad", "lift deg", "gripper", "grip %", "left finger m")
    scale = torch.tensor([0.1, 100.0, 0.5, 30.0, 1.0, 40.0, 1.0])
    found = state_noise(state, scale, position_noise_mm=2.0, angle_noise_rad=0.01)
    wanted = [0.002 / 0.1, 2 / 100, 0.01 / 0.5, 0.01 * 180 / math.pi / 30, 0, 0, 0]
    wanted[-1] = 0.002
    assert found.tolist() == pytest.approx(wanted, rel=1e-6)


def test_an_entry_that_varies_by_less_than_the_noise_or_not_at_all_stays_finite() -> None:
    found = state_noise(("x m", "y m", "gripper"), torch.tensor([1e-5, 0.0, 0.0]), 1.0, 0.01)
    assert found.tolist() == [1, 1, 0]


def test_unknown_units_get_none_and_another_number_of_entries_is_named() -> None:
    assert state_noise(None, torch.ones(3), 1.0, 0.01).tolist() == [0, 0, 0]
    with pytest.raises(UserError, match=r"expected 3 entries of the state.*found 2: .*fix: .*contract.json"):
        state_noise(("x m", "y m"), torch.ones(3), 1.0, 0.01)
