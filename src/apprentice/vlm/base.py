"""Any Hugging Face image-text-to-text model, with room for a few tokens of our own at the end of its prompt.

The model stays what its authors wrote. Placeholders close the prompt; while one of our passes runs, a hook on the
input embeddings puts image tokens, the state token and the action tokens in their places. Outside our passes the model
answers bit for bit as it always did.

A pass is either whole, or split in two: the prefix (images, instruction), whose keys and values are kept, and the
suffix (our tokens). Attention is causal, so both give the same, and whoever trains the suffix alone need not go back
through the prefix.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from apprentice.errors import UserError

# SmolVLM's processor complains about arguments that it adds itself, once for every prompt.
logging.getLogger("transformers.processing_utils").setLevel(logging.ERROR)


@dataclass
class Prompt:
    """Tokenised prompts, left-padded to one length.

    Attributes:
        ids: (B, L) token ids.
        mask: (B, L), 0 on padding.
    """

    ids: Tensor
    mask: Tensor

    def to(self, device: torch.device | str) -> "Prompt":
        """The same on another device."""
        return Prompt(self.ids.to(device), self.mask.to(device))


@dataclass
class Prefix:
    """What the suffix needs of a prefix: its keys and values, and its mask (B, L)."""

    cache: Cache
    mask: Tensor


class VLM(nn.Module):
    """A vision-language model and its processor.

    Attributes:
        model: the Hugging Face model, unchanged.
        processor: its processor (tokenizer, image processor, chat template).
        hidden_size: H, the width of the language model.
    """

    def __init__(self, model: Any, processor: Any):
        super().__init__()
        self.model = model
        self.processor = processor
        self.hidden_size: int = model.get_input_embeddings().embedding_dim
        self._prompts: dict[tuple[str, tuple[int, int, int]], Tensor] = {}

    @classmethod
    def from_pretrained(cls, name: str) -> "VLM":
        """Load weights and processor from a folder or, if it is not one, from the hub. Raises UserError."""
        try:
            model = AutoModelForImageTextToText.from_pretrained(name, dtype=torch.float32)
            return cls(model, AutoProcessor.from_pretrained(name))
        except (OSError, ValueError, KeyError, HFValidationError) as error:
            raise UserError(
                f"expected a Hugging Face image-text-to-text model at '{name}' (a folder or a name on the hub), found: "
                f"{str(error).splitlines()[0]}; fix: check the name, or go online once to fetch it"
            ) from error

    @classmethod
    def from_config(cls, folder: Path | str) -> "VLM":
        """Rebuild model (random weights) and processor from what `save_config` wrote."""
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
        return cls(model.float(), AutoProcessor.from_pretrained(folder))

    def save_config(self, folder: Path | str) -> None:
        """Write everything but the weights: configuration, tokenizer, image processor, chat template."""
        self.model.config.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    def language_parameters(self) -> list[nn.Parameter]:
        """The language model's parameters, without those that it shares with the output head (tied embeddings)."""
        head = self.model.get_output_embeddings()
        kept = set() if head is None else {id(p) for p in head.parameters()}
        return [p for p in self.model.get_decoder().parameters() if id(p) not in kept]

    def prompt(self, instructions: Sequence[str], images: tuple[int, int, int], length: int = 0) -> Prompt:
        """Tokenise one user turn for each instruction, after N images of h x w px, with the assistant's turn opened.

        How many tokens an image takes depends on its size alone, so a prompt is made once for an instruction and kept.

        Args:
            instructions: one for each sample.
            images: N, h, w.
            length: L, if it is to be more than the longest prompt's.
        """
        count, height, width = images
        for instruction in set(instructions):
            if (instruction, images) not in self._prompts:
                blank = list(torch.zeros(count, 3, height, width, dtype=torch.uint8))
                ids = self._process([blank], [self._chat(instruction, count)])["input_ids"][0]
                self._prompts[instruction, images] = ids
        rows = [self._prompts[instruction, images] for instruction in instructions]
        length = max(length, *(len(row) for row in rows))
        pad = self.processor.tokenizer.pad_token_id
        ids = torch.stack([nn.functional.pad(row, (length - len(row), 0), value=pad or 0) for row in rows])
        kept = torch.arange(length) >= length - torch.tensor([len(row) for row in rows])[:, None]
        return Prompt(ids, kept.long()).to(self.device)

    def pixels(self, images: Tensor) -> dict[str, Tensor]:
        """Preprocess images (B, N, 3, h, w), uint8, into what the vision tower reads."""
        inputs = self.processor.image_processor(images=[list(row) for row in images.cpu()], return_tensors="pt")
        return {key: value.to(self.device) for key, value in inputs.items()}

    def image_tokens(self, images: Tensor) -> Tensor:
        """Encode images (B, N, 3, h, w), uint8, into the language model's tokens (B, N * tokens an image, H)."""
        features = self.model.get_image_features(**self.pixels(images))
        tokens = features if isinstance(features, Tensor | tuple | list) else features.pooler_output
        tokens = torch.cat(list(tokens)) if isinstance(tokens, tuple | list) else tokens
        return tokens.reshape(len(images), -1, self.hidden_size)

    def whole(self, prompt: Prompt, image_tokens: Tensor, tokens: Tensor) -> Tensor:
        """Run prompt and our tokens (B, S, H) in one pass; return the last hidden states of our tokens (B, S, H)."""
        ids = torch.cat([prompt.ids, self._placeholders(tokens)], 1)
        mask = torch.cat([prompt.mask, torch.ones_like(ids[:, : tokens.shape[1]])], 1)
        with self._filled(image_tokens, tokens):
            output = self.model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
        return output.last_hidden_state[:, -tokens.shape[1] :]

    def prefix(self, prompt: Prompt, image_tokens: Tensor) -> Prefix:
        """Run the prompt alone and keep its keys and values."""
        with self._filled(image_tokens, None):
            output = self.model.base_model(input_ids=prompt.ids, attention_mask=prompt.mask, use_cache=True)
        return Prefix(output.past_key_values, prompt.mask)

    def pack(self, prefix: Prefix) -> Tensor | None:
        """A prefix as one tensor (B, layers, 2, heads, L, d), or None if it is more than keys and values."""
        layers: list[Any] = prefix.cache.layers
        if hasattr(self.model.base_model, "rope_deltas") or any(type(layer) is not DynamicLayer for layer in layers):
            return None
        return torch.stack([torch.stack([layer.keys, layer.values], 1) for layer in layers], 1)

    def unpack(self, packed: Tensor, prompt: Prompt) -> Prefix:
        """The prefix that `pack` was given, of a prompt that is as long."""
        layers = packed.to(self.model.dtype).unbind(1)
        return Prefix(DynamicCache([(layer[:, 0], layer[:, 1]) for layer in layers]), prompt.mask)

    def suffix(self, prefix: Prefix, tokens: Tensor) -> Tensor:
        """Run our tokens (B, S, H) after a prefix (which grows by them); return their last hidden states (B, S, H)."""
        ids = self._placeholders(tokens)
        mask = torch.cat([prefix.mask, torch.ones_like(ids)], 1)
        with self._filled(None, tokens):
            output = self.model.base_model(
                input_ids=ids, attention_mask=mask, past_key_values=prefix.cache, use_cache=True
            )
        return output.last_hidden_state

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    def _chat(self, instruction: str, images: int) -> str:
        content = [{"type": "image"}] * images + [{"type": "text", "text": instruction}]
        return self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)

    def _process(self, images: list[list[Tensor]], texts: list[str]) -> Any:
        return self.processor(images=images, text=texts, return_tensors="pt", padding=True)

    def _placeholders(self, tokens: Tensor) -> Tensor:
        end = self.processor.tokenizer.eos_token_id
        return torch.full(tokens.shape[:2], end, dtype=torch.long, device=tokens.device)

    @contextmanager
    def _filled(self, image_tokens: Tensor | None, tokens: Tensor | None) -> Iterator[None]:
        """For one pass, replace the rows of image placeholders and the last rows of the input embeddings."""

        def fill(module: nn.Module, inputs: tuple[Tensor], rows: Tensor) -> Tensor:
            if image_tokens is not None:
                where = (inputs[0] == self.model.config.image_token_id).unsqueeze(-1)
                rows = rows.masked_scatter(where, image_tokens.to(rows.dtype))
            if tokens is not None:
                rows = torch.cat([rows[:, : -tokens.shape[1]], tokens.to(rows.dtype)], 1)
            return rows

        handle = self.model.get_input_embeddings().register_forward_hook(fill)
        try:
            yield
        finally:
            handle.remove()
