"""Views of a frame: the picture itself, and the same picture moved a little and in another light.

A frame's n-th view is the same in every run and on every machine, so what is computed of it can be kept.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from apprentice.experts.base import seeded

SHIFT = 0.05  # of an image's longer side, at most, in each direction; its edges are repeated
LIGHT = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.02}


def view_of(images: Sequence[Tensor], frames: Iterable[int], view: int, seed: int = 0) -> list[Tensor]:
    """The `view`-th view of N cameras' images (B, 3, h, w) each, uint8, at `frames` (B); view 0 is the images."""
    if view == 0:
        return list(images)
    changes = [v2.Compose([_crop(*camera.shape[-2:]), v2.ColorJitter(**LIGHT)]) for camera in images]
    changed = []
    for row, frame in enumerate(frames):
        with seeded(int(np.random.default_rng([seed, view, int(frame)]).integers(2**63))):
            changed.append([change(camera[row]) for change, camera in zip(changes, images, strict=True)])
    return [torch.stack(camera) for camera in zip(*changed, strict=True)]


def _crop(height: int, width: int) -> v2.RandomCrop:
    return v2.RandomCrop((height, width), padding=round(SHIFT * max(height, width)), padding_mode="edge")
