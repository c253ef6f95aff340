"""Turn a checkpoint of the public Seer code into a checkpoint folder of our policy `seer_full`.

    apprentice import-seer libero_finetune/39.pth --out experts/seer --recorded libero

The file holds what was trained: its two frozen encoders are usually not in it and come from `--mae` and `--clip`.
Sizes are read off the tensors. Every tensor of the file is mapped or named as unused, every one of ours is filled.
"""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature
from torch import Tensor

from apprentice.common.errors import UserError
from apprentice.common.files import replacing, write_json
from apprentice.data.contract import Contract
from apprentice.experts.seer.decoder import BINARY
from apprentice.experts.seer_full.configuration_seer_full import SeerFullConfig
from apprentice.experts.seer_full.modeling_seer_full import SeerFullPolicy
from apprentice.experts.seer_full.names import matching, renamed, why_unused
from apprentice.experts.seer_full.processor_seer_full import make_seer_full_pre_post_processors

Weights = dict[str, Tensor]

HEADS = {384: 12, 1024: 16}  # by width: no tensor tells them
FROZEN = {"steps.vision.": "vision_encoder.", "steps.text.": "clip_model."}  # ours: theirs
REPORT = "imported.json"


@dataclass(frozen=True)
class Recording:
    """How the data were recorded that the public weights were trained on, in LeRobot's terms; no tensor tells it."""

    cameras: dict[str, int]  # side of the images (px)
    config: dict[str, Any]
    contract: Contract


RECORDINGS = {
    "libero": Recording(
        {"observation.images.image": 128, "observation.images.image2": 128},
        {"gripper_states": 2, "euler_columns": (3, 6), "turn_images": True, "temporal_ensemble_coeff": 0.01},
        Contract(
            rotation=180,
            state=(
                *("eef_x m", "eef_y m", "eef_z m", "eef_rx rad", "eef_ry rad", "eef_rz rad"),
                *("finger_left m", "finger_right m"),
            ),
            action=("dx 0.05m", "dy 0.05m", "dz 0.05m", "drx 0.5rad", "dry 0.5rad", "drz 0.5rad", "gripper"),
            gripper="closes",
            fps=20,
        ),
    ),
    "calvin": Recording(
        {"observation.images.rgb_static": 200, "observation.images.rgb_gripper": 84},
        {"gripper_states": 1, "temporal_ensemble_coeff": None},
        Contract(
            rotation=0,
            state=("tcp_x m", "tcp_y m", "tcp_z m", "tcp_roll rad", "tcp_pitch rad", "tcp_yaw rad", "gripper"),
            action=("dx 0.02m", "dy 0.02m", "dz 0.02m", "drx 0.05rad", "dry 0.05rad", "drz 0.05rad", "gripper"),
            gripper="opens",
            fps=30,
        ),
    ),
}


def import_seer(
    checkpoint: Path,
    out: Path,
    mae: str = "facebook/vit-mae-base",
    clip: str = "openai/clip-vit-base-patch32",
    recorded: Literal["libero", "calvin"] = "libero",
) -> dict[str, Any]:
    """Write `out`, which `--expert` accepts, and print what became of each tensor.

    Args:
        checkpoint: the .pth file that the public code saved.
        out: folder to write.
        mae: folder or hub name of the ViT-MAE, or the .pth file that the public code uses; not read if the checkpoint
            holds the encoder.
        clip: folder or hub name of CLIP: its tokenizer and, unless the checkpoint holds them, its text weights.
        recorded: conventions of the data that the weights were trained on: cameras, gripper, orientation of the images.

    Returns:
        What `imported.json` in the folder says: "mapped" (their name: our names), "unused" (their name: why),
        "elsewhere" (part of ours: where its weights come from).

    Raises UserError if the file is none, has other tensors than those that the public code has, or lacks some.
    """
    theirs = read(checkpoint)
    if mae.endswith((".pth", ".pt")) and not any(name.startswith("vision_encoder.") for name in theirs):
        theirs |= {f"vision_encoder.{name}": tensor for name, tensor in read(Path(mae)).items()}
    policy = fresh_policy(theirs, mae, clip, RECORDINGS[recorded])
    mapped, unused = fill(policy, theirs, checkpoint)
    elsewhere = {
        ours: source
        for (ours, part), source in zip(FROZEN.items(), (mae, clip), strict=True)
        if not any(name.startswith(part) for name in mapped)
    }
    report = {"mapped": mapped, "unused": unused, "elsewhere": elsewhere}
    processors = make_seer_full_pre_post_processors(policy.config, {})
    with replacing(out) as folder:
        for part in (policy, *processors):
            part.save_pretrained(folder)
        write_json(folder / REPORT, report)
    print(f"{len(mapped)} tensors mapped, {len(unused)} unused:")
    print(*(f"  {name}: {reason}" for name, reason in unused.items()), sep="\n")
    print(*(f"{part}* comes from {source}" for part, source in elsewhere.items()), f"written: {out}", sep="\n")
    return report


