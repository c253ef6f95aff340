"""Keys and values in 8 bits.

Each vector (a layer's key or value of one head at one token) is kept as whole multiples of a step of its own, which is
1/127 of its largest number: half the bytes of bfloat16 and two for the step.
"""

import torch
from torch import Tensor

STEP = torch.bfloat16
SMALLEST = torch.finfo(STEP).tiny


def packed(values: Tensor) -> Tensor:
    """Vectors (..., d), d even, as bytes (..., d + 2)."""
    values = values.float()
    step = (values.abs().amax(-1, keepdim=True) / 127).clamp(min=SMALLEST).to(STEP)
    numbers = (values / step.float()).round().clamp(-127, 127).to(torch.int8)
    return torch.cat([numbers.view(torch.uint8), step.view(torch.uint8)], -1)


def unpacked(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Bytes (..., d + 2) as vectors (..., d)."""
    numbers, step = rows[..., : -STEP.itemsize], rows[..., -STEP.itemsize :]
    return (numbers.view(torch.int8).float() * step.view(STEP).float()).to(dtype)
