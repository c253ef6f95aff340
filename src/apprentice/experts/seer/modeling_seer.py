"""Seer, small: two cameras, the robot's state and an instruction in; a chunk of actions out.

Shaped after Seer (Tian et al. 2024, arXiv 2412.15109) as VITA-VLA uses it (arXiv 2510.09607): visual tokens, one
state token, one instruction token and T learned action queries go through a transformer; what comes out at the
queries are the *latents* (B, T, D), and a small decoder with an arm head and a gripper head turns them into actions.
Smaller and simpler than Seer: a convolutional network takes the place of the frozen MAE ViT-B and its resampler,
hashed words that of the frozen CLIP text encoder (so nothing is downloaded), and no future frames are predicted.
"""

import re
import zlib
from collections import deque
from typing import Any

import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import ACTION, OBS_STATE
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from apprentice.data.contract import Contract
from apprentice.experts.base import ACTIONS, ActionDecoder, Batch
from apprentice.experts.contracted import Contracted
from apprentice.experts.realtime import RealTime
from apprentice.experts.seer.configuration_seer import GRIPPER_STATES, IMAGE_STRIDE, SeerConfig

VOCABULARY = 4096  # word hashes
MAX_WORDS = 16


class SeerDecoder(ActionDecoder):
    """Latents to actions: two shared layers, an arm head (tanh) and a gripper head (sigmoid).

    The action's last entry is the gripper's. It is decoded to -1 (open) or +1 (close), nothing between: simulators
    and most grippers take it as a command, and a half-closed one drops what it holds.
    """

    def __init__(self, latent_dim: int, action_dim: int, gripper_weight: float):
        super().__init__()
        self.settings = {
            "latent_dim": latent_dim,
            "action_dim": action_dim,
            "gripper_weight": gripper_weight,
        }
        self.gripper_weight = gripper_weight
        half = latent_dim // 2
        self.trunk = nn.Sequential(nn.Linear(latent_dim, half), nn.ReLU(), nn.Linear(half, half), nn.ReLU())
        self.arm = nn.Linear(half, action_dim - 1)
        self.gripper = nn.Linear(half, 1)

    def heads(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Map latents (B, T, D) to arm actions in (-1, 1) (B, T, A-1) and the logit of closing (B, T), float32."""
        hidden = self.trunk(latents)
        return self.arm(hidden).float().tanh(), self.gripper(hidden).float().squeeze(-1)

    def decode(self, latents: Tensor) -> Tensor:
        arm, logit = self.heads(latents)
        gripper = torch.where(logit > 0, 1.0, -1.0)
        return torch.cat([arm, gripper.unsqueeze(-1)], dim=-1)

    def mix(self, actions: Tensor, earlier: Tensor, weights: Tensor) -> Tensor:
        """The arm's actions between both plans, the gripper's from the one that weighs more."""
        mixed = super().mix(actions, earlier, weights)
        return torch.cat([mixed[..., :-1], super().mix(actions, earlier, weights.round())[..., -1:]], dim=-1)

    def loss(self, latents: Tensor, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Smooth-L1 of the arm plus `gripper_weight` times cross-entropy of the gripper (PAPER: arXiv 2510.09607)."""
        arm, logit = self.heads(latents)
        target = batch[ACTION]
        closes = ((target[..., -1] + 1) / 2).clamp(0, 1)
        arm_losses = F.smooth_l1_loss(arm, target[..., :-1], reduction="none").mean(-1)
        gripper_losses = F.binary_cross_entropy_with_logits(logit, closes, reduction="none")
        counts = ~batch["action_is_pad"] if "action_is_pad" in batch else torch.ones_like(closes, dtype=torch.bool)
        total = batch.get(ACTIONS) or counts.sum().clamp(min=1)
        arm_loss = (arm_losses * counts).sum() / total
        gripper_loss = (gripper_losses * counts).sum() / total
        loss = arm_loss + self.gripper_weight * gripper_loss
        return loss, {"arm_loss": arm_loss.item(), "gripper_loss": gripper_loss.item()}


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a skip connection, (N, C, H, W) to the same."""

    def __init__(self, channels: int):
        super().__init__()
        self.body = nn.Sequential(
            convolution(channels, channels, 3, 1), convolution(channels, channels, 3, 1, activate=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.body(x))


def convolution(inputs: int, outputs: int, kernel: int, stride: int, activate: bool = True) -> nn.Sequential:
    """Convolution, group norm (a robot's batch is one, batch norm would not do) and ReLU."""
    padding = (kernel - stride + 1) // 2
    layers = [nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False), nn.GroupNorm(8, outputs)]
    return nn.Sequential(*layers, *([nn.ReLU()] if activate else []))


class VisualEncoder(nn.Sequential):
    """Images in [-1, 1] (N, 3, H, W) to a map of visual tokens (N, D, H/32, W/32)."""

    def __init__(self, width: int):
        super().__init__(
            convolution(3, 32, 8, 4),
            convolution(32, 64, 3, 2),
            ResidualBlock(64),
            convolution(64, 128, 3, 2),
            ResidualBlock(128),
            convolution(128, width, 3, 2),
        )


class InstructionEncoder(nn.Module):
    """Sentences to one token each (B, D), through hashed words with their positions."""

    def __init__(self, width: int):
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, 64, padding_idx=0)
        self.positions = nn.Parameter(0.1 * torch.randn(MAX_WORDS, 64))
        self.mix = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, sentences: list[str]) -> Tensor:
        ids = torch.tensor([hash_words(sentence) for sentence in sentences], device=self.positions.device)
        known = (ids > 0).unsqueeze(-1)
        features = self.mix(self.words(ids) + self.positions) * known
        return features.sum(1) / known.sum(1).clamp(min=1)


