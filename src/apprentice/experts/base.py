"""What the student needs of a small action model, and nothing more.

A policy that acts is cut in two at its *latents*: `encode` is everything before them, the `ActionDecoder` everything
behind. Alignment teaches the student to produce the latents; the decoder, and the loss that trains it, move into the
student, which from then on needs no expert.

Letters: B samples, N latents of D numbers each, T actions of A numbers each. Some decoders turn each latent into one
action (N = T: Seer, ACT), others one latent into a whole chunk (N = 1: Diffusion).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lerobot.utils.constants import ACTION, OBS_STATE
from torch import Tensor, nn

from apprentice.common.errors import UserError
from apprentice.data.batch import TASK, Batch
from apprentice.data.statistics import check_alike, is_constant

SEED = 0  # of decoders that sample


class ActionDecoder(nn.Module, ABC):
    """Latents to actions, with the loss that trains it. Rebuilt from `settings` alone, so a student carries it along.

    Attributes:
        settings: JSON-able keyword arguments of the constructor.
    """

    settings: dict[str, Any]

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Turn latents (B, N, D) into normalised actions (B, T, A), the first of them the one to carry out now.

        A decoder that samples draws from the global generator, anew for each plan, as LeRobot's policies do: from
        one noise for all plans, a robot that is stuck would plan the same again and again.
        """

    @abstractmethod
    def loss(self, latents: Tensor, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Return the loss (scalar) of latents (B, N, D) against normalised `batch["action"]` (B, W, A), and its parts.

        The W actions are those of the expert's `action_window`. `batch["action_is_pad"]` (B, W), where present, marks
        actions outside the episode; they count as little as in the expert's own training. Where they are left out of
        the mean, `batch["action_count"]`, where present, is how many there are to divide by, instead of the batch's
        own: the batch is then a share of a larger one.
        """

    def mix(self, actions: Tensor, earlier: Tensor, weights: Tensor) -> Tensor:
        """Actions (B, n, A) as planned now, mixed with `weights` (n, 1) in 0..1 of those planned earlier (n, A)."""
        return torch.lerp(actions, earlier.expand_as(actions), weights.expand_as(actions))


class ActionExpert(ABC):
    """A frozen LeRobot policy, seen as encoder and decoder. Not a module: it never enters a student's weights.

    Attributes:
        kind: the key of its decoder in `apprentice.experts.DECODERS`.
        horizon: T, actions in a chunk.
        latent_dim: D.
        action_dim: A.
        inputs: shapes of the observations that it reads, images (3, h, w), in the order in which it reads them.
        n_obs_steps: steps of observation that it reads, the present one included.
        decoder: the part that the student re-uses.
        policy: the policy as LeRobot loads it, with its `preprocessor` and `postprocessor`.
    """

    kind: str
    horizon: int
    latent_dim: int
    action_dim: int
    inputs: dict[str, tuple[int, ...]]
    n_obs_steps: int = 1
    decoder: ActionDecoder
    policy: Any
    preprocessor: Any
    postprocessor: Any

    @property
    def latent_count(self) -> int:
        """N, latents in a chunk; one an action unless a decoder says otherwise."""
        return self.horizon

    @property
    def most_obs_steps(self) -> int:
        """Steps of observation that it makes use of if it is given more than `n_obs_steps`."""
        return self.n_obs_steps

    @property
    def action_window(self) -> tuple[int, int]:
        """First step, and the one after the last, of the actions that the decoder's loss reads; 0 is now."""
        return 0, self.horizon

    @abstractmethod
    def encode(self, batch: Batch) -> Tensor:
        """Map a raw batch, as a LeRobotDataset yields it (un-normalised), to latents (B, N, D), without gradient.

        If `n_obs_steps` is more than one, observations have a second axis of that many steps, oldest first; at the
        start of an episode its first frame is repeated, as LeRobot does in datasets and at run time, and
        `observation.state_is_pad` (B, steps) marks what is repeated. Deterministic.
        """

    @abstractmethod
    def action_affine(self) -> tuple[Tensor, Tensor]:
        """Offset and scale (A,) of its normalisation: normalised = (action - offset) / scale.

        The scale of a column that was constant in its training is 0: its action is the offset, whatever is decoded.
        """

    def normalisations(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Offset and scale of what it was trained on, of the actions (A,) and of the state (S,) if it reads one."""
        found = {ACTION: self.action_affine()}
        if OBS_STATE in self.inputs:
            found[OBS_STATE] = state_affine_of(self.preprocessor, self.inputs[OBS_STATE][0])
        return found

    @torch.no_grad()
    def own_actions(self, batch: Batch) -> Tensor:
        """What the policy itself plans for a raw batch: (B, T, A) in the robot's units, sampled under `seeded`."""
        batch = scaled_images(batch)
        with seeded():
            return self.postprocessor(self.policy.predict_action_chunk(self.preprocessor(batch)))

    def decoded(self, latents: Tensor) -> Tensor:
        """Latents (B, N, D) to actions (B, T, A) in the robot's units, sampled under `seeded`."""
        offset, scale = (value.to(latents) for value in self.action_affine())
        with torch.no_grad(), seeded():
            return self.decoder.decode(latents) * scale + offset


@contextmanager
def seeded(seed: int = SEED) -> Iterator[None]:
    """Draw from a fixed seed inside, on every device, and go on afterwards as if nothing had been drawn."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def scaled_images(batch: Batch) -> Batch:
    """The observations and instructions of a raw batch, images as floats in [0, 1]."""
    kept = {key: value for key, value in batch.items() if key.startswith("observation.") or key == TASK}
    return {k: v / 255 if isinstance(v, Tensor) and v.dtype == torch.uint8 else v for k, v in kept.items()}


def affine_of(postprocessor: Any, action_dim: int) -> tuple[Tensor, Tensor]:
    """Offset and scale (A,) of a postprocessor that un-normalises actions, whatever its mode; a scale of 0 for a
    constant.

    Raises UserError if it does anything else to them, or if they are not finite.
    """
    zero, one, two = (postprocessor(torch.full((1, action_dim), float(x)))[0].cpu() for x in (0, 1, 2))
    scale = _finite(ACTION, zero, one - zero)
    if not torch.allclose(two - one, scale, rtol=1e-3, atol=1e-5):
        raise UserError(
            f"expected an expert whose {ACTION} is un-normalised by an offset and a scale, found a postprocessor that "
            "does more; fix: train it on absolute or per-step actions, with LeRobot's default processors"
        )
    return zero, scale


@torch.no_grad()
def state_affine_of(preprocessor: Any, state_dim: int) -> tuple[Tensor, Tensor]:
    """Offset and scale (S,) of a preprocessor that normalises states; a scale of 0 for a constant.

    Raises UserError if they are not finite.
    """
    states = torch.tensor([[0.0], [1.0]]).expand(-1, state_dim).contiguous()
    zero, one = preprocessor({OBS_STATE: states, TASK: ["", ""]})[OBS_STATE].cpu().double()
    scale = 1 / (one - zero)
    return -zero * scale, _finite(OBS_STATE, -zero * scale, scale)


def _finite(key: str, offset: Tensor, scale: Tensor) -> Tensor:
    """The scale, 0 where a column varies by less than rounding does."""
    wrong = ~(torch.isfinite(offset) & torch.isfinite(scale) & (scale >= 0))
    if wrong.any():
        column = int(wrong.nonzero()[0])
        raise UserError(
            f"expected finite statistics of {key} in the expert's processors, found an offset of {offset[column]:.4g} "
            f"and a scale of {scale[column]:.4g} in column {column}; fix: train it on a dataset whose meta/stats.json "
            "is right (without that file it is computed)"
        )
    return torch.where(torch.from_numpy(is_constant(scale.numpy(), offset.numpy())), 0.0, scale)


def check_units(expert: ActionExpert, stats: dict[str, Any], name: str, other_name: str) -> None:
    """Raises UserError if a dataset's statistics are not of the numbers that an expert was trained on."""
    for key, (offset, scale) in expert.normalisations().items():
        if key in stats:
            check_alike(stats[key], offset.cpu().numpy(), scale.cpu().numpy(), key, name, other_name)
