"""Seer's equations once more, from raw tensors under the public code's names, and checkpoints full of noise to try.

Nothing here is shared with the package: plain functions of tensors, loops where the package has tricks.
"""

import math

import torch
from torch import Tensor

Weights = dict[str, Tensor]

HEADS = {384: 12, 1024: 16}
STEPS, CHUNK, QUERIES, FORESIGHT = 3, 3, 2, 4  # window, actions, resampler tokens, foresight tokens a picture
PATCH, SIDE = 16, 2  # px, patches along an image's side
VISION, TEXT, FEATURES, VOCABULARY = 128, 64, 48, 514
RESAMPLER_HEADS, PAINTER_HEADS = 8, 16


def linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm_shapes(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def block(name: str, width: int) -> dict[str, tuple[int, ...]]:
    """A vision transformer's block, as timm names it."""
    return {
        **norm_shapes(f"{name}.norm1", width),
        **linear(f"{name}.attn.qkv", width, 3 * width),
        **linear(f"{name}.attn.proj", width, width),
        **norm_shapes(f"{name}.norm2", width),
        **linear(f"{name}.mlp.fc1", width, 4 * width),
        **linear(f"{name}.mlp.fc2", 4 * width, width),
    }


def trained_shapes(d: int, layers: int) -> dict[str, tuple[int, ...]]:
    """What the public code saves at width d: everything that was trained, two layers of it at least once."""
    half = d // 2
    shapes: dict[str, tuple[int, ...]] = {
        **linear("text_projector", FEATURES, d),
        **linear("arm_state_encoder", 6, d),
        **linear("gripper_state_encoder", 2, d),
        **linear("state_projector", 2 * d, d),
        **linear("action_pose_encoder", 6, d),
        **linear("action_gripper_position_encoder", 2, d),
        **linear("action_projector", 2 * d, d),
        "perceiver_resampler.latents": (QUERIES, VISION),
        **norm_shapes("perceiver_resampler.norm", VISION),
        **linear("image_primary_projector", VISION, d),
        **linear("cls_token_primary_projector", VISION, d),
        **linear("image_wrist_projector", VISION, d),
        **linear("cls_token_wrist_projector", VISION, d),
        "action_pred_token": (1, 1, CHUNK, d),
        "obs_tokens": (1, 1, 2 * FORESIGHT, d),
        **norm_shapes("embedding_layer_norm", d),
        "transformer_backbone_position_embedding": (1, STEPS, 1, d),
        **norm_shapes("transformer_backbone.ln_f", d),
        "mask_token": (1, 1, d),
        **linear("image_decoder_obs_pred_projector", d, d),
        **block("image_decoder.0", d),
        **block("image_decoder.1", d),
        **norm_shapes("image_decoder_norm", d),
        **linear("image_decoder_pred", d, 3 * PATCH**2),
    }
    for i in range(2):
        name = f"perceiver_resampler.layers.{i}"
        shapes |= norm_shapes(f"{name}.0.norm_media", VISION) | norm_shapes(f"{name}.0.norm_latents", VISION)
        shapes |= {f"{name}.0.to_q.weight": (512, VISION), f"{name}.0.to_kv.weight": (1024, VISION)}
        shapes |= {f"{name}.0.to_out.weight": (VISION, 512)} | norm_shapes(f"{name}.1.0", VISION)
        shapes |= {f"{name}.1.1.weight": (4 * VISION, VISION), f"{name}.1.3.weight": (VISION, 4 * VISION)}
    for i in range(layers):
        name = f"transformer_backbone.h.{i}"
        shapes |= norm_shapes(f"{name}.ln_1", d) | norm_shapes(f"{name}.ln_2", d)
        for part, inputs, outputs in (
            ("attn.c_attn", d, 3 * d),
            ("attn.c_proj", d, d),
            ("mlp.c_fc", d, 4 * d),
            ("mlp.c_proj", 4 * d, d),
        ):
            shapes |= {f"{name}.{part}.weight": (inputs, outputs), f"{name}.{part}.bias": (outputs,)}
    for prefix, (arm, gripper) in {
        "": ("arm_action", "gripper_action"),
        "recon_": ("arm_state", "gripper_state"),
    }.items():
        trunk = "action_decoder" if not prefix else "recon_state_decoder"
        shapes |= linear(f"{trunk}.0", d, half) | linear(f"{trunk}.2", half, half)
        shapes |= linear(f"{prefix}{arm}_decoder.0", half, 6) | linear(f"{prefix}{gripper}_decoder.0", half, 1)
    return shapes


def vision_shapes() -> dict[str, tuple[int, ...]]:
    """The MAE's encoder, as its authors name it."""
    return {
        "cls_token": (1, 1, VISION),
        "pos_embed": (1, 1 + SIDE**2, VISION),
        "patch_embed.proj.weight": (VISION, 3, PATCH, PATCH),
        "patch_embed.proj.bias": (VISION,),
        **block("blocks.0", VISION),
        **block("blocks.1", VISION),
        **norm_shapes("norm", VISION),
    }


def text_shapes() -> dict[str, tuple[int, ...]]:
    """CLIP's text model, as OpenAI names it, and two tensors of its other half."""
    name = "transformer.resblocks.0"
    return {
        "token_embedding.weight": (VOCABULARY, TEXT),
        "positional_embedding": (77, TEXT),
        **norm_shapes(f"{name}.ln_1", TEXT),
        f"{name}.attn.in_proj_weight": (3 * TEXT, TEXT),
        f"{name}.attn.in_proj_bias": (3 * TEXT,),
        **linear(f"{name}.attn.out_proj", TEXT, TEXT),
        **norm_shapes(f"{name}.ln_2", TEXT),
        **linear(f"{name}.mlp.c_fc", TEXT, 4 * TEXT),
        **linear(f"{name}.mlp.c_proj", 4 * TEXT, TEXT),
        **norm_shapes("ln_final", TEXT),
        "text_projection": (TEXT, FEATURES),
        "logit_scale": (),
        "visual.proj": (TEXT, FEATURES),
    }


def noise(shapes: dict[str, tuple[int, ...]], prefix: str = "") -> Weights:
    """Random tensors, large enough that every one of them matters and small enough that nothing saturates."""
    weights = {}
    for name, shape in shapes.items():
        scale = 1 / math.sqrt(shape[-1]) if name.endswith("weight") and len(shape) > 1 else 0.3
        is_scale = name.endswith("weight") and len(shape) == 1
        weights[prefix + name] = scale * torch.randn(shape) + float(is_scale)
    return weights


# ---- the equations


def dense(w: Weights, name: str, x: Tensor) -> Tensor:
    y = x @ w[f"{name}.weight"].T
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def norm(w: Weights, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    spread = (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    return centred / spread * w[f"{name}.weight"] + w[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, seen: Tensor | None = None) -> Tensor:
    """Of (N, L, C), head by head."""
    size = q.shape[-1] // heads
    mixed = []
    for i in range(heads):
        part = slice(i * size, (i + 1) * size)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(size)
        if seen is not None:
            scores = scores.masked_fill(~seen, -math.inf)
        mixed.append(scores.softmax(-1) @ v[..., part])
    return torch.cat(mixed, -1)


def vision_block(w: Weights, name: str, x: Tensor, heads: int, eps: float) -> Tensor:
    q, k, v = dense(w, f"{name}.attn.qkv", norm(w, f"{name}.norm1", x, eps)).chunk(3, -1)
    x = x + dense(w, f"{name}.attn.proj", attention(q, k, v, heads))
    hidden = gelu(dense(w, f"{name}.mlp.fc1", norm(w, f"{name}.norm2", x, eps)))
    return x + dense(w, f"{name}.mlp.fc2", hidden)


def mae(w: Weights, images: Tensor) -> Tensor:
    """Images (N, 3, h, w) to (N, 1 + patches, C), nothing masked."""
    kernel = w["vision_encoder.patch_embed.proj.weight"].flatten(1)
    tokens = []
    for row in range(SIDE):
        for column in range(SIDE):
            cut = images[:, :, row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH]
            tokens.append(cut.flatten(1) @ kernel.T + w["vision_encoder.patch_embed.proj.bias"])
    first = w["vision_encoder.cls_token"].expand(len(images), -1, -1)
    x = torch.cat([first, torch.stack(tokens, 1)], 1) + w["vision_encoder.pos_embed"]
    for i in range(2):
        x = vision_block(w, f"vision_encoder.blocks.{i}", x, VISION // 64, 1e-6)
    return norm(w, "vision_encoder.norm", x, 1e-6)


def clip(w: Weights, ids: Tensor) -> Tensor:
    """Token numbers (N, L), the highest being the end, to features (N, F)."""
    name = "clip_model.transformer.resblocks.0"
    x = w["clip_model.token_embedding.weight"][ids] + w["clip_model.positional_embedding"][: ids.shape[1]]
    hidden = norm(w, f"{name}.ln_1", x)
    q, k, v = (hidden @ w[f"{name}.attn.in_proj_weight"].T + w[f"{name}.attn.in_proj_bias"]).chunk(3, -1)
    before = torch.ones(ids.shape[1], ids.shape[1]).tril().bool()
    x = x + dense(w, f"{name}.attn.out_proj", attention(q, k, v, TEXT // 64, before))
    hidden = dense(w, f"{name}.mlp.c_fc", norm(w, f"{name}.ln_2", x))
    x = norm(w, "clip_model.ln_final", x + dense(w, f"{name}.mlp.c_proj", hidden * torch.sigmoid(1.702 * hidden)))
    ends = [row.tolist().index(VOCABULARY - 1) for row in ids]
    return x[torch.arange(len(ids)), ends] @ w["clip_model.text_projection"]


def resample(w: Weights, tokens: Tensor) -> Tensor:
    latents = w["perceiver_resampler.latents"].expand(len(tokens), -1, -1)
    for i in range(2):
        name = f"perceiver_resampler.layers.{i}"
        asking = norm(w, f"{name}.0.norm_latents", latents)
        both = torch.cat([norm(w, f"{name}.0.norm_media", tokens), asking], 1)
        k, v = dense(w, f"{name}.0.to_kv", both).chunk(2, -1)
        mixed = attention(dense(w, f"{name}.0.to_q", asking), k, v, RESAMPLER_HEADS)
        latents = latents + dense(w, f"{name}.0.to_out", mixed)
        latents = latents + dense(w, f"{name}.1.3", gelu(dense(w, f"{name}.1.1", norm(w, f"{name}.1.0", latents))))
    return norm(w, "perceiver_resampler.norm", latents)


def visible(steps: int) -> Tensor:
    """Which token sees which, by the paper's words: (L, L)."""
    observed = 1 + 1 + 2 * QUERIES + 2
    roles = ["observed"] * observed + ["foresight"] * 2 * FORESIGHT + ["action"] * CHUNK
    tokens = [(step, role) for step in range(steps) for role in roles]
    return torch.tensor(
        [
            [
                (there == "observed" and when <= now) or (when == now and (here, there) == ("action", "foresight"))
                for when, there in tokens
            ]
            for now, here in tokens
        ]
    )


def waves(position: int, width: int) -> list[float]:
    angles = [position / 10000 ** (i / (width // 2)) for i in range(width // 2)]
    return [math.sin(a) for a in angles] + [math.cos(a) for a in angles]


def grid(side: int, width: int) -> Tensor:
    return torch.tensor([waves(x, width // 2) + waves(y, width // 2) for y in range(side) for x in range(side)])


def seer(
    w: Weights, images: tuple[Tensor, Tensor], arm: Tensor, gripper: Tensor, instructions: Tensor
) -> dict[str, Tensor]:
    """Seer's forward pass.

    Args:
        images: of the two cameras, prepared (B, S, 3, h, w).
        arm, gripper: the state (B, S, 6) and (B, S, 2).
        instructions: features of the instructions (B, F).
    """
    size, steps = arm.shape[:2]
    width = w["text_projector.weight"].shape[0]
    text = dense(w, "text_projector", instructions)[:, None, None].expand(-1, steps, -1, -1)
    felt = torch.cat([dense(w, "arm_state_encoder", arm), dense(w, "gripper_state_encoder", gripper)], -1)
    parts = [text, dense(w, "state_projector", felt)[:, :, None]]
    seen = [mae(w, camera.flatten(0, 1)) for camera in images]
    for name, tokens in zip(("image_primary", "image_wrist"), seen, strict=True):
        parts.append(dense(w, f"{name}_projector", resample(w, tokens[:, 1:])).unflatten(0, (size, steps)))
    for name, tokens in zip(("cls_token_primary", "cls_token_wrist"), seen, strict=True):
        parts.append(dense(w, f"{name}_projector", tokens[:, :1]).unflatten(0, (size, steps)))
    parts += [w[name].expand(size, steps, -1, -1) for name in ("obs_tokens", "action_pred_token")]
    x = torch.cat(parts, 2) + w["transformer_backbone_position_embedding"][:, :steps]
    x = norm(w, "embedding_layer_norm", x.flatten(1, 2))
    seen_by = visible(steps)
    layers = sum(name.endswith(".ln_1.weight") and "transformer_backbone" in name for name in w)
    for i in range(layers):
        name = f"transformer_backbone.h.{i}"
        q, k, v = conv(w, f"{name}.attn.c_attn", norm(w, f"{name}.ln_1", x)).chunk(3, -1)
        x = x + conv(w, f"{name}.attn.c_proj", attention(q, k, v, HEADS[width], seen_by))
        x = x + conv(w, f"{name}.mlp.c_proj", gelu_tanh(conv(w, f"{name}.mlp.c_fc", norm(w, f"{name}.ln_2", x))))
    out = norm(w, "transformer_backbone.ln_f", x).unflatten(1, (steps, -1))
    latents = out[:, :, -CHUNK:]
    hidden = dense(w, "action_decoder.2", dense(w, "action_decoder.0", latents).relu()).relu()
    return {
        "latents": latents,
        "arm": dense(w, "arm_action_decoder.0", hidden).tanh(),
        "gripper": dense(w, "gripper_action_decoder.0", hidden).sigmoid(),
        "pictures": paint(w, out[:, :, -CHUNK - 2 * FORESIGHT : -CHUNK]),
    }


def conv(w: Weights, name: str, x: Tensor) -> Tensor:
    """GPT-2 keeps its matrices the other way round."""
    return x @ w[f"{name}.weight"] + w[f"{name}.bias"]


def paint(w: Weights, foresight: Tensor) -> Tensor:
    """Foresight tokens (B, S, 2 F, D) to patches (B, S, 2, patches, 3 * patch * patch)."""
    width = foresight.shape[-1]
    known = dense(w, "image_decoder_obs_pred_projector", foresight).unflatten(2, (2, FORESIGHT)).flatten(0, 2)
    x = torch.cat([known, w["mask_token"].expand(len(known), SIDE**2, -1)], 1)
    x = x + torch.cat([grid(math.isqrt(FORESIGHT), width), grid(SIDE, width)])
    for i in range(2):
        x = vision_block(w, f"image_decoder.{i}", x, PAINTER_HEADS, 1e-5)
    pixels = dense(w, "image_decoder_pred", norm(w, "image_decoder_norm", x[:, FORESIGHT:]))
    return pixels.unflatten(0, (*foresight.shape[:2], 2))


def patches(images: Tensor) -> Tensor:
    """Images (..., 3, h, w) to standardised patches (..., patches, 3 * patch * patch)."""
    cuts = []
    for row in range(SIDE):
        for column in range(SIDE):
            cut = images[..., row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH]
            flat = cut.movedim(-3, -1).flatten(-3)
            mean = flat.mean(-1, keepdim=True)
            variance = (flat - mean).pow(2).sum(-1, keepdim=True) / (flat.shape[-1] - 1)
            cuts.append((flat - mean) / (variance + 1e-6).sqrt())
    return torch.stack(cuts, -2)
