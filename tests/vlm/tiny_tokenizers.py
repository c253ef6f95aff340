"""Tokenizers for tiny models: byte-level, with a family's special tokens."""

from typing import Any

from tests.support import TASKS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

# The part of a chat template that writes a message's content; IMAGE stands for what the family puts there.
FOR_EACH_PART = (
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}IMAGE"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
)


def tiny_tokenizer(
    bos: str | None, eos: str, special: list[str], named: dict[str, str] | None = None, adds_bos: bool = False
) -> Any:
    """At most 400 tokens; `named` are special tokens that the family's processor reads as attributes."""
    begin = {} if bos is None else {"bos_token": bos}
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    everything = ["<pad>", eos, *begin.values(), *special, *(named or {}).values()]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(dict.fromkeys(everything)),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TASKS * 5, trainer)
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    extra = {"extra_special_tokens": named} if named else {}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos, pad_token="<pad>", **begin, **extra)
