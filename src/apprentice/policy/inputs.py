"""What a student reads of a raw batch: its cameras' images, and its state as a token."""

import torch
from torch import Tensor, nn

from apprentice.common.errors import UserError
from apprentice.experts.base import Batch
from apprentice.policy.configuration_apprentice import ApprenticeConfig


class StateEncoder(nn.Module):
    """Proprioception (..., S) to one token (..., 1, H): arm and gripper apart, then together.

    Source: docs/paper.md, Architecture, state encoder.
    """

    def __init__(self, state_dim: int, gripper_dims: int, hidden_size: int):
        super().__init__()
        self.sizes = [state_dim - gripper_dims, gripper_dims]
        self.arm = nn.Linear(state_dim - gripper_dims, hidden_size)
        self.gripper = nn.Linear(gripper_dims, hidden_size)
        self.join = nn.Linear(2 * hidden_size, hidden_size)

    def forward(self, state: Tensor) -> Tensor:
        """Encode a normalised state (..., S)."""
        arm, gripper = state.split(self.sizes, -1)
        return self.join(torch.cat([self.arm(arm), self.gripper(gripper)], -1)).unsqueeze(-2)


def camera_images(config: ApprenticeConfig, batch: Batch) -> list[Tensor]:
    """The cameras' images, in the configuration's order, uint8, (B, 3, h, w) or (B, K, 3, h, w) each.

    Raises UserError if an image has another size than the student learned: its processor resizes.
    """
    found = []
    for key, feature in config.image_features.items():
        image, size = batch[key], feature.shape[-2:]
        image = image if image.dtype == torch.uint8 else (image * 255).round().to(torch.uint8)
        if image.shape[-2:] != size:
            raise UserError(
                f"expected images of {tuple(size)} px (height, width) of {key}, found {tuple(image.shape[-2:])}; "
                "fix: let the checkpoint's own processor resize them"
            )
        found.append(image)
    return found
