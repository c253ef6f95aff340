"""Views of a frame: the picture itself, and the same picture moved a little and in another light.

A frame's n-th view is the same in every run and on every machine, so what is computed of it can be kept.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from apprentice.experts.base import seeded

SHIFT = 0.05  # of an image's longer side, at most, in each direction; its edges are repeated
LIGHT = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.02}


def view_of(images: Tensor, frames: Iterable[int], view: int, seed: int = 0) -> Tensor:
    """The `view`-th view of images (B, N, 3, h, w), uint8, of N cameras at `frames` (B); view 0 is the images."""
    if view == 0:
        return images
    height, width = images.shape[-2:]
    crop = v2.RandomCrop((height, width), padding=round(SHIFT * max(height, width)), padding_mode="edge")
    change = v2.Compose([crop, v2.ColorJitter(**LIGHT)])
    changed = []
    for cameras, frame in zip(images, frames, strict=True):
        with seeded(int(np.random.default_rng([seed, view, int(frame)]).integers(2**63))):
            changed.append(torch.stack([change(image) for image in cameras]))
    return torch.stack(changed)
