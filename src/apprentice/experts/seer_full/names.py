"""What the public Seer code calls its tensors, and what we call them.

`#` stands for a number, `*` for the rest of a name. `{a,b,c}` on our side: the tensor is three of ours on top of each
other. `.T`: ours is its transpose. Axes of size 1 come and go.
"""

import re
from collections.abc import Iterator

import torch
from torch import Tensor

VISION, TEXT = "steps.vision.model", "steps.text.model"
VISION_LAYER, TEXT_LAYER = f"{VISION}.encoder.layer.#", f"{TEXT}.text_model.encoder.layers.#"

NAMES = {
    "text_projector.*": "steps.instruction.*",
    "arm_state_encoder.*": "steps.arm_state.*",
    "gripper_state_encoder.*": "steps.gripper_state.*",
    "state_projector.*": "steps.state.*",
    "perceiver_resampler.latents": "steps.resampler.latents",
    "perceiver_resampler.layers.#.0.norm_media.*": "steps.resampler.layers.#.norm_tokens.*",
    "perceiver_resampler.layers.#.0.norm_latents.*": "steps.resampler.layers.#.norm_latents.*",
    "perceiver_resampler.layers.#.0.to_q.*": "steps.resampler.layers.#.query.*",
    "perceiver_resampler.layers.#.0.to_kv.*": "steps.resampler.layers.#.key_value.*",
    "perceiver_resampler.layers.#.0.to_out.*": "steps.resampler.layers.#.out.*",
    "perceiver_resampler.layers.#.1.*": "steps.resampler.layers.#.mlp.*",
    "perceiver_resampler.norm.*": "steps.resampler.norm.*",
    "image_primary_projector.*": "steps.patches.0.*",
    "image_wrist_projector.*": "steps.patches.1.*",
    "cls_token_primary_projector.*": "steps.classes.0.*",
    "cls_token_wrist_projector.*": "steps.classes.1.*",
    "transformer_backbone_position_embedding": "backbone.positions",
    "obs_tokens": "backbone.foresight_tokens",
    "action_pred_token": "backbone.action_tokens",
    "embedding_layer_norm.*": "backbone.norm.*",
    "transformer_backbone.h.*": "backbone.blocks.*",
    "transformer_backbone.ln_f.*": "backbone.final_norm.*",
    "action_decoder.*": "decoder.trunk.*",
    "arm_action_decoder.0.*": "decoder.arm.*",
    "gripper_action_decoder.0.*": "decoder.gripper.*",
    "mask_token": "painter.mask_token",
    "image_decoder_obs_pred_projector.*": "painter.project.*",
    "image_decoder.#.norm1.*": "painter.blocks.#.norm1.*",
    "image_decoder.#.attn.qkv.*": "painter.blocks.#.self_attn.in_proj_*",
    "image_decoder.#.attn.proj.*": "painter.blocks.#.self_attn.out_proj.*",
    "image_decoder.#.norm2.*": "painter.blocks.#.norm2.*",
    "image_decoder.#.mlp.fc1.*": "painter.blocks.#.linear1.*",
    "image_decoder.#.mlp.fc2.*": "painter.blocks.#.linear2.*",
    "image_decoder_norm.*": "painter.norm.*",
    "image_decoder_pred.*": "painter.pixels.*",
    "vision_encoder.cls_token": f"{VISION}.embeddings.cls_token",
    "vision_encoder.pos_embed": f"{VISION}.embeddings.position_embeddings",
    "vision_encoder.patch_embed.proj.*": f"{VISION}.embeddings.patch_embeddings.projection.*",
    "vision_encoder.blocks.#.norm1.*": f"{VISION_LAYER}.layernorm_before.*",
    "vision_encoder.blocks.#.attn.qkv.*": f"{VISION_LAYER}.attention.attention.{{query,key,value}}.*",
    "vision_encoder.blocks.#.attn.proj.*": f"{VISION_LAYER}.attention.output.dense.*",
    "vision_encoder.blocks.#.norm2.*": f"{VISION_LAYER}.layernorm_after.*",
    "vision_encoder.blocks.#.mlp.fc1.*": f"{VISION_LAYER}.intermediate.dense.*",
    "vision_encoder.blocks.#.mlp.fc2.*": f"{VISION_LAYER}.output.dense.*",
    "vision_encoder.norm.*": f"{VISION}.layernorm.*",
    "clip_model.token_embedding.*": f"{TEXT}.text_model.embeddings.token_embedding.*",
    "clip_model.positional_embedding": f"{TEXT}.text_model.embeddings.position_embedding.weight",
    "clip_model.transformer.resblocks.#.ln_1.*": f"{TEXT_LAYER}.layer_norm1.*",
    "clip_model.transformer.resblocks.#.attn.in_proj_*": f"{TEXT_LAYER}.self_attn.{{q_proj,k_proj,v_proj}}.*",
    "clip_model.transformer.resblocks.#.attn.out_proj.*": f"{TEXT_LAYER}.self_attn.out_proj.*",
    "clip_model.transformer.resblocks.#.ln_2.*": f"{TEXT_LAYER}.layer_norm2.*",
    "clip_model.transformer.resblocks.#.mlp.c_fc.*": f"{TEXT_LAYER}.mlp.fc1.*",
    "clip_model.transformer.resblocks.#.mlp.c_proj.*": f"{TEXT_LAYER}.mlp.fc2.*",
    "clip_model.ln_final.*": f"{TEXT}.text_model.final_layer_norm.*",
    "clip_model.text_projection": f"{TEXT}.text_projection.weight.T",
}

UNUSED = {
    "action_pose_encoder.*": "the published forward pass does not read actions",
    "action_gripper_position_encoder.*": "the published forward pass does not read actions",
    "action_projector.*": "the published forward pass does not read actions",
    "recon_state_decoder.*": "the public code marks it as not used",
    "recon_arm_state_decoder.*": "the public code marks it as not used",
    "recon_gripper_state_decoder.*": "the public code marks it as not used",
    "attention_mask": "computed from the window",
    "image_decoder_position_embedding": "fixed sines and cosines, computed",
    "vision_encoder.decoder_*": "the MAE's own decoder",
    "vision_encoder.mask_token": "the MAE's own decoder",
    "clip_model.visual.*": "CLIP's image tower",
    "clip_model.logit_scale": "CLIP's contrastive loss",
}


def matching(name: str, pattern: str) -> tuple[str, ...] | None:
    """What `#` and `*` stand for where `name` fits `pattern`, else None."""
    found = re.fullmatch(re.escape(pattern).replace(r"\#", r"(\d+)").replace(r"\*", "(.+)"), name)
    return found and found.groups()


def why_unused(name: str) -> str | None:
    """The reason for which nothing of ours takes their tensor `name`, or None if that is not known."""
    return next((reason for pattern, reason in UNUSED.items() if matching(name, pattern) is not None), None)


def renamed(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Their tensor under our name, or as three under our names; nothing if the table does not have it."""
    for pattern, ours in NAMES.items():
        if (parts := matching(name, pattern)) is None:
            continue
        for part in parts:
            ours = re.sub(r"[#*]", part, ours, count=1)
        if ours.endswith(".T"):
            yield ours.removesuffix(".T"), tensor.T.contiguous()
        elif stacked := re.search(r"{(.+)}", ours):
            thirds = zip(stacked[1].split(","), torch.chunk(tensor, 3), strict=True)
            yield from ((ours.replace(stacked[0], which), third.clone()) for which, third in thirds)
        else:
            yield ours, tensor
        return
