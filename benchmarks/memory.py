"""What `apprentice plan` predicts for VLMs of published sizes, as tables for docs/scaling.md.

    python benchmarks/memory.py

The model hub cannot be reached from a test, so the sizes stand here, as config.json has them there; the tokenizers are
small ones, which changes a prompt by a few tokens. No weights are made.
"""

import argparse
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from infer import BACKBONES, Backbone

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
EXPERT, DATASET = "assets/seer", "assets/demonstrations/libero_goal"
BATCHES = (8, 64)  # planned; the peak of others lies on a line through these
GPUS = (8, 16, 24, 80)  # GB
SPARE = 0.9  # of a GPU's memory is ours: the rest is CUDA's own and fragments
STAGES = ("align", "finetune", "finetune, LoRA")


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

        rope = {"rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6}}
        with torch.device("meta"):
            model, processor = families.qwen(
                "Qwen2_5_VL",
                Qwen2VLImageProcessor(),
                families.Qwen2VLVideoProcessor(),
                self.text | rope,
                self.vision,
            )
        model.config.save_pretrained(folder)
        processor.save_pretrained(folder)


SMOL = replace(BACKBONES["256M"], vocabulary=49_280)
VLMS: list[Backbone | Qwen] = [
    SMOL,
    replace(SMOL, name="SmolVLM2-500M", text=(960, 32, 2560, 15, 5)),
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


def predicted(vlm: Backbone | Qwen, batch: int) -> Any:
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
            print(head[-1], fits[-1], sep="\n", file=sys.stderr, flush=True)  # each takes minutes
    return "\n".join([*head, "", "The largest batch that fits a GPU, a tenth of its memory left free:", "", *fits, ""])


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print(page())


if __name__ == "__main__":
    main()
