"""Predicted pictures: what each camera will see some steps ahead, painted from the foresight tokens.

As in a masked autoencoder (arXiv 2111.06377), every patch of the picture is a mask token; here all patches are masked,
and what is known of the picture is in the foresight tokens before them.
"""

import torch
from torch import Tensor, nn

from apprentice.experts.seer_full.configuration_seer_full import FORESIGHT_HEADS, SeerFullConfig


class Painter(nn.Module):
    """Foresight tokens to the pixels of pictures, patch by patch, each patch standardised."""

    places: Tensor

    def __init__(self, config: SeerFullConfig):
        super().__init__()
        width = config.width
        side = config.image_size // config.patch_size
        self.per_picture = config.foresight_tokens
        self.project = nn.Linear(width, width)
        self.mask_token = nn.Parameter(0.02 * torch.randn(width))
        places = torch.cat([grid_positions(round(self.per_picture**0.5), width), grid_positions(side, width)])
        self.register_buffer("places", places, persistent=False)
        self.blocks = nn.Sequential(
            *[
                nn.TransformerEncoderLayer(
                    width, FORESIGHT_HEADS, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
                )
                for _ in range(config.foresight_layers)
            ]
        )
        self.norm = nn.LayerNorm(width)
        self.pixels = nn.Linear(width, 3 * config.patch_size**2)

    def forward(self, foresight: Tensor) -> Tensor:
        """Map foresight tokens (B, S, cameras * F, D) to patches (B, S, cameras, patches, 3 * patch * patch)."""
        known = self.project(foresight).unflatten(2, (-1, self.per_picture))
        leading = known.shape[:3]
        unknown = self.mask_token.expand(*leading, len(self.places) - self.per_picture, -1)
        painted = self.blocks((torch.cat([known, unknown], dim=3) + self.places).flatten(0, 2))
        return self.pixels(self.norm(painted[:, self.per_picture :])).unflatten(0, leading)


def grid_positions(side: int, width: int) -> Tensor:
    """Fixed positions of a square grid, row by row (side * side, width): sines and cosines of column, then of row."""
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)  # (side, width / 2)
    columns, rows = waves.repeat(side, 1), waves.repeat_interleave(side, dim=0)
    return torch.cat([columns, rows], dim=1).float()


def to_patches(images: Tensor, patch: int) -> Tensor:
    """Cut images (..., 3, h, w) into standardised patches (..., patches, patch * patch * 3), colours innermost."""
    cut = images.unflatten(-1, (-1, patch)).unflatten(-3, (-1, patch))  # (..., 3, rows, patch, columns, patch)
    flat = cut.movedim(-5, -1).transpose(-4, -3).flatten(-3).flatten(-3, -2)
    return (flat - flat.mean(-1, keepdim=True)) / (flat.var(-1, keepdim=True) + 1e-6).sqrt()


def foresight_loss(painted: Tensor, images: Tensor, counts: Tensor, patch: int) -> Tensor:
    """Mean squared error of painted patches against the pictures, over the steps (B, S) that count.

    Args:
        painted: (B, S, cameras, patches, 3 * patch * patch).
        images: the pictures that came, prepared (B, S, cameras, 3, h, w).
        counts: (B, S), False where the episode ends before the picture.
    """
    errors = (painted.float() - to_patches(images, patch).float()).square().mean((2, 3, 4))
    return (errors * counts).sum() / counts.sum().clamp(min=1)
