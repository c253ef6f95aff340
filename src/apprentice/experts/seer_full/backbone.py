"""Seer's transformer over the steps of a window, and the encoder that makes a step's tokens.

    a step:  text 1 | state 1 | resampled R per camera | class 1 per camera || foresight per camera | action T
             \\____________________ seen by all ____________________________/  \\____ asking _________/

Every token sees what was observed up to its own step. What asks is seen by nobody, except that a step's action tokens
see its foresight tokens: actions follow from the future that the policy expects (inverse dynamics, arXiv 2412.15109).
"""

from math import pi
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GPT2Config
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

from apprentice.experts.seer_full.configuration_seer_full import SeerFullConfig
from apprentice.experts.seer_full.encoders import TextEncoder, VisionEncoder
from apprentice.experts.seer_full.resampler import PerceiverResampler


class StepEncoder(nn.Module):
    """What is observed at a step, as tokens."""

    def __init__(self, config: SeerFullConfig, vision: VisionEncoder, text: TextEncoder):
        super().__init__()
        assert config.robot_state_feature
        width, cameras = config.width, len(config.image_features)
        self.gripper_states, self.euler_columns = config.gripper_states, config.euler_columns
        self.vision, self.text = vision, text
        self.resampler = PerceiverResampler(config.vision_width, config.resampler_tokens, config.resampler_layers)
        self.patches = nn.ModuleList(nn.Linear(config.vision_width, width) for _ in range(cameras))
        self.classes = nn.ModuleList(nn.Linear(config.vision_width, width) for _ in range(cameras))
        self.instruction = nn.Linear(config.text_features, width)
        self.arm_state = nn.Linear(config.robot_state_feature.shape[0] - config.gripper_states, width)
        self.gripper_state = nn.Linear(2, width)
        self.state = nn.Linear(2 * width, width)

    def forward(self, images: Tensor, state: Tensor, instructions: list[str]) -> Tensor:
        """Map prepared images (B, S, cameras, 3, h, w), states (B, S, n) and B instructions to tokens (B, S, N, D)."""
        size, steps, cameras = images.shape[:3]
        seen = self.vision(images.flatten(0, 2)).unflatten(0, (size * steps, cameras))
        resampled = self.resampler(seen[:, :, 1:].flatten(0, 1)).unflatten(0, (size * steps, cameras))
        patches = [project(resampled[:, camera]) for camera, project in enumerate(self.patches)]
        classes = [project(seen[:, camera, :1]) for camera, project in enumerate(self.classes)]
        spoken = self.instruction(self.text(instructions)).repeat_interleave(steps, dim=0)[:, None]
        return torch.cat([spoken, self._state(state.flatten(0, 1))[:, None], *patches, *classes], dim=1).unflatten(
            0, (size, steps)
        )

    def _state(self, state: Tensor) -> Tensor:
        """Map states (N, n) to (N, D), arm and gripper apart, then together."""
        if self.euler_columns is not None:
            angles = slice(*self.euler_columns)
            state = torch.cat(
                [state[:, : angles.start], usual_angles(state[:, angles]), state[:, angles.stop :]], dim=1
            )
        arm, gripper = state[:, : -self.gripper_states], state[:, -self.gripper_states :]
        if self.gripper_states == 1:
            flag = (gripper > 0).to(state)
            gripper = torch.cat([1 - flag, flag], dim=1)
        return self.state(torch.cat([self.arm_state(arm), self.gripper_state(gripper)], dim=1))


def usual_angles(angles: Tensor) -> Tensor:
    """Euler angles (N, 3) about x, y, z (rad) of the same rotation in their usual ranges: -pi to pi, and a half of that
    for y. What SciPy's `from_euler("xyz", ...).as_euler("xyz")` yields, by which the public code loads LIBERO's states.
    """
    x, y, z = (torch.remainder(angle + pi, 2 * pi) - pi for angle in angles.unbind(1))
    turned = y.abs() > pi / 2  # then the same rotation is half a turn about x and z away, y from the other side
    half = turned.to(x.dtype) * pi
    x, z = (torch.remainder(angle + half + pi, 2 * pi) - pi for angle in (x, z))
    return torch.stack([x, torch.where(turned, y.sign() * pi - y, y), z], dim=1)


class Backbone(nn.Module):
    """GPT-2 blocks over the tokens of a window's steps, without GPT-2's positions: a step's tokens share one."""

    def __init__(self, config: SeerFullConfig):
        super().__init__()
        width = config.width
        self.foresight = len(config.image_features) * config.foresight_tokens if config.foresight_steps else 0
        self.foresight_tokens = nn.Parameter(0.02 * torch.randn(self.foresight, width)) if self.foresight else None
        self.action_tokens = nn.Parameter(0.02 * torch.randn(config.chunk_size, width))
        self.positions = nn.Parameter(0.02 * torch.randn(config.n_obs_steps, width))
        self.norm = nn.LayerNorm(width)
        sizes: dict[str, Any] = {"n_embd": width, "n_head": config.heads, "n_layer": config.layers}
        sizes |= {"attn_pdrop": config.dropout, "resid_pdrop": config.dropout, "attn_implementation": "sdpa"}
        blocks = GPT2Config(**sizes)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(GPT2Block(blocks, layer_idx=i) for i in range(config.layers))
        self.final_norm = nn.LayerNorm(width, eps=blocks.layer_norm_epsilon)

    def forward(self, observed: Tensor) -> tuple[Tensor, Tensor]:
        """Map observed tokens (B, S, N, D), S at most the window, to what comes out at the asking tokens.

        Returns:
            At the foresight tokens (B, S, cameras * foresight_tokens, D), empty without foresight, and at the action
            tokens (B, S, T, D): the latents.
        """
        size, steps, count, _ = observed.shape
        asking = (
            self.action_tokens
            if self.foresight_tokens is None
            else torch.cat([self.foresight_tokens, self.action_tokens])
        )
        tokens = torch.cat([observed, asking.expand(size, steps, -1, -1)], dim=2) + self.positions[:steps, None]
        hidden = self.dropout(self.norm(tokens.flatten(1, 2)))
        mask = window_mask(steps, count, self.foresight, len(self.action_tokens)).to(hidden.device)
        additive = torch.zeros_like(mask, dtype=hidden.dtype).masked_fill(~mask, torch.finfo(hidden.dtype).min)
        for block in self.blocks:
            hidden = block(hidden, attention_mask=additive[None, None])
        out = self.final_norm(hidden).unflatten(1, (steps, -1))
        return out[:, :, count : count + self.foresight], out[:, :, count + self.foresight :]


def window_mask(steps: int, observed: int, foresight: int, actions: int) -> Tensor:
    """Which token (row) sees which (column) in a window: bool (L, L), L = steps * (observed + foresight + actions)."""
    kind = torch.tensor([0] * observed + [1] * foresight + [2] * actions).repeat(steps)
    step = torch.arange(steps).repeat_interleave(observed + foresight + actions)
    past = step[:, None] >= step[None]
    own_foresight = (step[:, None] == step[None]) & (kind[:, None] == 2) & (kind[None] == 1)
    return (past & (kind[None] == 0)) | own_foresight
