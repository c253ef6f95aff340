"""Experts that read the past, taught through LeRobot's data loader: the expert sees it, the student does not."""

from pathlib import Path

import numpy as np
import torch
from lerobot.configs import FeatureType
from lerobot.datasets.factory import resolve_delta_timestamps
from lerobot.utils.feature_utils import dataset_to_policy_features
from tests.experts import zoo

from apprentice.data.batch import EXPERT_LATENTS
from apprentice.data.dataset import open_dataset
from apprentice.data.items import observed
from apprentice.policy.configuration_apprentice import ApprenticeConfig
from apprentice.policy.modeling_apprentice import ApprenticePolicy


def test_the_expert_sees_the_past_and_the_student_the_present(
    small_dataset: Path, small_vlm: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    dataset = open_dataset(small_dataset)
    features = dataset_to_policy_features(dataset.meta.features)
    config = ApprenticeConfig(
        vlm=str(small_vlm),
        expert=str(zoo.diffusion(tmp_path / "diffusion", small_dataset)),
        input_features={k: f for k, f in features.items() if f.type is not FeatureType.ACTION},
        output_features={k: f for k, f in features.items() if f.type is FeatureType.ACTION},
        device="cpu",
    )
    wanted = resolve_delta_timestamps(config, dataset.meta)
    assert wanted["observation.state"] == [-0.05, 0.0] and wanted["action"] == [k / 20 for k in range(-1, 7)]
    policy = ApprenticePolicy(config, dataset_stats=dataset.meta.stats, dataset_meta=dataset.meta).eval()
    index = np.array([0, 5, 20])
    both, present = observed(dataset, 2).batch(index), observed(dataset).batch(index)
    with torch.no_grad():
        cached = policy({**present, EXPERT_LATENTS: policy.expert.encode(both)})[0]
        torch.testing.assert_close(policy(both)[0], cached)
    config.stage = "finetune"
    assert config.observation_delta_indices is None
