"""Processors of Seer: LeRobot's usual ones. Images stay in [0, 1]; the model scales them itself."""

from typing import Any

from lerobot.processor import PolicyAction, PolicyProcessorPipeline, make_default_pre_post_processors
from torch import Tensor

from apprentice.common.camera_size import with_camera_sizes
from apprentice.experts.seer.configuration_seer import SeerConfig


def make_seer_pre_post_processors(
    config: SeerConfig, dataset_stats: dict[str, dict[str, Tensor]] | None = None
) -> tuple[
    PolicyProcessorPipeline[dict[str, Any], dict[str, Any]],
    PolicyProcessorPipeline[PolicyAction, PolicyAction],
]:
    """Build the processors that normalise observations and un-normalise actions with a dataset's statistics."""
    before, after = make_default_pre_post_processors(config, dataset_stats, normalizer_device=config.device)
    return with_camera_sizes(before, config.input_features), after
