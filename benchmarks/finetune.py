"""Fine-tuning with cached image tokens against fine-tuning on pictures: same students and data, batches of 64, one run.

    python benchmarks/finetune.py                # about 3 minutes of one quiet core

The nano VLM. Steps of both sides take turns; CPU seconds of one thread are counted, which a busy machine does not
change, and pictures are decoded beforehand. Required: ratio at least 1.5.
"""

import argparse
import os
import tempfile
from pathlib import Path

import torch
from align import ASSETS, BATCH, Side, demonstrations, filled, pictures, student
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from rich.table import Table

from apprentice.common.progress import console
from apprentice.distill.samples import Samples, order


def compare(dataset: LeRobotDataset, steps: int) -> float:
    """The ratio of CPU seconds; prints a table."""
    policy = student(dataset, "finetune", ASSETS / "nano-vlm")
    rows, _ = filled(policy, dataset)
    samples = Samples(dataset, policy.config, rows, policy.vlm.device)
    cached = Side(policy, samples.__getitem__, steps)
    uncached = Side(policy, pictures(policy, dataset), steps)
    for step in range(steps):
        for side in (cached, uncached):
            side.step(step, order(step, BATCH, len(samples), seed=0))
    table = Table(title=f"fine-tune, nano VLM, {steps} steps of {BATCH}", title_justify="left")
    for column in ("image tokens", "samples/CPU-s", "ratio", "loss, first", "loss, last"):
        table.add_column(column, justify="left" if column == "image tokens" else "right")
    for name, side in (("cached", cached), ("computed", uncached)):
        losses = (f"{side.losses[0]:.5f}", f"{side.losses[-1]:.5f}")
        table.add_row(name, f"{1 / side.second:.1f}", f"{uncached.second / side.second:.2f}", *losses)
    console.print(table)
    return uncached.second / cached.second


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--episodes", type=int, default=3, help="of the built-in demonstrations")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        os.environ["APPRENTICE_CACHE"] = place
        ratio = compare(demonstrations(options.episodes, Path(place) / "demonstrations"), options.steps)
    console.print(f"ratio: {ratio:.2f}")
