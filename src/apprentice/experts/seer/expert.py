"""Seer behind the `ActionExpert` interface."""

from pathlib import Path
from typing import Any

import torch
from lerobot.configs import NormalizationMode, PreTrainedConfig
from lerobot.policies.factory import make_pre_post_processors
from torch import Tensor

from apprentice.experts.base import ActionExpert, Batch
from apprentice.experts.seer.modeling_seer import SeerPolicy


class SeerExpert(ActionExpert):
    """A trained Seer with its own processors, whose statistics need not be those of the dataset at hand."""

    kind = "seer"
    policy_class: Any = SeerPolicy

    def __init__(self, path: Path | str, device: torch.device):
        config = PreTrainedConfig.from_pretrained(path, local_files_only=True)
        config.device = str(device)
        self.policy = self.policy_class.from_pretrained(path, config=config, strict=True)
        override = {"device_processor": {"device": str(device)}}
        self.preprocessor, self.postprocessor = make_pre_post_processors(
            config, str(path), preprocessor_overrides=override
        )
        assert config.input_features and config.action_feature
        self.inputs = {key: tuple(feature.shape) for key, feature in config.input_features.items()}
        self.horizon, self.latent_dim = config.chunk_size, config.width
        self.action_dim = config.action_feature.shape[0]
        self.decoder = self.policy.decoder

    @torch.no_grad()
    def encode(self, batch: Batch) -> Tensor:
        keys = self.policy.config.image_features
        images = {key: batch[key] / 255 for key in keys if batch[key].dtype == torch.uint8}
        return self.policy.latents(self.preprocessor({**batch, **images}))

    def action_affine(self) -> tuple[Tensor, Tensor]:
        if self.policy.config.normalization_mapping["ACTION"] is NormalizationMode.IDENTITY:
            return torch.zeros(self.action_dim), torch.ones(self.action_dim)
        stats = {k: torch.as_tensor(v) for k, v in self.postprocessor.steps[0].stats["action"].items()}
        span = stats["max"] - stats["min"]
        scale = torch.where(span == 0, 1e-8, span) / 2  # LeRobot's own way out where an action never changes
        return stats["min"] + scale, scale
