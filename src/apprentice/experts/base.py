"""What the student needs of a small action model, and nothing more.

A policy that acts is cut in two at its *latents*: `encode` is everything before them, the `ActionDecoder` everything
behind. Alignment teaches the student to produce the latents; the decoder, and the loss that trains it, move into the
student, which from then on needs no expert.
"""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

Batch = dict[str, Any]


class ActionDecoder(nn.Module, ABC):
    """Latents to actions, with the loss that trains it. Rebuilt from `settings` alone, so a student carries it along.

    Attributes:
        settings: JSON-able keyword arguments of the constructor.
    """

    settings: dict[str, Any]

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Turn latents (B, T, D) into normalised actions (B, T, A), deterministically."""

    @abstractmethod
    def loss(self, latents: Tensor, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Return the loss (scalar) of latents (B, T, D) against normalised `batch["action"]` (B, T, A), and its parts.

        `batch["action_is_pad"]` (B, T), where present, marks actions past the end of an episode; they do not count.
        """


class ActionExpert(ABC):
    """A frozen small policy, seen as encoder and decoder. Not a module: it never enters a student's weights.

    Attributes:
        kind: the key of its decoder in `apprentice.experts.DECODERS`.
        horizon: T, latents in a chunk.
        latent_dim: D.
        action_dim: A.
        inputs: shapes of the observations that it reads, images (3, h, w), in the order in which it reads them.
        decoder: the part that the student re-uses.
    """

    kind: str
    horizon: int
    latent_dim: int
    action_dim: int
    inputs: dict[str, tuple[int, ...]]
    decoder: ActionDecoder

    @abstractmethod
    def encode(self, batch: Batch) -> Tensor:
        """Map a raw batch, as a LeRobotDataset yields it (un-normalised), to latents (B, T, D), without gradient."""

    @abstractmethod
    def action_affine(self) -> tuple[Tensor, Tensor]:
        """Offset and scale (A,) of its normalisation: normalised = (action - offset) / scale."""
