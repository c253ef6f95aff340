"""Small real things that tests are made of: a LeRobotDataset, an expert's checkpoint, a VLM folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs import FeatureType
from lerobot.datasets.factory import resolve_delta_timestamps
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.utils.feature_utils import dataset_to_policy_features
from torch.utils.data import default_collate

from apprentice.data.contract import Contract
from apprentice.data.dataset import open_dataset
from apprentice.experts.seer.configuration_seer import SeerConfig
from apprentice.experts.seer.modeling_seer import SeerPolicy
from apprentice.experts.seer.processor_seer import make_seer_pre_post_processors
from apprentice.policy.configuration_apprentice import ApprenticeConfig
from apprentice.policy.modeling_apprentice import ApprenticePolicy
from apprentice.vlm.nano.model import NanoConfig, build_model, build_processor
from apprentice.vlm.nano.tokenizer import train_tokenizer

CAMERAS = ("observation.images.image", "observation.images.image2")
TASKS = ("put the bowl on the stove", "turn on the stove")


def make_dataset(
    root: Path, video: bool = True, episodes: int = 3, size: int = 64, state: int = 8, scenes: int = 2
) -> Path:
    """Two cameras that see a square wander, a state that knows where it is, actions that push it.

    With two scenes each task has its own; with one, every episode shows the same, whatever its instruction.
    """
    image = {"dtype": "video" if video else "image", "shape": (size, size, 3), "names": ["height", "width", "channel"]}
    vector = {"observation.state": state, "action": 7}
    features = {key: image for key in CAMERAS}
    features |= {
        k: {"dtype": "float32", "shape": (n,), "names": [f"{k}{i}" for i in range(n)]} for k, n in vector.items()
    }
    dataset = LeRobotDataset.create("local/small", 20, features, root=root, robot_type="panda", use_videos=video)
    rng = np.random.default_rng(0)
    for episode in range(episodes):
        if scenes == 1:
            rng = np.random.default_rng(0)
        place = rng.uniform(10, size - 10, 2)
        for _ in range(11 + episode):
            action = rng.uniform(-1, 1, 7).astype(np.float32)
            action[6] = np.sign(action[6])
            place = np.clip(place + 4 * action[:2], 8, size - 8)
            picture = np.full((size, size, 3), 40 + 60 * (episode % scenes), dtype=np.uint8)
            row, column = place.astype(int)
            picture[row - 6 : row + 6, column - 6 : column + 6] = (220, 80, 40)
            proprioception = np.concatenate([place / size, rng.normal(size=state - 2)]).astype(np.float32)
            frame = {"observation.state": proprioception, "action": action, "task": TASKS[episode % 2]}
            dataset.add_frame(frame | {CAMERAS[0]: picture, CAMERAS[1]: picture[::-1].copy()})
        dataset.save_episode()
    dataset.finalize()
    Contract.for_libero(size=size, render="fast").save(root / "meta")
    return root


def make_expert(folder: Path, dataset: LeRobotDataset) -> Path:
    """A small Seer with random weights and the dataset's statistics."""
    torch.manual_seed(0)
    features = dataset_to_policy_features(dataset.meta.features)
    config = SeerConfig(
        width=48,
        layers=1,
        heads=2,
        chunk_size=4,
        n_action_steps=4,
        input_features={k: f for k, f in features.items() if f.type is not FeatureType.ACTION},
        output_features={k: f for k, f in features.items() if f.type is FeatureType.ACTION},
        device="cpu",
    )
    SeerPolicy(config, dataset_meta=dataset.meta).save_pretrained(folder)
    for processor in make_seer_pre_post_processors(config, dataset.meta.stats):
        processor.save_pretrained(folder)
    return folder


def make_vlm(folder: Path) -> Path:
    """A SmolVLM of two narrow layers with random weights, and its processor."""
    torch.manual_seed(0)
    config = NanoConfig(
        image=64, width=64, vision_layers=1, vision_mlp=64, text_layers=2, text_mlp=64, heads=2, kv_heads=1
    )
    tokenizer = train_tokenizer(TASKS, vocab_size=560)
    build_model(config, tokenizer).save_pretrained(folder)
    build_processor(config, tokenizer).save_pretrained(folder)
    return folder


def make_student(dataset: Path, expert: Path, vlm: Path, **fields: Any) -> ApprenticePolicy:
    """A fresh student of the expert, in eval mode."""
    torch.manual_seed(0)
    meta = open_dataset(dataset).meta
    features = dataset_to_policy_features(meta.features)
    config = ApprenticeConfig(
        vlm=str(vlm),
        expert=str(expert),
        input_features={k: f for k, f in features.items() if f.type is not FeatureType.ACTION},
        output_features={k: f for k, f in features.items() if f.type is FeatureType.ACTION},
        device="cpu",
        **fields,
    )
    return ApprenticePolicy(config, dataset_stats=meta.stats, dataset_meta=meta).eval()


def make_batch(root: Path, frames: Sequence[int]) -> dict[str, Any]:
    """Frames of a dataset as a raw batch of LeRobot's data loader."""
    dataset = open_dataset(root)
    items = [dataset[i] for i in frames]
    keys = [*CAMERAS, "observation.state"]
    return {key: torch.stack([item[key] for item in items]) for key in keys} | {"task": [i["task"] for i in items]}


def make_history(root: Path, config: ApprenticeConfig, frames: Sequence[int]) -> dict[str, Any]:
    """Frames of a dataset as LeRobot's data loader yields them to a student with a history."""
    meta = open_dataset(root).meta
    deltas = resolve_delta_timestamps(config, meta)
    dataset = LeRobotDataset(meta.repo_id, root=root, delta_timestamps=deltas, video_backend="pyav", return_uint8=True)
    return default_collate([dataset[i] for i in frames])
