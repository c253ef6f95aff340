"""The nano VLM: Hugging Face's SmolVLM classes at a few million parameters; nothing of the architecture is ours."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    PreTrainedTokenizerBase,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
)
from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor

from apprentice.vlm.nano.tokenizer import CHAT_TEMPLATE


@dataclass
class NanoConfig:
    """Sizes of the nano VLM. Images are `image` px squares; `scale` x `scale` patches make one image token.

    `width`, `heads` and `kv_heads` are the language model's, `vision_...` the tower's.
    """

    image: int = 128
    patch: int = 16
    width: int = 256
    vision_width: int = 256
    vision_layers: int = 6
    vision_mlp: int = 1024
    vision_heads: int = 4
    text_layers: int = 4
    text_mlp: int = 768
    heads: int = 4
    kv_heads: int = 2
    vocab: int = 1024
    scale: int = 2

    @property
    def image_tokens(self) -> int:
        return (self.image // self.patch // self.scale) ** 2


def build_model(config: NanoConfig, tokenizer: PreTrainedTokenizerBase) -> SmolVLMForConditionalGeneration:
    """A SmolVLM with random weights; rows of the embedding past the tokenizer's length are free for new tokens."""
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text: dict[str, Any] = {
        "vocab_size": config.vocab,
        "hidden_size": config.width,
        "intermediate_size": config.text_mlp,
        "num_hidden_layers": config.text_layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
    }
    vision = {
        "hidden_size": config.vision_width,
        "intermediate_size": config.vision_mlp,
        "num_hidden_layers": config.vision_layers,
        "num_attention_heads": config.vision_heads,
        "image_size": config.image,
        "patch_size": config.patch,
    }
    whole: dict[str, Any] = {
        "vision_config": vision,
        "text_config": LlamaConfig(**text, **ids).to_dict(),
        "scale_factor": config.scale,
        "image_token_id": tokenizer.convert_tokens_to_ids("<image>"),
        "tie_word_embeddings": True,
    }
    model = SmolVLMForConditionalGeneration(SmolVLMConfig(**whole, **ids))
    place = model.model.vision_model.embeddings.position_embedding.weight
    with torch.no_grad():
        place.copy_(waves(config.image // config.patch, config.vision_width))
    return model


def waves(side: int, width: int) -> Tensor:
    """Embeddings (side * side, width) of places in a grid, row by row: sines and cosines of x and of y at falling
    frequencies, as in MoCo v3. Of the size that a trained tower's embeddings have (0.17), half of what patches begin
    with (0.29): Transformers would begin with 0.02.
    """
    rates = 10_000.0 ** -(torch.arange(width // 4) / (width // 4))
    angles = torch.arange(side)[:, None] * rates
    line = torch.cat([angles.sin(), angles.cos()], 1)
    grid = torch.cat([line[None].expand(side, -1, -1), line[:, None].expand(-1, side, -1)], -1).flatten(0, 1)
    return 0.2 * 2**0.5 * grid


def build_processor(
    config: NanoConfig, tokenizer: PreTrainedTokenizerBase, chat_template: str = CHAT_TEMPLATE
) -> SmolVLMProcessor:
    """The processor that goes with it: one tile an image, resized to a square."""
    size = {"longest_edge": config.image}
    images = SmolVLMImageProcessor(size=size, max_image_size=size, do_image_splitting=False)
    videos = SmolVLMVideoProcessor(size=size, max_image_size=size, do_image_splitting=False)
    return SmolVLMProcessor(images, tokenizer, videos, image_seq_len=config.image_tokens, chat_template=chat_template)
