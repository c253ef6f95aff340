"""LeRobot's ACT: one latent an action, and a decoder that is a single linear layer.

The latents are what comes out of ACT's transformer decoder. ACT's other latent, the one of its variational encoder, is
zero outside its training.
"""

from lerobot.utils.constants import ACTION
from torch import Tensor, nn

from apprentice.data.batch import ACTION_COUNT, ACTION_IS_PAD, Batch
from apprentice.experts.base import ActionDecoder
from apprentice.experts.lerobot import LeRobotExpert, input_of


class ACTDecoder(ActionDecoder):
    """ACT's action head, and ACT's loss without the part that trains its variational encoder."""

    def __init__(self, latent_dim: int, action_dim: int):
        super().__init__()
        self.settings = {"latent_dim": latent_dim, "action_dim": action_dim}
        self.head = nn.Linear(latent_dim, action_dim)

    def decode(self, latents: Tensor) -> Tensor:
        return self.head(latents)

    def loss(self, latents: Tensor, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Mean absolute error of the actions inside the episode (arXiv 2304.13705, algorithm 1)."""
        error = (self.head(latents) - batch[ACTION]).abs()
        inside = ~batch[ACTION_IS_PAD] if ACTION_IS_PAD in batch else error.new_ones(error.shape[:2])
        count = batch.get(ACTION_COUNT) or inside.sum().clamp(min=1)
        loss = (error * inside[..., None]).sum() / count / error.shape[-1]
        return loss, {"l1_loss": loss.item()}


class ACTExpert(LeRobotExpert):
    """An ACT, N = T = chunk_size."""

    def cut(self) -> None:
        head = self.policy.model.action_head
        self.horizon, self.latent_dim = self.config.chunk_size, head.in_features
        self.decoder = ACTDecoder(head.in_features, head.out_features).to(head.weight.device).eval()
        self.decoder.head.load_state_dict(head.state_dict())

    def together(self, images: list[Tensor]) -> list[Tensor]:
        """ACT encodes each camera by itself, so that each may have a size of its own."""
        return images

    def latents(self, batch: Batch) -> Tensor:
        model = self.policy.model
        return input_of(model.action_head, lambda: model(batch))
