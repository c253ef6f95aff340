"""Seer, small: two cameras, the robot's state and an instruction in; a chunk of actions out.

Shaped after Seer (Tian et al. 2024, arXiv 2412.15109) as VITA-VLA uses it (arXiv 2510.09607): visual tokens, one
state token, one instruction token and T learned action queries go through a transformer; what comes out at the
queries are the *latents* (B, T, D), and a small decoder with an arm head and a gripper head turns them into actions.
Smaller and simpler than Seer: a convolutional network takes the place of the frozen MAE ViT-B and its resampler,
hashed words that of the frozen CLIP text encoder (so nothing is downloaded), two layers that of its encoders of the
state, which are linear and together no more than one, and no future frames are predicted.
"""

import math
from collections import deque
from pathlib import Path
from typing import Any, Self

import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import OBS_STATE, POLICY_PREPROCESSOR_DEFAULT_NAME
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from apprentice.common.errors import UserError
from apprentice.data.batch import TASK, Batch
from apprentice.data.contract import Contract
from apprentice.data.noise import state_noise
from apprentice.experts.contracted import Contracted
from apprentice.experts.realtime import RealTime
from apprentice.experts.seer.configuration_seer import SeerConfig
from apprentice.experts.seer.decoder import SeerDecoder, gripper_of
from apprentice.experts.seer.instruction import InstructionEncoder


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
    """Images in [-1, 1] (N, 3, H, W) to a map of visual tokens (N, D, h, w), one for about 32 x 32 pixels."""

    def __init__(self, width: int):
        super().__init__(
            convolution(3, 32, 8, 4),
            convolution(32, 64, 3, 2),
            ResidualBlock(64),
            convolution(64, 128, 3, 2),
            ResidualBlock(128),
            convolution(128, width, 3, 2),
        )

    @staticmethod
    def tokens(height: int, width: int) -> int:
        """How many tokens h * w an image of this size (px) becomes."""
        return math.prod(-(-(side // 4) // 8) for side in (height, width))


def augment(images: Tensor, shift: int, jitter: float) -> Tensor:
    """Shift each image (N, 3, H, W) by up to `shift` px, edges repeated, and change its brightness and contrast."""
    count, _, height, width = images.shape
    padded = F.pad(images, (shift,) * 4, mode="replicate")
    corners = torch.randint(2 * shift + 1, (count, 2)).tolist()
    pairs = zip(padded, corners, strict=True)
    moved = torch.stack([image[:, top : top + height, left : left + width] for image, (top, left) in pairs])
    contrast, brightness = (jitter * (2 * torch.rand(2, count, 1, 1, 1, device=images.device) - 1)).unbind()
    return moved * (1 + contrast) + 0.5 * (brightness - contrast)  # contrast is relative to middle grey, 0.5


class Block(nn.TransformerEncoderLayer):
    """PyTorch's layer (B, n, D), for the `last` tokens alone: (B, last, D). All take part in attention.

    PyTorch's own `forward` would compute all tokens, and its fused inference reads weights past adapters (LoRA).
    """

    def forward(self, src: Tensor, last: int) -> Tensor:  # type: ignore[override]
        normed = self.norm1(src)
        src = src[:, -last:] + self.self_attn(normed[:, -last:], normed, normed, need_weights=False)[0]
        return src + self._ff_block(self.norm2(src))


class SeerPolicy(RealTime, Contracted, PreTrainedPolicy):
    """LeRobot policy `seer`. Batches are normalised by its processors; images (B, 3, H, W) are in [0, 1].

    The contract of the dataset that it was trained on goes into its checkpoint.
    """

    config_class = SeerConfig
    name = "seer"
    _fsdp_wrap_modules = ("Block",)

    state_std: Tensor | None

    def __init__(
        self,
        config: SeerConfig,
        dataset_stats: dict[str, dict[str, Any]] | None = None,
        dataset_meta: Any = None,
        **kwargs: Any,
    ):
        """Build a policy with random weights. A `config.gripper` of "auto" is replaced by what the dataset decides.

        Raises UserError if the features do not fit, or there is no dataset to decide.
        """
        super().__init__(config)
        config.validate_features()
        stats = dataset_stats or (dataset_meta.stats if dataset_meta else None) or {}
        config.gripper = gripper_of(config.gripper, stats)
        self.contract = Contract.of_dataset(dataset_meta.root) if dataset_meta else Contract()
        self.config: SeerConfig = config
        assert config.robot_state_feature and config.action_feature
        width = config.width

        self.visual = VisualEncoder(width)
        counts = [VisualEncoder.tokens(*feature.shape[1:]) for feature in config.image_features.values()]
        self.places = nn.ParameterList(0.02 * torch.randn(count, width) for count in counts)
        self.state = nn.Sequential(
            nn.Linear(config.robot_state_feature.shape[0], width), nn.ReLU(), nn.Linear(width, width)
        )
        # Only training needs it. What normalises the state has it too: a dataset's statistics, or a checkpoint's.
        std = torch.as_tensor(stats[OBS_STATE]["std"], dtype=torch.float32) if OBS_STATE in stats else None
        self.register_buffer("state_std", std, persistent=False)
        self.instruction = InstructionEncoder(width)
        self.queries = nn.Parameter(0.02 * torch.randn(config.chunk_size, width))
        self.blocks = nn.ModuleList(
            Block(width, config.heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(width)
        self.decoder = SeerDecoder(width, config.action_feature.shape[0], config.gripper_weight, config.gripper)
        self.reset()

    @classmethod
    def from_pretrained(cls, pretrained_name_or_path: str | Path, **kwargs: Any) -> Self:  # type: ignore[override]
        """Load a checkpoint, as LeRobot does; without `dataset_stats`, with the state's of its own processor."""
        policy: Self = super().from_pretrained(pretrained_name_or_path, **kwargs)
        if policy.state_std is None:
            for file in Path(pretrained_name_or_path).glob(f"{POLICY_PREPROCESSOR_DEFAULT_NAME}*.safetensors"):
                policy.state_std = load_file(file, device=str(policy.queries.device)).get(f"{OBS_STATE}.std")
        return policy

    def get_optim_params(self) -> Any:
        return self.parameters()

    def _get_default_peft_targets(self) -> dict[str, Any]:
        """For `lerobot-train --peft.*`: adapters in the transformer; what reads the state and what acts train whole."""
        return {
            "target_modules": r"blocks\.\d+\.linear[12]",
            "modules_to_save": ["state", "decoder"],
        }

    def reset(self) -> None:
        self._queue: deque[Tensor] = deque(maxlen=self.config.n_action_steps)

    def latents(self, batch: Batch) -> Tensor:
        """Encode a normalised batch: what the decoder consumes (B, T, D)."""
        state = batch[OBS_STATE]
        if self.training:
            state = state + self.noise() * torch.randn_like(state)
        instruction = self.instruction(batch[TASK])
        queries = self.queries.expand(len(state), -1, -1)
        tokens = torch.cat([*self.images(batch), self.state(state)[:, None], instruction[:, None], queries], dim=1)
        wanted = [tokens.shape[1]] * (len(self.blocks) - 1) + [self.config.chunk_size]  # only queries are read out
        with sdpa_kernel(SDPBackend.MATH):  # so few tokens: on a CPU the fused kernel's backward takes twice as long
            for block, last in zip(self.blocks, wanted, strict=True):
                tokens = block(tokens, last)
        return self.norm(tokens)

    def images(self, batch: Batch) -> list[Tensor]:
        """Encode each camera's images to visual tokens (B, n, D), cameras of one size together."""
        keys = list(self.config.image_features)
        encoded: dict[str, Tensor] = {}
        for size in dict.fromkeys(batch[key].shape for key in keys):
            alike = [key for key in keys if batch[key].shape == size]
            flat = torch.stack([batch[key] for key in alike], dim=1).flatten(0, 1)
            if self.training:
                flat = augment(flat, self.config.shift, self.config.jitter)
            features = self.visual((2 * flat - 1).contiguous(memory_format=torch.channels_last))
            tokens = features.flatten(2).transpose(1, 2).unflatten(0, (size[0], len(alike)))
            encoded |= dict(zip(alike, tokens.unbind(1), strict=True))
        return [encoded[key] + places for key, places in zip(keys, self.places, strict=True)]

    def noise(self) -> Tensor | float:
        """The standard deviation (S,) of training noise on the normalised state.

        Raises UserError if the state's units are known and its statistics are not.
        """
        millimetres, radians = self.config.position_noise_mm, self.config.angle_noise_rad
        if self.contract.state is None or not (millimetres or radians):
            return 0.0
        if self.state_std is None:
            raise UserError(
                "expected the training data's statistics of observation.state for noise in mm and rad, found none; "
                "fix: load the policy with its processors beside it or with dataset_stats, or set position_noise_mm "
                "and angle_noise_rad to 0"
            )
        return state_noise(self.contract.state, self.state_std, millimetres, radians)

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
