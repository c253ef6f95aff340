"""LeRobot's VQ-BeT: a latent for each action query; its head samples a code for each and adds an offset.

The latents are what its GPT gives at the queries: those of `n_obs_steps` past and present steps, and those of future
ones. Every query stands for a chunk of its own; only the present step's chunk is carried out, all of them are trained.
"""

from typing import Any

import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.vqbet.configuration_vqbet import VQBeTConfig
from lerobot.utils.constants import ACTION
from torch import Tensor

from apprentice.common.errors import UserError
from apprentice.data.batch import Batch
from apprentice.experts.base import ActionDecoder
from apprentice.experts.lerobot import QueuedExpert, input_of

OPTIONS = (
    "n_obs_steps",
    "n_action_pred_token",
    "action_chunk_size",
    "vqvae_n_embed",
    "vqvae_embedding_dim",
    "vqvae_enc_hidden_dim",
    "gpt_output_dim",
    "offset_loss_weight",
    "primary_code_loss_weight",
    "secondary_code_loss_weight",
    "bet_softmax_temperature",
    "sequentially_select",
)


class VQBeTDecoder(ActionDecoder):
    """VQ-BeT's head with its VQ-VAE, whose codes stay frozen, as in VQ-BeT's own second phase."""

    def __init__(self, action_dim: int, options: dict[str, Any]):
        super().__init__()
        from lerobot.policies.vqbet.modeling_vqbet import VQBeTHead

        self.settings = {"action_dim": action_dim, "options": options}
        action = {ACTION: PolicyFeature(FeatureType.ACTION, (action_dim,))}
        self.config = VQBeTConfig(**options, device="cpu", output_features=action)
        self.head = VQBeTHead(self.config)

    def decode(self, latents: Tensor) -> Tensor:
        with torch.no_grad():
            chunks = self.head(latents)["predicted_action"]
        present = chunks[:, self.config.n_obs_steps - 1]
        return present.reshape(len(latents), self.config.action_chunk_size, -1)

    def loss(self, latents: Tensor, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Focal loss of the codes plus weighted L1 of code and offset (arXiv 2403.03181, section 3.3)."""
        self.head.vqvae_model.eval()
        chunks = batch[ACTION].unfold(1, self.config.action_chunk_size, 1).transpose(2, 3)
        parts = self.head.loss_fn(self.head(latents), chunks)
        return parts.pop("loss"), parts


class VQBeTExpert(QueuedExpert):
    """A VQ-BeT: N = n_action_pred_token + n_obs_steps - 1, T = action_chunk_size."""

    @property
    def latent_count(self) -> int:
        return self.config.n_action_pred_token + self.n_obs_steps - 1

    @property
    def action_window(self) -> tuple[int, int]:
        return 1 - self.n_obs_steps, self.config.n_action_pred_token + self.config.action_chunk_size - 1

    def cut(self) -> None:
        head = self.policy.vqbet.action_head
        if not head.vqvae_model.discretized:
            raise UserError(
                "expected a VQ-BeT whose VQ-VAE is trained, found one in its first phase; fix: train it for more than "
                f"its {self.config.n_vqvae_training_steps} n_vqvae_training_steps"
            )
        self.horizon, self.latent_dim = self.config.action_chunk_size, self.config.gpt_output_dim
        self.decoder = VQBeTDecoder(self.action_dim, {name: getattr(self.config, name) for name in OPTIONS})
        self.decoder.to(self.config.device).eval()
        self.decoder.head.load_state_dict(head.state_dict())

    def latents(self, batch: Batch) -> Tensor:
        model = self.policy.vqbet
        return input_of(model.action_head, lambda: model(batch, rollout=True))
