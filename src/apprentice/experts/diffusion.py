"""LeRobot's Diffusion Policy: one latent a chunk, the vector that conditions its denoising network.

The latent is the state and the visual features of `n_obs_steps` steps, one after the other. What the past adds to it, a
student without a history can only guess, and an expert of one step teaches it more than one of two.
"""

from typing import Any

import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.utils.constants import ACTION, OBS_ENV_STATE, OBS_STATE
from torch import Tensor

from apprentice.data.batch import ACTION_IS_PAD, Batch
from apprentice.experts.base import ActionDecoder
from apprentice.experts.lerobot import DenoisingExpert

# What decides the denoising network, its noise and its loss; the rest of the configuration is about seeing.
OPTIONS = (
    "n_obs_steps",
    "horizon",
    "n_action_steps",
    "down_dims",
    "kernel_size",
    "n_groups",
    "diffusion_step_embed_dim",
    "use_film_scale_modulation",
    "noise_scheduler_type",
    "num_train_timesteps",
    "beta_schedule",
    "beta_start",
    "beta_end",
    "prediction_type",
    "clip_sample",
    "clip_sample_range",
    "num_inference_steps",
    "do_mask_loss_for_padding",
)


class DiffusionDecoder(ActionDecoder):
    """LeRobot's diffusion model without eyes: the latent goes in where a blind policy's state would.

    Sampling and loss are LeRobot's own code.
    """

    def __init__(self, latent_dim: int, action_dim: int, options: dict[str, Any]):
        super().__init__()
        from lerobot.policies.diffusion.modeling_diffusion import DiffusionModel  # brings `diffusers`, which is slow

        self.settings = {"latent_dim": latent_dim, "action_dim": action_dim, "options": options}
        self.steps = options["n_obs_steps"]
        config = DiffusionConfig(
            **{**options, "down_dims": tuple(options["down_dims"])},
            device="cpu",
            input_features={OBS_STATE: PolicyFeature(FeatureType.STATE, (latent_dim // self.steps,))},
            output_features={ACTION: PolicyFeature(FeatureType.ACTION, (action_dim,))},
        )
        self.model = DiffusionModel(config)

    def decode(self, latents: Tensor) -> Tensor:
        with torch.no_grad():
            return self.model.generate_actions(self._observation(latents))

    def loss(self, latents: Tensor, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Squared error of the predicted noise (arXiv 2303.04137, equation 5), or of the predicted actions."""
        pad = batch.get(ACTION_IS_PAD, torch.zeros(batch[ACTION].shape[:2], dtype=torch.bool, device=latents.device))
        target = {ACTION: batch[ACTION], ACTION_IS_PAD: pad}
        loss = self.model.compute_loss({**self._observation(latents), **target})
        return loss, {"denoising_loss": loss.item()}

    def _observation(self, latents: Tensor) -> Batch:
        """The batch of a blind policy: LeRobot flattens the steps to the latent again, and wants a second key."""
        return {OBS_STATE: latents.reshape(len(latents), self.steps, -1), OBS_ENV_STATE: latents}


class DiffusionExpert(DenoisingExpert):
    """A Diffusion Policy: N = 1, T = n_action_steps."""

    def cut(self) -> None:
        model = self.policy.diffusion
        features = [self.config.robot_state_feature, self.config.env_state_feature]
        width = sum(feature.shape[0] for feature in features if feature)
        for camera in range(len(self.config.image_features)):
            separate = self.config.use_separate_rgb_encoder_per_camera
            width += (model.rgb_encoder[camera] if separate else model.rgb_encoder).feature_dim
        self.horizon, self.latent_dim = self.config.n_action_steps, width * self.n_obs_steps
        options = {name: getattr(self.config, name) for name in OPTIONS}
        options["down_dims"] = list(options["down_dims"])
        self.decoder = DiffusionDecoder(self.latent_dim, self.action_dim, options).to(self.config.device).eval()
        self.decoder.model.unet.load_state_dict(model.unet.state_dict())

    def latents(self, batch: Batch) -> Tensor:
        return self.policy.diffusion._prepare_global_conditioning(batch)[:, None]
