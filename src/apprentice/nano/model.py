"""The nano VLM: Hugging Face's FastVLM classes at a few million parameters; nothing of the architecture is ours.

Its vision tower is a small ConvNeXt. On a CPU it passes four times the pictures of a vision transformer a second, and
with few pictures it learns sooner where things are (docs/log.md).
"""

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import (
    ConvNextConfig,
    FastVlmConfig,
    FastVlmForConditionalGeneration,
    LlamaConfig,
    LlavaProcessor,
    PreTrainedTokenizerBase,
    SiglipImageProcessor,
)

from apprentice.nano.tokenizer import CHAT_TEMPLATE, IMAGE

HALF = [0.5, 0.5, 0.5]


@dataclass
class NanoConfig:
    """Sizes of the nano VLM. Images are `image` px squares.

    The tower's first layer makes one place of `patch` x `patch` px, each later stage one of 2 x 2 places; a stage has
    a width and a number of blocks. `width`, `heads` and `kv_heads` are the language model's.
    """

    image: int = 128
    patch: int = 4
    vision_widths: tuple[int, ...] = (32, 64, 128, 256)
    vision_depths: tuple[int, ...] = (0, 1, 1, 2)
    width: int = 256
    text_layers: int = 4
    text_mlp: int = 768
    heads: int = 4
    kv_heads: int = 2
    vocab: int = 1024

    @property
    def square(self) -> int:
        """The side (px) of the square that an image token stands for."""
        return self.patch * 2 ** (len(self.vision_widths) - 1)

    @property
    def image_tokens(self) -> int:
        return (self.image // self.square) ** 2


def build_model(config: NanoConfig, tokenizer: PreTrainedTokenizerBase) -> FastVlmForConditionalGeneration:
    """A FastVLM with random weights; rows of the embedding past the tokenizer's length are free for new tokens."""
    text: dict[str, Any] = {
        "vocab_size": config.vocab,
        "hidden_size": config.width,
        "intermediate_size": config.text_mlp,
        "num_hidden_layers": config.text_layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision: dict[str, Any] = {
        "image_size": config.image,
        "patch_size": config.patch,
        "num_stages": len(config.vision_widths),
        "hidden_sizes": list(config.vision_widths),
        "depths": list(config.vision_depths),
        "layer_scale_init_value": 0.0,
        "hidden_size": config.vision_widths[-1],  # where FastVLM looks for it
    }
    model = assembled(ConvNextConfig(**vision), LlamaConfig(**text), tokenizer, config.image_tokens)
    for parameter in model.model.vision_tower.parameters():
        if parameter.ndim > 1:  # Transformers' 0.02 lets a picture fade on its way through the convolutions
            nn.init.kaiming_normal_(parameter, nonlinearity="linear")
    return model


def assembled(
    vision: ConvNextConfig, text: Any, tokenizer: PreTrainedTokenizerBase, image_tokens: int
) -> FastVlmForConditionalGeneration:
    """A FastVLM of a ConvNeXt and a language model of these configurations, with random weights.

    `tokenizer` knows what stands where an image token is to be, `image_tokens` is how many an image has.
    """
    whole: dict[str, Any] = {
        "vision_config": vision,
        "text_config": text,
        "image_token_index": tokenizer.convert_tokens_to_ids(IMAGE),
        "image_seq_length": image_tokens,
        "tie_word_embeddings": text.tie_word_embeddings,
    }
    model = FastVlmForConditionalGeneration(FastVlmConfig(**whole))
    for layer in (model.model.multi_modal_projector.linear_1, model.model.multi_modal_projector.linear_2):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
    return model


def build_processor(
    config: NanoConfig, tokenizer: PreTrainedTokenizerBase, chat_template: str = CHAT_TEMPLATE
) -> LlavaProcessor:
    """The processor that goes with it: an image becomes one square, with a token for each `config.square` px of it."""
    images = SiglipImageProcessor(size={"height": config.image, "width": config.image}, image_mean=HALF, image_std=HALF)
    return LlavaProcessor(
        images,
        tokenizer,
        patch_size=config.square,
        vision_feature_select_strategy="full",
        chat_template=chat_template,
        image_token=IMAGE,
    )
