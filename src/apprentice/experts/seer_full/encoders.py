"""The two encoders that Seer takes as they are: the ViT of a masked autoencoder, and CLIP's text model.

Both are Transformers' classes. With `config.mae` and `config.clip` they are pretrained and frozen; without, they start
from nothing and train along.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer, ViTMAEConfig, ViTMAEModel

from apprentice.common.errors import UserError
from apprentice.common.untrusted import place_of, without_weights
from apprentice.experts.seer_full.configuration_seer_full import SeerFullConfig

PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's, of images in [0, 1]; Seer uses them for the MAE as well
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
LONGEST = 77  # tokens of an instruction
MAE_NORM_EPS = 1e-6  # as the MAE was trained; the configuration on the hub says 1e-12
START, END = "<|startoftext|>", "<|endoftext|>"


def prepare(images: Tensor, size: int) -> Tensor:
    """Resize images in [0, 1] (N, 3, h, w) to (N, 3, size, size), as CLIP does, and standardise their colours."""
    if images.shape[-2:] != (size, size):
        images = F.interpolate(images, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in (PIXEL_MEAN, PIXEL_STD))
    return (images - mean) / std


class VisionEncoder(nn.Module):
    """Prepared images to one class token and a token for each patch."""

    def __init__(self, config: SeerFullConfig):
        super().__init__()
        sizes: dict[str, Any] = {
            "hidden_size": config.vision_width,
            "num_hidden_layers": config.vision_layers,
            "num_attention_heads": config.vision_heads,
            "intermediate_size": 4 * config.vision_width,
            "image_size": config.image_size,
            "patch_size": config.patch_size,
            "layer_norm_eps": MAE_NORM_EPS,
            "mask_ratio": 0.0,
        }
        self.model = ViTMAEModel(ViTMAEConfig(**sizes))
        self.requires_grad_(config.mae is None)

    def forward(self, images: Tensor) -> Tensor:
        """Map prepared images (N, 3, h, w) to tokens (N, 1 + patches, C)."""
        unmasked = torch.arange(self.model.embeddings.patch_embeddings.num_patches, device=images.device)
        return self.model(images, noise=unmasked.float().expand(len(images), -1)).last_hidden_state  # in their order


class TextEncoder(nn.Module):
    """Instructions to one feature vector each, through CLIP's tokenizer and text model."""

    def __init__(self, config: SeerFullConfig, tokenizer: CLIPTokenizer):
        super().__init__()
        self.tokenizer = tokenizer
        sizes: dict[str, Any] = {
            "vocab_size": config.vocabulary,
            "hidden_size": config.text_width,
            "intermediate_size": 4 * config.text_width,
            "num_hidden_layers": config.text_layers,
            "num_attention_heads": config.text_heads,
            "projection_dim": config.text_features,
            "max_position_embeddings": LONGEST,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        self.model = CLIPTextModelWithProjection(CLIPTextConfig(**sizes))
        self.requires_grad_(config.clip is None)

    def forward(self, instructions: list[str]) -> Tensor:
        """Map B instructions to features (B, F); the same instruction is read once."""
        different = list(dict.fromkeys(instructions))
        tokens = self.tokenizer(different, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
        features = self.model(input_ids=tokens["input_ids"].to(self.model.device)).text_embeds
        return features[[different.index(instruction) for instruction in instructions]]


def letter_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer without any merges: a token for each byte, and for each byte that ends a word."""
    letters = list(bytes_to_unicode().values())
    words = [*letters, *(f"{letter}</w>" for letter in letters), START, END]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[])


def bytes_to_unicode() -> dict[int, str]:
    """Byte-level BPE's printable stand-in for each byte: itself if it prints, else a letter from 256 on."""
    prints = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in prints]
    return {byte: chr(byte) for byte in prints} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def pretrained_mae(config: SeerFullConfig) -> dict[str, Tensor]:
    """Read the weights of `config.mae` and note its sizes in `config`. Raises UserError if it cannot be read."""
    model = _from_pretrained(ViTMAEModel, config.mae, "a ViT-MAE")
    theirs = model.config
    config.image_size, config.patch_size = theirs.image_size, theirs.patch_size
    config.vision_width, config.vision_layers = theirs.hidden_size, theirs.num_hidden_layers
    config.vision_heads = theirs.num_attention_heads
    return model.state_dict()


def pretrained_clip(config: SeerFullConfig) -> tuple[CLIPTokenizer, dict[str, Tensor]]:
    """Read tokenizer and weights of `config.clip` and note its sizes in `config`. Raises UserError, as above."""
    tokenizer = _from_pretrained(CLIPTokenizer, config.clip, "CLIP's tokenizer")
    model = _from_pretrained(CLIPTextModelWithProjection, config.clip, "a CLIP text model")
    theirs = model.config
    config.vocabulary, config.text_width = theirs.vocab_size, theirs.hidden_size
    config.text_layers, config.text_heads = theirs.num_hidden_layers, theirs.num_attention_heads
    config.text_features = theirs.projection_dim
    return tokenizer, model.state_dict()


def _from_pretrained(kind: Any, name: str | None, what: str) -> Any:
    try:
        # The published encoders are pickles on the hub. Transformers reads those as tensors alone (`weights_only`).
        return kind.from_pretrained(**without_weights(place_of(name or "")))
    except (OSError, ValueError) as error:
        raise UserError(
            f"expected {what} at '{name}' (a folder or a name on the hub), found: {str(error).splitlines()[0]}; "
            "fix: check the name, or go online once to fetch it; null starts from nothing and trains it along"
        ) from error
