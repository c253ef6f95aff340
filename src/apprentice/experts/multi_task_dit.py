"""LeRobot's multi-task diffusion transformer: one latent a chunk, the vector that conditions the transformer.

It reads instructions. Building the policy asks for its CLIP (`vision_encoder_name`, `text_encoder_name`): a folder, or
a name that is in the hub's cache or can be fetched. Nothing of CLIP goes into the student.
"""

from typing import Any

import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.multi_task_dit.configuration_multi_task_dit import MultiTaskDiTConfig
from lerobot.utils.constants import ACTION
from torch import Tensor

from apprentice.data.batch import Batch
from apprentice.experts.base import ActionDecoder
from apprentice.experts.lerobot import DenoisingExpert

OPTIONS = (
    "n_obs_steps",
    "horizon",
    "n_action_steps",
    "objective",
    "noise_scheduler_type",
    "num_train_timesteps",
    "beta_schedule",
    "beta_start",
    "beta_end",
    "prediction_type",
    "clip_sample",
    "clip_sample_range",
    "num_inference_steps",
    "sigma_min",
    "num_integration_steps",
    "integration_method",
    "timestep_sampling_strategy",
    "timestep_sampling_s",
    "timestep_sampling_alpha",
    "timestep_sampling_beta",
    "hidden_dim",
    "num_layers",
    "num_heads",
    "dropout",
    "use_positional_encoding",
    "timestep_embed_dim",
    "use_rope",
    "rope_base",
    "do_mask_loss_for_padding",
)


class MultiTaskDiTDecoder(ActionDecoder):
    """The diffusion transformer and its objective, diffusion or flow matching: LeRobot's own code."""

    def __init__(self, latent_dim: int, action_dim: int, options: dict[str, Any]):
        super().__init__()
        from lerobot.policies.multi_task_dit import modeling_multi_task_dit as dit

        self.settings = {"latent_dim": latent_dim, "action_dim": action_dim, "options": options}
        action = {ACTION: PolicyFeature(FeatureType.ACTION, (action_dim,))}
        self.config = MultiTaskDiTConfig(**options, device="cpu", output_features=action)
        self.transformer = dit.DiffusionTransformer(self.config, conditioning_dim=latent_dim)
        objective = dit.DiffusionObjective if self.config.is_diffusion else dit.FlowMatchingObjective
        self.objective = objective(
            self.config, action_dim, self.config.horizon, do_mask_loss_for_padding=self.config.do_mask_loss_for_padding
        )

    def decode(self, latents: Tensor) -> Tensor:
        with torch.no_grad():
            actions = self.objective.conditional_sample(self.transformer, len(latents), latents[:, 0])
        first = self.config.n_obs_steps - 1
        return actions[:, first : first + self.config.n_action_steps]

    def loss(self, latents: Tensor, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Squared error of the predicted noise (arXiv 2303.04137) or velocity (arXiv 2210.02747)."""
        loss = self.objective.compute_loss(self.transformer, batch, latents[:, 0])
        return loss, {f"{self.config.objective}_loss": loss.item()}


class MultiTaskDiTExpert(DenoisingExpert):
    """A multi-task DiT: N = 1, T = n_action_steps."""

    def offline(self, config: Any) -> Any:
        return config  # its CLIP has no switch of that kind

    def cut(self) -> None:
        self.horizon = self.config.n_action_steps
        self.latent_dim = self.policy.observation_encoder.conditioning_dim
        options = {name: getattr(self.config, name) for name in OPTIONS}
        self.decoder = MultiTaskDiTDecoder(self.latent_dim, self.action_dim, options).to(self.config.device).eval()
        self.decoder.transformer.load_state_dict(self.policy.noise_predictor.state_dict())

    def latents(self, batch: Batch) -> Tensor:
        return self.policy.observation_encoder.encode(batch)[:, None]
