"""Seer behind the `ActionExpert` interface."""

from pathlib import Path

import torch
from torch import Tensor

from apprentice.common.adapters import load_config, load_policy, load_processors
from apprentice.data.batch import Batch
from apprentice.data.features import read_features
from apprentice.experts.base import ActionExpert, affine_of, scaled_images


class SeerExpert(ActionExpert):
    """A trained Seer with its own processors, whose statistics need not be those of the dataset at hand."""

    kind = "seer"

    def __init__(self, path: Path | str, device: torch.device):
        config = load_config(path)
        config.device = str(device)
        self.policy = load_policy(path, config, strict=True)
        self.preprocessor, self.postprocessor = load_processors(path, config)
        assert config.input_features and config.action_feature
        self.inputs = {key: tuple(feature.shape) for key, feature in read_features(config.input_features).items()}
        self.horizon, self.latent_dim = config.chunk_size, config.width
        self.action_dim = config.action_feature.shape[0]
        self.decoder = self.policy.decoder
        self.normalisations()  # for its errors

    @torch.no_grad()
    def encode(self, batch: Batch) -> Tensor:
        return self.policy.latents(self.preprocessor(scaled_images(batch)))

    def action_affine(self) -> tuple[Tensor, Tensor]:
        return affine_of(self.postprocessor, self.action_dim)
