"""What `apprentice plan` predicts for VLMs of published sizes, as the table of docs/scaling.md.

    python benchmarks/memory.py            # prints the table
    python benchmarks/memory.py --write    # writes it into docs/scaling.md

The model hub cannot be reached from a test, so the sizes stand here, as config.json has them there; the tokenizers are
small ones, which changes a prompt by a few tokens. No weights are made.
"""

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import LlamaConfig, SmolVLMConfig

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
PAGE = ROOT / "docs" / "scaling.md"
BEGIN, END = "<!-- from benchmarks/memory.py -->\n", "<!-- end -->\n"
EXPERT, DATASET = "assets/seer", "assets/demonstrations/libero_goal"
BATCHES = (8, 64)  # planned; the peak of others lies on a line through these
GPUS = (8, 16, 24, 80)  # GB
SPARE = 0.9  # of a GPU's memory is ours: the rest is CUDA's own and fragments
STAGES = ("align", "finetune", "finetune, LoRA")


@dataclass(frozen=True)
class Smol:
    """Sizes of a SmolVLM2, from its config.json on the hub: hidden, layers, intermediate, heads, key-value heads."""

    name: str
    text: tuple[int, int, int, int, int]
    vision: tuple[int, int, int, int] = (768, 12, 3072, 12)
    image: int = 512
    scale: int = 4
    vocabulary: int = 49_280

    def save(self, folder: Path) -> None:
        """Configuration and processor, no weights."""
        from apprentice.nano.graft import SMOLVLM_MARKS, smolvlm_processor

        from apprentice.nano.tokenizer import CHAT_TEMPLATE, train_tokenizer

        tokenizer = train_tokenizer(["put the bowl on the plate"] * 10, vocab_size=560)
        tokenizer.add_special_tokens({"additional_special_tokens": SMOLVLM_MARKS})
        for name, token in zip(("fake_image_token", "global_image_token"), SMOLVLM_MARKS[1:], strict=True):
            tokenizer._set_model_specific_special_tokens({name: token})
        ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
        names = ("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "num_key_value_heads")
        vision = dict(zip(names, self.vision, strict=False)) | {"image_size": self.image, "patch_size": 16}
        text = LlamaConfig(**dict(zip(names, self.text, strict=True)), vocab_size=self.vocabulary, **ids)
        SmolVLMConfig(
            vision_config=vision,
            text_config=text.to_dict(),
            scale_factor=self.scale,
            image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
            **ids,
        ).save_pretrained(folder)
        tokens = (self.image // 16 // self.scale) ** 2
        smolvlm_processor(self.image, tokens, tokenizer, CHAT_TEMPLATE).save_pretrained(folder)


@dataclass(frozen=True)
class Qwen:
    """Sizes of a Qwen2.5-VL, from its config.json on the hub."""

    name: str
    text: dict[str, Any]
    vision: dict[str, Any]

    def save(self, folder: Path) -> None:
        """Configuration and processor, no weights."""
        import torch
        from tests.vlm import families
        from transformers import Qwen2VLImageProcessor

        families_text = {"rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6}}
        with torch.device("meta"):
            model, processor = families.qwen(
                "Qwen2_5_VL",
                Qwen2VLImageProcessor(),
                families.Qwen2VLVideoProcessor(),
                self.text | families_text,
                self.vision,
            )
        model.config.save_pretrained(folder)
        processor.save_pretrained(folder)


VLMS: list[Smol | Qwen] = [
    Smol("SmolVLM2-256M", (576, 30, 1536, 9, 3)),
    Smol("SmolVLM2-500M", (960, 32, 2560, 15, 5)),
    Qwen(
        "Qwen2.5-VL-3B",
        {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
         "num_key_value_heads": 2, "vocab_size": 151_936, "tie_word_embeddings": True},
        {"hidden_size": 1280, "intermediate_size": 3420, "depth": 32, "num_heads": 16, "out_hidden_size": 2048},
    ),
    Qwen(
        "Qwen2.5-VL-7B",
        {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
         "num_key_value_heads": 4, "vocab_size": 152_064, "tie_word_embeddings": False},
        {"hidden_size": 1280, "intermediate_size": 3420, "depth": 32, "num_heads": 16, "out_hidden_size": 3584},
    ),
]  # fmt: skip


def predicted(vlm: Smol | Qwen, batch: int) -> Any:
    """The plan of a VLM at a batch."""
    from apprentice.distill.plan import plan

    with tempfile.TemporaryDirectory() as folder:
        vlm.save(Path(folder))
        return plan(folder, str(ROOT / EXPERT), batch, str(ROOT / DATASET)).content


def largest(peaks: list[float], gpu: int) -> str:
    """The largest batch that fits a GPU, from the peaks (GB) at `BATCHES`."""
    (few, many), (less, more) = BATCHES, peaks
    fixed = less - (slope := (more - less) / (many - few)) * few
    fits = int((SPARE * gpu - fixed) / slope)
    return str(fits) if fits > 0 else "none"


def page() -> str:
    """The tables in Markdown."""
    head = [
        "| VLM | stage | peak at 64 | weights, gradients, averages | saved for the backward pass | work of a step |"
    ]
    head += ["| --- | --- | ---: | ---: | ---: | ---: |"]
    fits = [f"| VLM | stage | {' | '.join(f'{gpu} GB' for gpu in GPUS)} |", f"| --- | --- |{' ---: |' * len(GPUS)}"]
    for vlm in VLMS:
        plans = {batch: predicted(vlm, batch) for batch in BATCHES}
        for stage in STAGES:
            found = plans[BATCHES[-1]].stages[stage]
            kept = found.weights + found.gradients + found.optimizer
            head.append(
                f"| {vlm.name} | {stage} | {found.peak / 1e9:.1f} GB | {kept / 1e9:.1f} GB "
                f"| {found.saved / 1e9:.1f} GB | {found.work / 1e12:.2f} TFLOP |"
            )
            peaks = [plans[batch].stages[stage].peak / 1e9 for batch in BATCHES]
            fits.append(f"| {vlm.name} | {stage} | {' | '.join(largest(peaks, gpu) for gpu in GPUS)} |")
    return "\n".join([*head, "", "The largest batch that fits a GPU, a tenth of its memory left free:", "", *fits, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the table into docs/scaling.md")
    tables = page()
    if parser.parse_args().write:
        before, rest = PAGE.read_text().split(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}{tables}{END}{rest.split(END)[1]}")
    print(tables)


if __name__ == "__main__":
    main()
