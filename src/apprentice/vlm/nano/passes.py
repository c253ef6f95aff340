"""Passes through a VLM over packed questions: image tokens, and the logits of answers."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import SmolVLMForConditionalGeneration


def answer_logits(model: SmolVLMForConditionalGeneration, tokens: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Logits (A, V) of the answer tokens of a packed batch, with image tokens (2 B, T, H)."""
    mask = batch["attention_mask"]  # "eager" attention adds its mask: a boolean one would hide nothing
    hidden = model.model(
        input_ids=batch["input_ids"],
        attention_mask=torch.zeros_like(mask, dtype=tokens.dtype).masked_fill_(~mask, torch.finfo(tokens.dtype).min),
        position_ids=batch["position_ids"],
        image_hidden_states=tokens,
        use_cache=False,
    ).last_hidden_state
    return model.lm_head(hidden.flatten(0, 1)[batch["at"]])


def pixels_of(images: np.ndarray, device: torch.device) -> Tensor:
    """Pictures (B, 2, S, S, 3), uint8, as a vision tower reads them: (B, 2, 3, S, S), in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 1, 4, 2, 3).to(device).float().div_(127.5).sub_(1.0)


def image_tokens(model: SmolVLMForConditionalGeneration, pixels: Tensor, blind: bool = False) -> Tensor:
    """Tokens (2 B, T, H) of images (B, 2, 3, S, S), resized to what the model reads; blind: of grey images."""
    size = model.model.vision_model.config.image_size
    if pixels.shape[-1] != size:
        pixels = F.interpolate(pixels.flatten(0, 1), (size, size), mode="bilinear", antialias=True)
        pixels = pixels.unflatten(0, (-1, 2))
    if blind:
        grey = torch.full_like(pixels[:1], 0.1)
        return model.model.get_image_features(grey).pooler_output.repeat(len(pixels), 1, 1)
    return model.model.get_image_features(pixels).pooler_output
