"""Which vision tower of the nano VLM sees best for equal computing time, and what it costs a policy.

    python benchmarks/vlm_towers.py --data scenes --output towers --minutes 25           # each tower, in turn
    python benchmarks/vlm_towers.py --data scenes --output towers --minutes 25 --towers 16-tokens 64-tokens

Each tower learns from the dense read-outs alone (no questions) for so many CPU minutes, at a level rate, from the same
layouts in the same order. Reported: layouts it got through, what the average of its weights finds on layouts that it
never saw (see `checks`), ms a plan (tower and language model over both images, 16 words and 51 more tokens, random
weights, one thread), and bytes of its image tokens a frame. What is done is kept in OUTPUT, and a tower that was
stopped goes on.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from apprentice.common.files import read_json, write_json
from apprentice.common.progress import console
from apprentice.nano.batches import Chat, Corpus
from apprentice.nano.model import NanoConfig, build_model, build_processor
from apprentice.nano.pretrain import PretrainConfig, PretrainTrainer, tokenizer_of
from apprentice.nano.score.validation import HeldOut
from apprentice.nano.trainer import batches

TOWERS = {
    "16-tokens": NanoConfig(),
    "64-tokens": NanoConfig(vision_widths=(32, 64, 256), vision_depths=(0, 1, 3)),
    "shallow": NanoConfig(vision_depths=(0, 1, 1, 1)),
}
SHOWN = ("heat", "workspace", "hand", "loss category", "loss heat", "loss search")
PASSES = 20  # timed
REPORT = 60.0  # s of computing between checkpoints


@dataclass
class Work:
    """What all towers share."""

    data: str
    output: Path
    tokenizer: PreTrainedTokenizerBase
    corpus: Corpus


def learn(name: str, minutes: float, work: Work) -> dict[str, float]:
    """Train one tower for so many CPU minutes, or on from where it stopped, and look at what it sees."""
    nano, folder = TOWERS[name], work.output / name
    folder.mkdir(exist_ok=True)
    config = PretrainConfig(
        work.data, str(folder), steps=1_000_000, vision_share=1.0, warmup=50e-6, ema=0.99, nano=nano
    )
    trainer, state = PretrainTrainer(config, work.tokenizer), folder / "state.json"
    trainer.resume(folder / "checkpoint.safetensors")
    used = float(read_json(state)["cpu"]) if state.exists() else 0.0
    begun = saved = time.process_time() - used
    for batch in batches(work.corpus, trainer):
        if used >= 60 * minutes:
            break
        trainer.update(batch)
        used = time.process_time() - begun
        if used - saved > REPORT or used >= 60 * minutes:
            trainer.save(folder / "checkpoint.safetensors")
            write_json(state, {"cpu": used, "step": trainer.step})
            saved = used
            console.print(f"{name}: {trainer.step * config.batch} layouts, {used / 60:.1f} of {minutes:.1f} minutes")
    chat = Chat.of(build_processor(nano, work.tokenizer))
    trainer.checks = [HeldOut(work.data, part, chat) for part in ("layouts", "own")]
    return trainer.check() | {"layouts passed": float(trainer.step * config.batch)}


@torch.inference_mode()
def plan(nano: NanoConfig, tokenizer: PreTrainedTokenizerBase) -> float:
    """CPU milliseconds of a pass over two images, 16 words and the 51 tokens that a policy appends; the median."""
    model = build_model(nano, tokenizer).eval()
    images = torch.zeros(2, 3, nano.image, nano.image)
    ids = torch.full((1, 2 * nano.image_tokens + 16 + 51), 7)
    ids[:, : 2 * nano.image_tokens] = model.config.image_token_id
    times = []
    for _ in range(PASSES):
        begun = time.process_time()
        model(input_ids=ids, pixel_values=images)
        times.append(time.process_time() - begun)
    return 1000 * float(np.median(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of scenes, made by `apprentice scenes`")
    parser.add_argument("--output", required=True, type=Path, help="folder to write")
    parser.add_argument("--minutes", type=float, default=25.0, help="of computing for each tower")
    parser.add_argument("--towers", nargs="+", choices=list(TOWERS), default=list(TOWERS), help="which to try")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer_of(PretrainConfig(options.data, str(options.output)), options.output / "tokenizer")
    chat = Chat.of(build_processor(NanoConfig(), tokenizer))
    work = Work(options.data, options.output, tokenizer, Corpus(options.data, "train", chat))
    table = Table(
        "tower", "layouts", "ms a plan", "bytes a frame", *(f"{s} ({p})" for p in ("layouts", "own") for s in SHOWN)
    )
    for name in options.towers:
        nano = TOWERS[name]
        found = learn(name, options.minutes, work)
        row = [f"{found[f'{part} {shown}']:.3g}" for part in ("layouts", "own") for shown in SHOWN]
        size = 2 * nano.image_tokens * nano.width * 2
        table.add_row(name, f"{found['layouts passed']:.0f}", f"{plan(nano, tokenizer):.0f}", str(size), *row)
    console.print(table)


if __name__ == "__main__":
    main()