def read(path: Path) -> Weights:
    """The weights in a .pth file, under the names of the module. Raises UserError if there are none."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise UserError(
            f"expected a file of tensors saved with torch.save at {path}, found: {str(error).splitlines()[0]}; "
            "fix: check the path; if it holds other objects, save its model_state_dict alone"
        ) from error
    for key in ("model_state_dict", "model"):  # the public code; the MAE's authors
        content = content.get(key, content) if isinstance(content, dict) else {}
    weights = {str(k).removeprefix("module."): v.float() for k, v in content.items() if isinstance(v, Tensor)}
    if not weights:
        raise UserError(f"expected tensors under model_state_dict in {path}, found none; fix: check the path")
    return weights


def fresh_policy(theirs: Weights, mae: str, clip: str, recording: Recording) -> SeerFullPolicy:
    """A policy of the sizes of `theirs`, its encoders filled from `mae` and `clip` where `theirs` lacks them."""
    config = configuration(theirs, recording)
    config.mae, config.clip = (None if "vision_encoder.cls_token" in theirs else mae), clip
    policy = SeerFullPolicy(config)
    config.mae = mae  # from now on the encoder is frozen, wherever it came from
    policy.contract = recording.contract.having(cameras=tuple(recording.cameras))
    return policy


def configuration(theirs: Weights, recording: Recording) -> SeerFullConfig:
    """The configuration that the shapes of their tensors imply. Raises UserError if a telling one is missing."""
    try:
        width, features = theirs["text_projector.weight"].shape
        patch = round((theirs["image_decoder_pred.weight"].shape[0] / 3) ** 0.5)
        sizes = {
            "width": width,
            "heads": HEADS[width],
            "layers": count(theirs, "transformer_backbone.h.#.ln_1.weight"),
            "n_obs_steps": theirs["transformer_backbone_position_embedding"].shape[1],
            "chunk_size": theirs["action_pred_token"].shape[2],
            "resampler_tokens": theirs["perceiver_resampler.latents"].shape[0],
            "resampler_layers": count(theirs, "perceiver_resampler.layers.#.0.to_q.weight"),
            "vision_width": theirs["image_primary_projector.weight"].shape[1],
            "text_features": features,
            "patch_size": patch,
            "foresight_layers": count(theirs, "image_decoder.#.norm1.weight"),
        }
        arm = theirs["arm_state_encoder.weight"].shape[1]
        action = theirs["arm_action_decoder.0.weight"].shape[0] + 1
    except KeyError as error:
        raise UserError(
            f"expected a checkpoint of the public Seer code that acts, of width {' or '.join(map(str, HEADS))}, "
            f"found none with {error}; fix: name a checkpoint trained with --action_pred_steps"
        ) from error
    if "obs_tokens" in theirs:
        sizes["foresight_tokens"] = theirs["obs_tokens"].shape[2] // len(recording.cameras)
    else:
        sizes["foresight_steps"] = 0
    if "vision_encoder.pos_embed" in theirs:
        sizes["image_size"] = patch * round((theirs["vision_encoder.pos_embed"].shape[1] - 1) ** 0.5)
        sizes["vision_layers"] = count(theirs, "vision_encoder.blocks.#.norm1.weight")
        sizes["vision_heads"] = sizes["vision_width"] // 64
    inputs = {key: PolicyFeature(FeatureType.VISUAL, (3, side, side)) for key, side in recording.cameras.items()}
    state = arm + recording.config["gripper_states"]
    return SeerFullConfig(
        input_features={**inputs, "observation.state": PolicyFeature(FeatureType.STATE, (state,))},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (action,))},
        normalization_mapping=dict.fromkeys(("VISUAL", "STATE", "ACTION"), NormalizationMode.IDENTITY),
        device="cpu",
        gripper=BINARY,
        **recording.config,
        **sizes,
    )


def count(theirs: Weights, pattern: str) -> int:
    """How many of their names fit a pattern of `names`."""
    return sum(matching(name, pattern) is not None for name in theirs)


@torch.no_grad()
def fill(policy: SeerFullPolicy, theirs: Weights, source: Path) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Copy their tensors into `policy`; return what was mapped (their name: our names) and what was not (and why)."""
    ours, problems = policy.state_dict(), []
    mapped: dict[str, list[str]] = {}
    unused: dict[str, str] = {}
    for name, tensor in theirs.items():
        parts = dict(renamed(name, tensor))
        reason = why_unused(name)
        if reason is None and parts and policy.painter is None and all(p.startswith("painter.") for p in parts):
            reason = "the file has no foresight tokens"
        if reason is not None:
            unused[name] = reason
            continue
        for part, value in parts.items():
            if part in ours and ours[part].squeeze().shape == value.squeeze().shape:
                ours[part].copy_(value.reshape(ours[part].shape))
            else:
                expected = tuple(ours[part].shape) if part in ours else "no such tensor"
                problems.append(f"{name} {tuple(tensor.shape)} (for {part}: {expected})")
        if not parts:
            problems.append(f"{name} {tuple(tensor.shape)} (unknown)")
        mapped[name] = list(parts)
    filled = {part for parts in mapped.values() for part in parts}
    lacking = [part for part in ours if part not in filled and not part.startswith(tuple(FROZEN))]
    for part, prefix in FROZEN.items():
        if any(name.startswith(prefix) for name in mapped):
            lacking += [name for name in ours if name.startswith(part) and name not in filled]
    if problems or lacking:
        raise UserError(
            f"expected the tensors of the public Seer code in {source}, found {'; '.join(problems) or 'too few'}; "
            f"missing: {', '.join(lacking) or 'none'}; fix: convert a checkpoint of the public code, not of a variant"
        )
    return mapped, unused