def hash_words(sentence: str) -> list[int]:
    """Turn a sentence into MAX_WORDS numbers below VOCABULARY, the same on every machine; 0 is "no word"."""
    words = re.findall(r"[a-z0-9]+", sentence.lower())[:MAX_WORDS]
    ids = [1 + zlib.crc32(word.encode()) % (VOCABULARY - 1) for word in words]
    return ids + [0] * (MAX_WORDS - len(ids))


def augment(images: Tensor, shift: int, jitter: float) -> Tensor:
    """Shift each image (N, 3, H, W) by up to `shift` px, edges repeated, and change its brightness and contrast."""
    count, _, height, width = images.shape
    device = images.device

    def shifted(side: int) -> Tensor:
        offsets = torch.randint(-shift, shift + 1, (count, 1), device=device)
        return (torch.arange(side, device=device) + offsets).clamp(0, side - 1)

    rows, columns = shifted(height), shifted(width)
    each = torch.arange(count, device=device)[:, None, None]
    moved = images.permute(0, 2, 3, 1)[each, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    contrast, brightness = (jitter * (2 * torch.rand(2, count, 1, 1, 1, device=device) - 1)).unbind()
    return (moved - 0.5) * (1 + contrast) + 0.5 + 0.5 * brightness


class Block(nn.TransformerEncoderLayer):
    """PyTorch's layer. Its fused inference reads weights past adapters (LoRA), so with adapters it is left out."""

    def forward(self, src: Tensor) -> Tensor:  # type: ignore[override]
        if not any(hasattr(module, "base_layer") for module in self.modules()):
            return super().forward(src)
        src = src + self._sa_block(self.norm1(src), None, None)
        return src + self._ff_block(self.norm2(src))


class SeerPolicy(RealTime, Contracted, PreTrainedPolicy):
    """LeRobot policy `seer`. Batches are normalised by its processors; images (B, 3, H, W) are in [0, 1].

    The contract of the dataset that it was trained on goes into its checkpoint.
    """

    config_class = SeerConfig
    name = "seer"
    _fsdp_wrap_modules = ("Block",)

    def __init__(self, config: SeerConfig, dataset_meta: Any = None, **kwargs: Any):
        super().__init__(config)
        config.validate_features()
        self.contract = Contract.of_dataset(dataset_meta.root) if dataset_meta else Contract()
        self.config: SeerConfig = config
        assert config.robot_state_feature and config.action_feature
        width = config.width
        _, height, breadth = next(iter(config.image_features.values())).shape
        tokens = (height // IMAGE_STRIDE) * (breadth // IMAGE_STRIDE)

        self.visual = VisualEncoder(width)
        self.places = nn.Parameter(0.02 * torch.randn(len(config.image_features), tokens, width))
        self.arm_state = nn.Linear(config.robot_state_feature.shape[0] - GRIPPER_STATES, width)
        self.gripper_state = nn.Linear(GRIPPER_STATES, width)
        self.state = nn.Linear(2 * width, width)
        self.instruction = InstructionEncoder(width)
        self.queries = nn.Parameter(0.02 * torch.randn(config.chunk_size, width))
        self.blocks = nn.Sequential(
            *[
                Block(width, config.heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
                for _ in range(config.layers)
            ]
        )
        self.norm = nn.LayerNorm(width)
        self.decoder = SeerDecoder(width, config.action_feature.shape[0], config.gripper_weight)
        self.reset()

    def get_optim_params(self) -> Any:
        return self.parameters()

    def _get_default_peft_targets(self) -> dict[str, Any]:
        """For `lerobot-train --peft.*`: adapters in the transformer; what reads the state and what acts train whole."""
        return {
            "target_modules": r"blocks\.\d+\.linear[12]",
            "modules_to_save": ["arm_state", "gripper_state", "state", "decoder"],
        }

    def reset(self) -> None:
        self._queue: deque[Tensor] = deque(maxlen=self.config.n_action_steps)

    def latents(self, batch: Batch) -> Tensor:
        """Encode a normalised batch: what the decoder consumes (B, T, D)."""
        images = torch.stack([batch[key] for key in self.config.image_features], dim=1)
        state = batch[OBS_STATE]
        size, cameras = images.shape[:2]
        flat = images.flatten(0, 1)
        if self.training:
            flat = augment(flat, self.config.shift, self.config.jitter)
            state = state + self.config.state_noise * torch.randn_like(state)
        features = self.visual((2 * flat - 1).contiguous(memory_format=torch.channels_last))
        seen = features.flatten(2).transpose(1, 2).reshape(size, cameras, -1, self.config.width) + self.places
        arm, gripper = state[:, :-GRIPPER_STATES], state[:, -GRIPPER_STATES:]
        felt = self.state(torch.cat([self.arm_state(arm), self.gripper_state(gripper)], dim=-1))
        told = self.instruction(batch["task"])
        queries = self.queries.expand(size, -1, -1)
        sequence = torch.cat([seen.flatten(1, 2), felt[:, None], told[:, None], queries], dim=1)
        with sdpa_kernel(SDPBackend.MATH):  # so few tokens: on a CPU the fused kernel's backward takes twice as long
            return self.norm(self.blocks(sequence)[:, -self.config.chunk_size :])

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        return self.decoder.loss(self.latents(batch), batch)

    @torch.no_grad()
    def predict_action_chunk(self, batch: Batch, **kwargs: Any) -> Tensor:
        """Predict normalised actions (B, T, A)."""
        self.eval()
        return self.continued(self.decoder.decode(self.latents(batch)), **kwargs)

    @torch.no_grad()
    def select_action(self, batch: Batch, **kwargs: Any) -> Tensor:
        """Give the next normalised action (B, A), looking again every `n_action_steps`."""
        if not self._queue:
            chunk = self.predict_action_chunk(batch)[:, : self.config.n_action_steps]
            self._queue.extend(chunk.transpose(0, 1))
        return self._queue.popleft()
