"""Processors of a published Seer."""

from typing import Any

from lerobot.processor import PolicyAction, PolicyProcessorPipeline, make_default_pre_post_processors
from torch import Tensor

from apprentice.experts.seer_full.configuration_seer_full import SeerFullConfig


def make_seer_full_pre_post_processors(
    config: SeerFullConfig, dataset_stats: dict[str, dict[str, Tensor]] | None = None
) -> tuple[
    PolicyProcessorPipeline[dict[str, Any], dict[str, Any]],
    PolicyProcessorPipeline[PolicyAction, PolicyAction],
]:
    """Build them. The policy resizes pictures itself, as the public code does."""
    return make_default_pre_post_processors(config, dataset_stats, normalizer_device=config.device)
