"""Any Hugging Face image-text-to-text model, with room for a few tokens of our own at the end of its prompt.

The model stays what its authors wrote. Placeholders close the prompt; while one of our passes runs, a hook on the
input embeddings puts the state token and the action tokens in their places, and the model's own forward pass is handed
image tokens that were computed before. Outside our passes the model answers bit for bit as it always did.

A pass is either whole, or split in two: the prefix (images, instruction), whose keys and values are kept, and the
suffix (our tokens). Our tokens see the prompt and the prompt does not see them, so both give the same, and whoever
trains the suffix alone need not go back through the prefix. `VLM.splits` tells whether that is so.

A history is a chat: each step a user's turn with its images and the instruction, and an assistant's turn that is our
tokens. Turns run in one pass, or each after the keys and values of those before it; `VLM.converses` tells whether both
give the same.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from apprentice.common.errors import UserError
from apprentice.common.untrusted import place_of, without_weights
from apprentice.vlm.families import CAUSAL_TOKEN_TYPE
from apprentice.vlm.image_settings import Size, alike, settings_of_call
from apprentice.vlm.precomputed import filled
from apprentice.vlm.prefix import Prefix
from apprentice.vlm.prompt import Prompt, Recent, joined, stacked
from apprentice.vlm.template import marks_of, turn

# SmolVLM's processor complains about arguments that it adds itself, once for every prompt.
logging.getLogger("transformers.processing_utils").setLevel(logging.ERROR)

PROMPT_TOKENS = 2**22  # of prompts that are kept, of 24 bytes each


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
        self._prompts = Recent(self._single, PROMPT_TOKENS)  # by instruction, sizes, and whether it begins a chat

    @classmethod
    def from_pretrained(cls, name: str, local: bool = False) -> "VLM":
        """Load weights and processor from a folder or, if it is not one, from the hub, or if `local` from what was
        fetched of it before. Raises UserError.
        """
        try:
            place = place_of(name, local)
            model = AutoModelForImageTextToText.from_pretrained(**place, dtype=torch.float32)
            return cls(model, AutoProcessor.from_pretrained(**without_weights(place)))
        except (OSError, ValueError, KeyError, HFValidationError) as error:
            raise UserError(
                f"expected a Hugging Face image-text-to-text model at '{name}' (a folder or a name on the hub), found: "
                f"{str(error).splitlines()[0]}; fix: check the name, or go online once to fetch it"
            ) from error

    @classmethod
    def from_config(cls, folder: Path | str) -> "VLM":
        """Rebuild model (random weights) and processor from what `save_config` wrote. Raises UserError."""
        place = without_weights(place_of(folder))
        config = AutoConfig.from_pretrained(**place)
        model = AutoModelForImageTextToText.from_config(config, trust_remote_code=False)
        if (Path(folder) / "generation_config.json").exists():
            model.generation_config = GenerationConfig.from_pretrained(folder)
        return cls(model.float(), AutoProcessor.from_pretrained(**place))

    def save_config(self, folder: Path | str) -> None:
        """Write everything but the weights: configuration, how it ends an answer, tokenizer, image processor, chat
        template; the same again after it was read from there.
        """
        self.model.config.save_pretrained(folder)
        self.model.generation_config.save_pretrained(folder)
        tokenizer = self.processor.tokenizer
        for key in ("is_local", "local_files_only"):  # how it was loaded, which differs when a run goes on
            tokenizer.init_kwargs.pop(key, None)
        if tokenizer.is_fast:  # how the last batch was padded, which would be read as a setting
            tokenizer.backend_tokenizer.no_padding()
            tokenizer.backend_tokenizer.no_truncation()
        self.processor.save_pretrained(folder)

    def parts(self) -> dict[str, list[nn.Parameter]]:
        """Every parameter under the name of its part; no parameter in two."""
        claimed: set[int] = set()

        def rest(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
            found = [p for p in dict.fromkeys(parameters) if id(p) not in claimed]
            claimed.update(map(id, found))
            return found

        ends = (self.model.get_input_embeddings(), self.model.get_output_embeddings())
        language = rest(self.language_parameters())
        head = rest(p for end in ends if end is not None for p in end.parameters())
        vision = rest(self.model.get_encoder(modality="image").parameters())
        projector = rest(self.parameters())
        return {"vision tower": vision, "projector": projector, "embeddings, head": head, "language model": language}

    def language_parameters(self) -> list[nn.Parameter]:
        """The language model's parameters, without those that it shares with the output head (tied embeddings)."""
        head = self.model.get_output_embeddings()
        kept = set() if head is None else {id(p) for p in head.parameters()}
        return [p for p in self.model.get_decoder().parameters() if id(p) not in kept]

    @torch.no_grad()
    def embedding_scale(self) -> Tensor:
        """Standard deviation of text tokens as they enter the language model (some families scale them)."""
        embed = self.model.get_input_embeddings()
        rows = torch.linspace(0, embed.num_embeddings - 1, min(embed.num_embeddings, 4096), device=self.device)
        return embed(rows.long()).std()

    # ---- what goes in

    def inputs(self, images: Sequence[Tensor | Sequence[Any]], questions: Sequence[str], first: bool = True) -> Any:
        """What the processor makes of a user turn for each question, with as many images before it, the assistant's
        turn opened. Without a chat template (PaliGemma) a turn is images and text, nothing else.

        A turn that is not the `first` begins with the end of the assistant's turn before it.
        """
        texts = [
            turn(self.processor, question, len(row), first, self._marks)
            for question, row in zip(questions, images, strict=True)
        ]
        start = self.processor.tokenizer.bos_token
        doubled = start is not None and texts[0].startswith(start)  # a template that begins a text, as most do
        settings = {"add_special_tokens": False} if doubled or not first else {}
        rows = [list(row) for row in images]
        inputs = self.processor(images=rows, text=texts, return_tensors="pt", padding=True, **settings)
        inputs.pop("labels", None)  # PaliGemma's processor thinks of training
        return inputs.to(self.device)

    def check(self, instructions: Iterable[str]) -> None:
        """Raise UserError for an instruction that no prompt can hold: before what takes hours begins."""
        for instruction in sorted(instructions):
            turn(self.processor, instruction, 1, True, self._marks)

    def prompt(
        self,
        instructions: Sequence[str],
        images: tuple[Size, ...],
        length: int = 0,
        first: Sequence[bool] | None = None,
    ) -> Prompt:
        """Tokenise one user turn for each instruction, after images of these sizes, with the assistant's turn opened.

        How many tokens an image takes depends on its size alone, so a prompt is made once for an instruction and kept.
        Padding is on the left.

        Args:
            instructions: one for each sample.
            images: height and width (px) of each of N.
            length: L, if it is to be more than the longest prompt's.
            first: whether each begins its chat, as all do if None; else all are as long as any of them would be in
                either place, so that turns of a chat are of one length.
        """
        places = (True,) if first is None else (True, False)
        known = {(text, place): self._prompts[text, images, place] for text in set(instructions) for place in places}
        length, padding = max(length, *map(len, known.values())), self.processor.tokenizer.pad_token_id or 0
        begins = [True] * len(instructions) if first is None else first
        rows = [known[text, place] for text, place in zip(instructions, begins, strict=True)]
        return stacked([row.padded(length, padding) for row in rows]).to(self.device)

    def pixels(self, images: Tensor) -> dict[str, Tensor]:
        """Preprocess images (B, N, 3, h, w), uint8, into what the vision tower reads, without writing a prompt."""
        settings, names = self._preprocessing
        inputs = self.processor.image_processor([list(row) for row in images.cpu()], **settings)
        return {name: inputs[name].to(self.device) for name in names}

    @cached_property
    def _preprocessing(self) -> tuple[dict[str, Any], list[str]]:
        """What the processor tells its image processor, and which of the results it hands on."""
        blank = torch.zeros(3, 64, 64, dtype=torch.uint8)
        settings, inputs = settings_of_call(self.processor.image_processor, lambda: self.inputs([[blank]], [""]))
        return settings, [name for name, value in inputs.items() if value.shape != inputs["input_ids"].shape]

    def image_tokens(self, images: Sequence[Tensor]) -> Tensor:
        """Encode N cameras' images (B, 3, h, w) each, uint8, into the language model's tokens, camera after camera:
        (B, tokens of all N, K * H).

        Cameras of one size are encoded together, so each has the tokens of its own size. K is 1, or more for a model
        whose vision also enters deeper layers (Qwen3-VL).
        """
        found: dict[int, Tensor] = {}
        for places in alike([(camera.shape[-2], camera.shape[-1]) for camera in images]).values():
            group = [images[place] for place in places]
            if len(group) == 1 < len(images) and self._alone_differs:
                group *= 2
            tokens = self._encoded(torch.stack(group, 1)).chunk(len(group), 1)
            found |= dict(zip(places, tokens, strict=False))
        return torch.cat([found[place] for place in range(len(images))], 1)

    @cached_property
    @torch.no_grad()
    def _alone_differs(self) -> bool:
        """Whether an image alone has other tokens than beside another one: LLaVA-OneVision then adds tiles of it."""
        blank = torch.zeros(1, 2, 3, 64, 64, dtype=torch.uint8)
        return 2 * self._encoded(blank[:, :1]).shape[1] != self._encoded(blank).shape[1]

    def _encoded(self, images: Tensor) -> Tensor:
        """Images of one size (B, N, 3, h, w) as tokens (B, N * tokens an image, K * H)."""
        features = self._features(images)
        first = features.pooler_output
        levels = [first if isinstance(first, Tensor) else torch.cat(list(first))]
        levels += getattr(features, "deepstack_features", None) or []
        rows = [level.reshape(len(images), -1, self.hidden_size) for level in levels]
        return torch.cat(rows, -1)

    # ---- passes

    def whole(self, prompt: Prompt, image_tokens: Tensor, tokens: Tensor) -> Tensor:
        """Run prompt and our tokens (B, S, H) in one pass; return the last hidden states of our tokens (B, S, H)."""
        return self.turns([prompt], image_tokens[:, None], tokens[:, None])[0][:, 0]

    def turns(
        self,
        prompts: Sequence[Prompt],
        image_tokens: Tensor,
        tokens: Tensor,
        past: Prefix | None = None,
        keep: bool = False,
    ) -> tuple[Tensor, Prefix | None]:
        """Run K turns of a chat, each with our tokens at its end, in one pass: all see those before them.

        Args:
            prompts: K turns, without our tokens.
            image_tokens: (B, K, n, K' * H), each turn's images.
            tokens: (B, K, S, H), ours.
            past: the turns before, whose keys and values grow by these.
            keep: whether more turns are to follow.

        Returns:
            The last hidden states of our tokens (B, K, S, H), and if `keep` the past of the next turn.
        """
        length, padding = max(map(len, prompts)), self.processor.tokenizer.pad_token_id or 0
        ours = [self._extended(prompt.padded(length, padding), tokens.shape[2]) for prompt in prompts]
        chat = joined(ours if past is None else [past.prompt, *ours])
        new = slice(-sum(map(len, ours)), None)
        # A model that reads types with images (Gemma 3, PaliGemma) wants those of the past too.
        part = Prompt(chat.ids[:, new], chat.mask, chat.positions[..., new], chat.types)
        settings = {} if past is None else {"past_key_values": past.cache}
        output = self._pass(part, image_tokens.flatten(1, 2), tokens, use_cache=keep, **settings)
        hidden = output.last_hidden_state.unflatten(1, (len(prompts), -1))[:, :, -tokens.shape[2] :]
        return hidden, Prefix(output.past_key_values, chat) if keep else None

    def prefix(self, prompt: Prompt, image_tokens: Tensor) -> Prefix:
        """Run the prompt alone and keep its keys and values."""
        output = self._pass(prompt, image_tokens, None, use_cache=True)
        return Prefix(output.past_key_values, prompt)

    def suffix(self, prefix: Prefix, tokens: Tensor) -> Tensor:
        """Run our tokens (B, S, H) after a prefix (which grows by them); return their last hidden states (B, S, H)."""
        extended = self._extended(prefix.prompt, tokens.shape[1])
        new = slice(-tokens.shape[1], None)
        types = {name: value[:, new] for name, value in extended.types.items()}
        ours = Prompt(extended.ids[:, new], extended.mask, extended.positions[..., new], types)
        output = self._pass(ours, None, tokens[:, None], use_cache=True, past_key_values=prefix.cache)
        return output.last_hidden_state

    @cached_property
    def splits(self) -> bool:
        """Whether prefix and suffix give what the whole pass gives; found by trying, once, with two short prompts."""
        with self._trial() as (prompt, seen, tokens):
            only, ours = prompt(None), tokens[:, 0]
            split = self.suffix(self.prefix(only, seen[:, 0]), ours)
            return _alike(split, self.whole(only, seen[:, 0], ours))

    @cached_property
    def converses(self) -> bool:
        """Whether two turns, one after the other, give what both in one pass give; found by trying, once."""
        with self._trial() as (prompt, seen, tokens):
            prompts = [prompt(True), prompt(False)]
            past = self.turns(prompts[:1], seen[:, :1], tokens[:, :1], keep=True)[1]
            last = self.turns(prompts[1:], seen[:, 1:], tokens[:, 1:], past)[0]
            return _alike(last, self.turns(prompts, seen, tokens)[0][:, 1:])

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    # ---- inside

    @cached_property
    def _marks(self) -> list[str]:
        return marks_of(self.processor)

    def _single(self, instruction: str, images: tuple[Size, ...], first: bool) -> Prompt:
        """The prompt of one instruction, without padding. Where each token stands, the model is asked."""
        blank = [torch.zeros(3, *size, dtype=torch.uint8) for size in images]
        inputs = self.inputs([blank], [instruction], first)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        positions = torch.arange(ids.shape[1])[None, None]
        if hasattr(self.model.base_model, "get_rope_index"):
            positions, _ = self.model.base_model.get_rope_index(**inputs)
        types = {name: value for name, value in inputs.items() if name.endswith("token_type_ids")}
        return Prompt(ids, mask, positions, types)

    def _extended(self, prompt: Prompt, count: int) -> Prompt:
        """The prompt with placeholders for `count` of our tokens at its end."""
        kind = CAUSAL_TOKEN_TYPE.get(self.model.config.model_type, 0)
        return prompt.extended(count, self.processor.tokenizer.eos_token_id, kind)

    @contextmanager
    def _trial(self) -> Iterator[tuple[Callable[[bool | None], Prompt], Tensor, Tensor]]:
        """Two short chats of two turns to try something with: their first or second prompts, image tokens, ours."""
        was_training = self.training
        self.eval()
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (2, 1, 3, 64, 64), generator=generator, dtype=torch.uint8)
        tokens = torch.randn(2, 3, self.hidden_size, generator=generator).to(self.device) * self.embedding_scale()
        texts, size = ["go", "put it on the plate"], ((64, 64),)
        try:
            with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                seen = self.image_tokens(images.unbind(1))
                turns = torch.stack([seen, seen.flip(0)], 1), torch.stack([tokens, tokens.flip(0)], 1)
                yield lambda first: self.prompt(texts, size, first=None if first is None else [first] * 2), *turns
        finally:
            self.train(was_training)

    def _pass(self, prompt: Prompt, image_tokens: Tensor | None, tokens: Tensor | None, **settings: Any) -> Any:
        """The model's own forward pass, without the output head."""
        inputs = {"input_ids": prompt.ids, "attention_mask": prompt.mask, **prompt.types, **settings}
        inputs["position_ids"] = prompt.positions if len(prompt.positions) > 1 else prompt.positions[0]
        if image_tokens is not None:
            inputs["pixel_values"] = image_tokens  # not read: see `filled`
        listed = image_tokens is not None and self._listed
        with filled(self.model, image_tokens, listed, tokens):
            return self.model.base_model(**inputs)

    def _features(self, images: Tensor) -> Any:
        """What the model's vision path yields of images (B, N, 3, h, w). Raises UserError if there is none."""
        if not hasattr(self.model.base_model, "get_image_features"):
            raise UserError(
                f"expected a VLM whose images become tokens of its language model, found {type(self.model).__name__} "
                "without get_image_features; fix: choose another one (docs/families.md)"
            )
        return self.model.get_image_features(**self.pixels(images), return_dict=True)

    @cached_property
    def _listed(self) -> bool:
        """Whether the vision path yields a list with each image's tokens, instead of one tensor."""
        with torch.no_grad():
            blank = torch.zeros(1, 1, 3, 64, 64, dtype=torch.uint8)
            return not isinstance(self._features(blank).pooler_output, Tensor)


def _alike(found: Tensor, wanted: Tensor) -> bool:
    return bool((found - wanted).abs().max() / wanted.abs().max() < 1e-3)
