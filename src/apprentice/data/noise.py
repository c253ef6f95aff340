"""Noise on the proprioception in training, given in millimetres and radians."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from apprentice.common.errors import UserError


def state_noise(state: Sequence[str] | None, scale: Tensor, position_noise_mm: float, angle_noise_rad: float) -> Tensor:
    """The standard deviation (S,) of the noise on each entry of a state that is divided by `scale` (S,).

    `state` is the contract's: a name and a unit an entry, such as "eef_x m". Lengths (m, mm) get `position_noise_mm`,
    angles (rad, deg) `angle_noise_rad`. An entry of another unit, or of none, gets no noise: what would be small there
    is not known. It is at most 1: then the entry varies by less than its noise, and tells nothing.

    Raises UserError if the contract has another number of entries.
    """
    if state is None:
        return torch.zeros_like(scale)
    if len(state) != len(scale):
        raise UserError(
            f"expected {len(scale)} entries of the state in the contract, found {len(state)}: {list(state)}; "
            "fix: write a name and a unit of each column into meta/contract.json"
        )
    units = {
        "m": position_noise_mm / 1000,
        "mm": position_noise_mm,
        "rad": angle_noise_rad,
        "deg": math.degrees(angle_noise_rad),
    }
    named = (entry.rpartition(" ") for entry in state)
    noise = [units.get(unit, 0.0) if name else 0.0 for name, _, unit in named]
    return (scale.new_tensor(noise) / scale.clamp(min=1e-12)).clamp(max=1)
