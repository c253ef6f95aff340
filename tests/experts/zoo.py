"""A small checkpoint of every kind of expert, with random weights and a dataset's statistics."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lerobot.configs import FeatureType
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.policies.multi_task_dit.configuration_multi_task_dit import MultiTaskDiTConfig
from lerobot.policies.vqbet.configuration_vqbet import VQBeTConfig
from lerobot.utils.feature_utils import dataset_to_policy_features
from tests import support
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from apprentice.data.dataset import open_dataset
from apprentice.experts.seer_full.configuration_seer_full import SeerFullConfig

EYES = {"pretrained_backbone_weights": None}
DENOISING: dict[str, Any] = {"horizon": 8, "n_action_steps": 4, "num_train_timesteps": 6}


def save(kind: type, folder: Path, root: Path, seed: int = 0, cameras: int = 2, **fields: Any) -> Path:
    """Write a checkpoint of a policy as `lerobot-train` would; `seed` also shifts its statistics."""
    torch.manual_seed(seed)
    meta = open_dataset(root).meta
    features = dataset_to_policy_features(meta.features)
    unseen = support.CAMERAS[cameras:]
    config = kind(
        **fields,
        device="cpu",
        input_features={k: f for k, f in features.items() if f.type is not FeatureType.ACTION and k not in unseen},
        output_features={k: f for k, f in features.items() if f.type is FeatureType.ACTION},
    )
    policy = get_policy_class(config.type)(config, dataset_stats=meta.stats)
    for parameter in policy.parameters():  # what starts at zero would hide a mistake
        parameter.data += 0.02 * torch.randn_like(parameter)
    if config.type == "vqbet":
        actions = torch.rand(16, sum(config.action_delta_indices[-1:]) + 2, 7)
        for _ in range(config.n_vqvae_training_steps):
            policy.vqbet.action_head.discretize(config.n_vqvae_training_steps, actions)
    policy.save_pretrained(folder)
    stats = {**meta.stats, "action": {k: v * (1 + seed) + 0.1 * seed for k, v in meta.stats["action"].items()}}
    for processor in make_pre_post_processors(config, dataset_stats=stats):
        processor.save_pretrained(folder)
    return folder


def seer_full(folder: Path, root: Path) -> Path:
    trunk = {"n_obs_steps": 3, "chunk_size": 2, "width": 32, "layers": 1, "heads": 2}
    vision = {"mae": None, "image_size": 32, "vision_width": 32, "vision_layers": 1, "vision_heads": 2}
    text = {"clip": None, "text_width": 16, "text_layers": 1, "text_heads": 2, "text_features": 16}
    ahead = {"foresight_tokens": 4, "foresight_layers": 1, "resampler_tokens": 2, "resampler_layers": 1}
    return save(SeerFullConfig, folder, root, **trunk, **vision, **text, **ahead)


def act(folder: Path, root: Path, seed: int = 0) -> Path:
    size = {"dim_model": 32, "n_heads": 2, "dim_feedforward": 32, "n_encoder_layers": 1, "use_vae": False}
    return save(ACTConfig, folder, root, seed, chunk_size=6, n_action_steps=6, **size, **EYES)


def diffusion(folder: Path, root: Path, steps: int = 2) -> Path:
    unet = {"down_dims": (16, 32), "diffusion_step_embed_dim": 16, "n_groups": 4, "spatial_softmax_num_keypoints": 4}
    return save(DiffusionConfig, folder, root, n_obs_steps=steps, **unet, **DENOISING, **EYES)


def vqbet(folder: Path, root: Path) -> Path:
    shape = {"n_obs_steps": 3, "n_action_pred_token": 2, "action_chunk_size": 4, "crop_shape": None}
    codes = {"n_vqvae_training_steps": 2, "vqvae_n_embed": 4, "vqvae_embedding_dim": 8, "vqvae_enc_hidden_dim": 8}
    gpt = {"gpt_input_dim": 16, "gpt_output_dim": 16, "gpt_hidden_dim": 16, "gpt_n_layer": 1, "gpt_n_head": 2}
    return save(VQBeTConfig, folder, root, cameras=1, bet_softmax_temperature=5.0, **shape, **codes, **gpt, **EYES)


def multi_task_dit(folder: Path, root: Path, **fields: Any) -> Path:
    clip = str(make_clip(folder / "clip"))
    size = {"hidden_dim": 16, "num_layers": 1, "num_heads": 2, "timestep_embed_dim": 8, "tokenizer_max_length": 16}
    names = {"vision_encoder_name": clip, "text_encoder_name": clip, "image_crop_shape": None}
    return save(MultiTaskDiTConfig, folder, root, **size, **names, **DENOISING, **fields)


def make_clip(folder: Path) -> Path:
    """A CLIP of one narrow layer on each side, and a tokenizer of the tasks' words."""
    torch.manual_seed(0)
    words = sorted({word for task in support.TASKS for word in task.split()})
    vocabulary = {word: number for number, word in enumerate(["<pad>", "<unk>", "<end>", *words])}
    width = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 2}
    text = {**width, **ends, "vocab_size": len(vocabulary), "max_position_embeddings": 16}
    config = CLIPConfig(text_config=text, vision_config={**width, "image_size": 64, "patch_size": 32})
    CLIPModel(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="<end>"
    ).save_pretrained(folder)
    return folder


def by_task(folder: Path, root: Path) -> Path:
    """Two ACTs of different weights and statistics."""
    for number in range(2):
        act(folder / f"act{number}", root, seed=number)
    (folder / "experts.yaml").write_text("".join(f"{task}: act{n}\n" for n, task in enumerate(support.TASKS)))
    return folder / "experts.yaml"


ZOO: dict[str, Callable[[Path, Path], Path]] = {
    "seer": lambda folder, root: support.make_expert(folder, open_dataset(root)),
    "seer_full": seer_full,
    "act": act,
    "act, one a task": by_task,
    "diffusion": diffusion,
    "diffusion, n_obs_steps=1": lambda folder, root: diffusion(folder, root, steps=1),
    "vqbet": vqbet,
    "multi_task_dit": multi_task_dit,
    "multi_task_dit, flow matching": lambda folder, root: multi_task_dit(
        folder, root, objective="flow_matching", num_integration_steps=4
    ),
}
