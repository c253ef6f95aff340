"""Perceiver resampler: any number of visual tokens to a few (Flamingo, arXiv 2204.14198, section 3.1.1)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HEADS = 8
HEAD_DIM = 64


class ResamplerLayer(nn.Module):
    """Latents look at the visual tokens and at each other, then pass a feed-forward network."""

    def __init__(self, dim: int):
        super().__init__()
        inner = HEADS * HEAD_DIM
        self.norm_tokens = nn.LayerNorm(dim)
        self.norm_latents = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, inner, bias=False)
        self.key_value = nn.Linear(dim, 2 * inner, bias=False)
        self.out = nn.Linear(inner, dim, bias=False)
        self.mlp = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, 4 * dim, bias=False), nn.GELU(), nn.Linear(4 * dim, dim, bias=False)
        )

    def forward(self, tokens: Tensor, latents: Tensor) -> Tensor:
        """Map visual tokens (N, L, C) and latents (N, R, C) to new latents (N, R, C)."""
        asking = self.norm_latents(latents)
        heard = torch.cat([self.norm_tokens(tokens), asking], dim=1)
        key, value = self.key_value(heard).chunk(2, dim=-1)
        query, key, value = (
            x.unflatten(-1, (HEADS, HEAD_DIM)).transpose(1, 2) for x in (self.query(asking), key, value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        latents = latents + self.out(mixed.transpose(1, 2).flatten(2))
        return latents + self.mlp(latents)


class PerceiverResampler(nn.Module):
    """Visual tokens (N, L, C) to R tokens (N, R, C), whatever the order of the visual tokens."""

    def __init__(self, dim: int, count: int, layers: int):
        super().__init__()
        self.latents = nn.Parameter(torch.randn(count, dim))
        self.layers = nn.ModuleList(ResamplerLayer(dim) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor) -> Tensor:
        latents = self.latents.expand(len(tokens), -1, -1)
        for layer in self.layers:
            latents = layer(tokens, latents)
        return self.norm(latents)
