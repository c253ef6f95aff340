"""Seer's action decoder, and whether its gripper has two values or a range of them: the dataset decides."""

from typing import Any

import torch
from lerobot.utils.constants import ACTION
from torch import Tensor, nn
from torch.nn import functional as F

from apprentice.common.errors import UserError
from apprentice.data.batch import ACTION_COUNT, ACTION_IS_PAD, Batch
from apprentice.experts.base import ActionDecoder

AUTO, BINARY, CONTINUOUS = GRIPPERS = ("auto", "binary", "continuous")
BETWEEN = 1e-3  # share of the variance that values between the two ends, or rounding, may take away


class SeerDecoder(ActionDecoder):
    """Latents to actions: two shared layers, an arm head (tanh) and, for a binary gripper, a gripper head (sigmoid).

    A "binary" gripper is the action's last entry, decoded to -1 or +1 and nothing between: simulators take it as a
    command, and a half-closed one drops what it holds. With "continuous" all entries are alike, wherever grippers are.
    """

    def __init__(self, latent_dim: int, action_dim: int, gripper_weight: float, gripper: str = BINARY):
        super().__init__()
        self.settings = {
            "latent_dim": latent_dim,
            "action_dim": action_dim,
            "gripper_weight": gripper_weight,
            "gripper": gripper,
        }
        self.gripper_weight = gripper_weight
        half = latent_dim // 2
        self.trunk = nn.Sequential(nn.Linear(latent_dim, half), nn.ReLU(), nn.Linear(half, half), nn.ReLU())
        self.arm = nn.Linear(half, action_dim - (gripper == BINARY))
        self.gripper = nn.Linear(half, 1) if gripper == BINARY else None

    def heads(self, latents: Tensor) -> tuple[Tensor, Tensor | None]:
        """Map latents (B, T, D) to actions in (-1, 1), float32, and the logit of a binary gripper's +1 (B, T).

        The actions are (B, T, A-1), without the binary gripper, or (B, T, A) and there is no logit.
        """
        hidden = self.trunk(latents)
        arm = self.arm(hidden).float().tanh()
        return arm, None if self.gripper is None else self.gripper(hidden).float().squeeze(-1)

    def decode(self, latents: Tensor) -> Tensor:
        arm, logit = self.heads(latents)
        return arm if logit is None else torch.cat([arm, torch.where(logit > 0, 1.0, -1.0).unsqueeze(-1)], dim=-1)

    def mix(self, actions: Tensor, earlier: Tensor, weights: Tensor) -> Tensor:
        """What is continuous between both plans, a binary gripper from the one that weighs more."""
        mixed = super().mix(actions, earlier, weights)
        if self.gripper is None:
            return mixed
        return torch.cat([mixed[..., :-1], super().mix(actions, earlier, weights.round())[..., -1:]], dim=-1)

    def loss(self, latents: Tensor, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Smooth-L1 of what is continuous plus `gripper_weight` times cross-entropy of a binary gripper.

        Source: VITA-VLA, arXiv 2510.09607.
        """
        arm, logit = self.heads(latents)
        target = batch[ACTION]
        inside = ~batch[ACTION_IS_PAD] if ACTION_IS_PAD in batch else target.new_ones(target.shape[:2])
        total = batch.get(ACTION_COUNT) or inside.sum().clamp(min=1)
        arm_losses = F.smooth_l1_loss(arm, target[..., : arm.shape[-1]], reduction="none").sum(-1) / max(
            1, arm.shape[-1]
        )
        loss = (arm_losses * inside).sum() / total
        parts = {"arm_loss": loss.item()}
        if logit is not None:
            closes = ((target[..., -1] + 1) / 2).clamp(0, 1)
            gripper_losses = F.binary_cross_entropy_with_logits(logit, closes, reduction="none")
            gripper_loss = (gripper_losses * inside).sum() / total
            loss, parts["gripper_loss"] = loss + self.gripper_weight * gripper_loss, gripper_loss.item()
        return loss, parts


def gripper_of(choice: str, stats: dict[str, dict[str, Any]] | None) -> str:
    """What a configuration's `gripper` means for a dataset with these statistics: "binary" or "continuous".

    Values in [low, high] with mean m have at most the variance (high - m)(m - low), and reach it only if each is one
    of the two ends (Bhatia and Davis 2000, "A better bound on the variance"). "auto" is "binary" if the action's last
    entry reaches it up to a share of `BETWEEN`: then at most that share of all frames has a gripper halfway.

    Raises UserError for another choice, and for "auto" without statistics.
    """
    if choice not in GRIPPERS:
        raise UserError(f"expected gripper {', '.join(GRIPPERS)}, found {choice!r}; fix: --policy.gripper=auto")
    if choice != AUTO:
        return choice
    known = (stats or {}).get(ACTION, {})
    if not {"min", "max", "mean", "std"} <= set(known):
        raise UserError(
            "expected a dataset's statistics of the action to decide whether its gripper has two values, found none; "
            "fix: --policy.gripper=binary if the last action entry has two values, else --policy.gripper=continuous"
        )
    low, high, mean, deviation = (float(known[name][-1]) for name in ("min", "max", "mean", "std"))
    return BINARY if deviation**2 >= (1 - BETWEEN) * (high - mean) * (mean - low) else CONTINUOUS
