"""The student's processors: LeRobot's own steps, with the identity for a normalisation (the student does its own)."""

from typing import Any

from lerobot.processor import (
    AddBatchDimensionProcessorStep,
    DeviceProcessorStep,
    NormalizerProcessorStep,
    PolicyAction,
    PolicyProcessorPipeline,
    RenameObservationsProcessorStep,
    UnnormalizerProcessorStep,
    policy_action_to_transition,
    transition_to_policy_action,
)
from lerobot.utils.constants import POLICY_POSTPROCESSOR_DEFAULT_NAME, POLICY_PREPROCESSOR_DEFAULT_NAME

from apprentice.common.camera_size import with_camera_sizes
from apprentice.policy.configuration_apprentice import ApprenticeConfig


def make_apprentice_pre_post_processors(
    config: ApprenticeConfig,
    dataset_stats: dict[str, Any] | None = None,
    dataset_meta: Any = None,
    rename: dict[str, str] | None = None,
) -> tuple[
    PolicyProcessorPipeline[dict[str, Any], dict[str, Any]],
    PolicyProcessorPipeline[PolicyAction, PolicyAction],
]:
    """Return the steps before and after the policy. LeRobot overrides the (un)normaliser by name, so both are there.

    Observations get the new names that `rename` has for them; pictures get the size that the student learned.
    """
    inputs, outputs = config.input_features or {}, config.output_features or {}
    mapping = config.normalization_mapping
    before: list[Any] = [
        RenameObservationsProcessorStep(rename_map=dict(rename or {})),
        AddBatchDimensionProcessorStep(),
        DeviceProcessorStep(device=config.device or "cpu"),
        NormalizerProcessorStep(features={**inputs, **outputs}, norm_map=mapping, stats=dataset_stats),
    ]
    after = [
        UnnormalizerProcessorStep(features=outputs, norm_map=mapping, stats=dataset_stats),
        DeviceProcessorStep(device="cpu"),
    ]
    return (
        with_camera_sizes(
            PolicyProcessorPipeline(steps=before, name=POLICY_PREPROCESSOR_DEFAULT_NAME), inputs, config.resize
        ),
        PolicyProcessorPipeline(
            steps=after,
            name=POLICY_POSTPROCESSOR_DEFAULT_NAME,
            to_transition=policy_action_to_transition,
            to_output=transition_to_policy_action,
        ),
    )
