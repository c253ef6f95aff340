"""LeRobot's own policies as experts: what they have in common. One file for each kind says where it is cut in two."""

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lerobot.policies.utils import populate_queues
from lerobot.utils.constants import OBS_ENV_STATE, OBS_IMAGES, OBS_STATE
from torch import Tensor, nn

from apprentice.common.adapters import load_config, load_policy, load_processors
from apprentice.common.errors import UserError
from apprentice.data.batch import Batch
from apprentice.data.features import read_features
from apprentice.experts.base import ActionExpert, affine_of, scaled_images, seeded


class LeRobotExpert(ActionExpert):
    """A policy loaded offline from its checkpoint folder, with its own processors and statistics.

    Its weights are all in the checkpoint, so weights that a fresh policy would download are not asked for.
    """

    def __init__(self, path: Path | str, device: torch.device):
        config = load_config(path)
        config.device = str(device)
        self.kind = config.type
        self.config = self.offline(config)
        try:
            self.policy = load_policy(path, config, strict=True)
            self.preprocessor, self.postprocessor = load_processors(path, config)
        except (OSError, RuntimeError, ImportError, KeyError, ValueError) as error:
            raise UserError(
                f"expected a complete checkpoint of a {config.type} policy in {path}, found: {error}; fix: name the "
                "folder that lerobot-train calls pretrained_model, and install what the policy needs"
            ) from error
        self.inputs = {key: tuple(feature.shape) for key, feature in read_features(config.input_features).items()}
        self.action_dim = config.action_feature.shape[0]
        self.n_obs_steps = config.n_obs_steps
        self.cut()
        self.normalisations()  # for its errors

    def offline(self, config: Any) -> Any:
        """Change a configuration so that building the policy needs no network."""
        config.pretrained_backbone_weights = None
        return config

    @abstractmethod
    def cut(self) -> None:
        """Set `horizon`, `latent_dim` and `decoder` from the loaded policy."""

    @abstractmethod
    def latents(self, batch: Batch) -> Tensor:
        """Map a normalised batch, as the policy's own model reads it, to latents (B, N, D)."""

    @torch.no_grad()
    def encode(self, batch: Batch) -> Tensor:
        with seeded():
            return self.latents(self.prepared(batch))

    def action_affine(self) -> tuple[Tensor, Tensor]:
        return affine_of(self.postprocessor, self.action_dim)

    def prepared(self, batch: Batch) -> Batch:
        """Normalise a raw batch and stack its cameras."""
        processed = self.preprocessor(scaled_images(batch))
        batch = {key: value for key, value in processed.items() if key.startswith("observation.")}
        images = [batch[key] for key in self.config.image_features]
        return batch | ({OBS_IMAGES: self.together(images)} if images else {})

    def together(self, images: list[Tensor]) -> Any:
        """The cameras' images as the policy's model reads them."""
        return torch.stack(images, -4)


class QueuedExpert(LeRobotExpert):
    """A policy whose model reads observations of `n_obs_steps` steps; at run time it keeps them in queues.

    The actions that it learns from begin at the oldest of these steps, in the past; those that it carries out, now.
    """

    def prepared(self, batch: Batch) -> Batch:
        batch = super().prepared(batch)
        if self.n_obs_steps == 1:
            return {k: v[:, None] if k in (OBS_STATE, OBS_ENV_STATE, OBS_IMAGES) else v for k, v in batch.items()}
        found = batch[OBS_STATE].shape
        if len(found) != 3 or found[1] != self.n_obs_steps:
            raise UserError(
                f"expected observations of {self.n_obs_steps} steps for a {self.kind} expert, found a state of shape "
                f"{tuple(found)}; fix: load the dataset with its delta_timestamps, or train it with n_obs_steps=1"
            )
        return batch

    @torch.no_grad()
    def own_actions(self, batch: Batch) -> Tensor:
        prepared = self.prepared(batch)
        self.policy.reset()
        for step in range(self.n_obs_steps):
            present = {k: v[:, step] for k, v in prepared.items() if k in self.policy._queues}
            populate_queues(self.policy._queues, present)
        with seeded():
            return self.postprocessor(self.policy.predict_action_chunk(prepared))


class DenoisingExpert(QueuedExpert):
    """A policy that denoises a chunk from one vector, the latent, beginning at the oldest step that it sees."""

    @property
    def latent_count(self) -> int:
        return 1

    @property
    def action_window(self) -> tuple[int, int]:
        first = 1 - self.n_obs_steps
        return first, first + self.config.horizon


def input_of(module: nn.Module, run: Callable[[], Any]) -> Tensor:
    """What `module` is given while `run` runs."""
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        run()
    finally:
        handle.remove()
    return seen[-1]
