"""Passes through a VLM over packed questions: image tokens, and the logits of answers."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def answer_logits(model: Any, tokens: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Logits (A, V) of the answer tokens of a packed batch, with image tokens (2 B, T, H)."""
    mask, ids = batch["attention_mask"], batch["input_ids"]
    rows = model.get_input_embeddings()(ids)
    seen = (ids == model.config.image_token_id)[..., None]
    hidden = model.get_decoder()(
        inputs_embeds=rows.masked_scatter(seen, tokens.to(rows.dtype)),
        # "eager" attention adds its mask: a boolean one would hide nothing
        attention_mask=torch.zeros_like(mask, dtype=rows.dtype).masked_fill_(~mask, torch.finfo(rows.dtype).min),
        position_ids=batch["position_ids"],
        use_cache=False,
    ).last_hidden_state
    return model.lm_head(hidden.flatten(0, 1)[batch["at"]])


def pixels_of(images: np.ndarray, device: torch.device) -> Tensor:
    """Pictures (B, 2, S, S, 3), uint8, as a vision tower reads them: (B, 2, 3, S, S), in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 1, 4, 2, 3).to(device).float().div_(127.5).sub_(1.0)


def image_tokens(model: Any, pixels: Tensor, blind: bool = False) -> Tensor:
    """Tokens (2 B, T, H) of images (B, 2, 3, S, S), resized to what the model reads; blind: of grey images."""
    if blind:
        return image_tokens(model, torch.full_like(pixels[:1], 0.1)).repeat(len(pixels), 1, 1)
    flat, size = pixels.flatten(0, 1), model.config.vision_config.image_size
    if flat.shape[-1] != size:
        flat = F.interpolate(flat, (size, size), mode="bilinear", antialias=True)
    # SmolVLM reads images in groups (B, N, 3, S, S), FastVLM one by one.
    seen = model.get_image_features(flat[:, None] if model.config.model_type == "smolvlm" else flat).pooler_output
    return torch.stack(list(seen))
