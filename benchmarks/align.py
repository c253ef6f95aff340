"""Alignment from caches against alignment as the reference code does it: the whole VLM and the whole expert in every
step, on pictures. Same students, same data, one run, batches of 64.

    python benchmarks/align.py                   # about 10 minutes of one quiet core

The nano VLM takes 100 steps on each side, and one for each precision of the caches; their losses are compared. Then a
VLM with a language model of SmolLM2-135M's sizes and the vision tower that SmolVLM-256M has (SigLIP-B that looks at
512 px), random weights: a sample of it takes about 500 GFLOP uncached, so 8 frames are enough to tell, and the cached
side reads each of them 8 times a batch. CPU seconds of one thread are counted, which a busy machine does not change.
Pictures are decoded before the uncached side begins; to fill the caches they are decoded as they always are. The data
are the first episodes of the built-in demonstrations.
Required: ratio at least 10 (nano), 15 (135M), 3 with the cost of filling over 5 epochs; losses within 1e-4.
"""

import argparse
import copy
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as parquet
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from rich.table import Table
from torch.optim.lr_scheduler import LambdaLR
from transformers import AutoTokenizer, LlamaConfig, SmolVLMConfig

from apprentice.common.progress import console
from apprentice.data.dataset import open_dataset
from apprentice.data.items import observed
from apprentice.data.mixture import open_mixture
from apprentice.distill.caches.cache import STORED, cached
from apprentice.distill.caches.rows import Rows, Views
from apprentice.distill.config import CacheConfig
from apprentice.distill.learner import decay
from apprentice.distill.samples import Samples, order
from apprentice.distill.stages import StageConfig, fresh_student
from apprentice.nano.compose import SMOLVLM_MARKS, smolvlm_processor
from apprentice.nano.tokenizer import CHAT_TEMPLATE
from apprentice.policy.modeling_apprentice import ApprenticePolicy

ASSETS = Path(__file__).resolve().parent.parent / "assets"
DEMONSTRATIONS = ASSETS / "demonstrations" / "libero_goal"
BATCH, EPOCHS = 64, 5
UNCACHED = "uncached"


class Side:
    """A student that trains on batches of its own making, and what its steps take."""

    def __init__(self, policy: ApprenticePolicy, batch: Callable[[np.ndarray], Any], steps: int):
        self.policy, self.batch = copy.deepcopy(policy).train(), batch
        self.optimizer = torch.optim.AdamW(self.policy.get_optim_params(), weight_decay=policy.config.weight_decay)
        self.scheduler = LambdaLR(self.optimizer, decay(steps))
        self.seconds: list[float] = []  # of CPU time, for a sample
        self.losses: list[float] = []

    def step(self, number: int, index: np.ndarray) -> None:
        """An optimizer step as the trainer takes it."""
        torch.manual_seed(number)
        start = time.process_time()
        loss, _ = self.policy(self.batch(index))
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in self.policy.parameters() if p.requires_grad], 1.0)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        self.seconds.append((time.process_time() - start) / len(index))
        self.losses.append(loss.item())

    @property
    def second(self) -> float:
        """CPU seconds of a sample."""
        return median(self.seconds)

    def difference(self, other: "Side") -> float:
        """The largest difference of a step's loss."""
        return max(abs(a - b) for a, b in zip(self.losses, other.losses, strict=True))


def demonstrations(episodes: int, folder: Path) -> LeRobotDataset:
    """The first episodes, as a dataset of their own in `folder`; videos stay where they are."""
    for name in ("tasks.parquet", "stats.json", "contract.json"):
        write(folder / "meta" / name).write_bytes((DEMONSTRATIONS / "meta" / name).read_bytes())
    (folder / "videos").symlink_to(DEMONSTRATIONS / "videos")
    lengths = []
    for table in ("data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"):
        rows = parquet.read_table(DEMONSTRATIONS / table)
        kept = rows.filter(pc.less(rows["episode_index"], episodes))
        parquet.write_table(kept, write(folder / table))
        lengths.append(len(kept))
    info = json.loads((DEMONSTRATIONS / "meta" / "info.json").read_text())
    info |= {"total_episodes": episodes, "total_frames": lengths[0], "splits": {"train": f"0:{episodes}"}}
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    return open_dataset(folder)


def write(path: Path) -> Path:
    """The same path, in a folder that exists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def pictures(policy: ApprenticePolicy, dataset: LeRobotDataset, every: int = 1) -> Callable[[np.ndarray], Any]:
    """Batches without anything cached but the decoded pictures, which lie in memory."""
    samples = Samples(dataset, policy.config, {}, torch.device("cpu"), every)
    cameras = list(policy.config.image_features)
    images = observed(dataset, keys=cameras).batch(np.arange(0, dataset.num_frames, every))
    return lambda index: samples[index] | {camera: images[camera][index] for camera in cameras}


def student(dataset: LeRobotDataset, stage: str, vlm: Path, scratch: bool = False) -> ApprenticePolicy:
    """A fresh student of the built-in expert."""
    torch.manual_seed(0)
    places = {"dataset": dataset.root, "out": "", "vlm": vlm, "expert": ASSETS / "seer"}
    config = StageConfig(**{name: str(place) for name, place in places.items()}, scratch=scratch)
    policy = fresh_student(config, open_mixture(config.dataset))
    policy.set_stage(stage)
    return policy


def filled(
    policy: ApprenticePolicy, dataset: LeRobotDataset, precision: str = CacheConfig.cache_precision, every: int = 1
) -> tuple[dict[str, Views], float]:
    """The caches, and the CPU seconds that it took to fill those that were not there."""
    start = time.process_time()
    return cached(policy, dataset, CacheConfig(every=every, cache_precision=precision)), time.process_time() - start


def nano(dataset: LeRobotDataset, steps: int) -> tuple[float, float, float]:
    """The ratio, the ratio with the cost of filling, and the largest difference of losses, float32 against uncached."""
    policy = student(dataset, "align", ASSETS / "nano-vlm")
    fills, sizes, sides = {}, {}, {}
    for precision in sorted(STORED, key=lambda name: name != CacheConfig.cache_precision):  # the default from nothing
        rows, fills[precision] = filled(policy, dataset, precision)
        sizes[precision] = sum(r.about.row_bytes for views in rows.values() for r in views.rows if isinstance(r, Rows))
        sides[precision] = Side(policy, Samples(dataset, policy.config, rows, policy.vlm.device).__getitem__, steps)
    policy.vlm.splits = False  # the whole prompt in each step, forward and back
    sides[UNCACHED] = whole = Side(policy, pictures(policy, dataset), steps)
    count = dataset.num_frames
    for step in range(steps):
        index = order(step, BATCH, count, seed=0)
        for side in sides.values():
            side.step(step, index)
    table = Table(title=f"align, nano VLM, {count:,} frames, {steps} steps of {BATCH}", title_justify="left")
    for column in ("caches", "samples/CPU-s", "ratio", "kB a frame", "largest difference", "loss, last 20 steps"):
        table.add_column(column, justify="left" if column == "caches" else "right")
    for name, side in sides.items():
        last = sum(side.losses[-20:]) / len(side.losses[-20:])
        size = f"{sizes[name] / 1e3:.1f}" if name in sizes else ""
        row = (f"{1 / side.second:.0f}", f"{whole.second / side.second:.1f}", size)
        table.add_row(name, *row, f"{side.difference(whole):.1e}", f"{last:.6f}")
    console.print(table)
    side, samples = sides[CacheConfig.cache_precision], count * EPOCHS
    filling = fills[CacheConfig.cache_precision] / count * 1e3
    console.print(f"filling {CacheConfig.cache_precision} caches from nothing: {filling:.1f} CPU-ms a frame")
    together = samples * whole.second / (fills[CacheConfig.cache_precision] + samples * side.second)
    return whole.second / side.second, together, sides["float32"].difference(whole)


def large(dataset: LeRobotDataset, frames: int, steps: int = 3) -> tuple[float, float]:
    """Ratio and difference of the first loss, of a VLM with 135 M parameters of a language model."""
    every = dataset.num_frames // frames
    with tempfile.TemporaryDirectory() as folder:
        large_vlm(Path(folder))
        policy = student(dataset, "align", Path(folder), scratch=True)
    parameters = sum(p.numel() for p in policy.vlm.model.get_decoder().parameters())
    rows, seconds = filled(policy, dataset, every=every)
    samples = Samples(dataset, policy.config, rows, policy.vlm.device, every)
    first = Side(policy, samples.__getitem__, 1)
    first.step(0, np.arange(frames))
    side = Side(policy, samples.__getitem__, steps)
    for step in range(steps):
        side.step(step, np.arange(BATCH) % frames)
    policy.vlm.splits = False
    whole = Side(policy, pictures(policy, dataset, every), 1)
    whole.step(0, np.arange(frames))
    table = Table(title=f"align, language model of {parameters / 1e6:.0f} M parameters", title_justify="left")
    for column in ("", "samples/CPU-s", "ratio"):
        table.add_column(column, justify="right" if column else "left")
    for name, each in (("cached", side), (UNCACHED, whole)):
        table.add_row(name, f"{1 / each.second:.3g}", f"{whole.second / each.second:.1f}")
    console.print(table)
    size = sum(views.rows[0].about.row_bytes for views in rows.values() if isinstance(views.rows[0], Rows))
    console.print(f"filling: {seconds / len(samples):.1f} CPU-s a frame, {size / 1e6:.2f} MB")
    return whole.second / side.second, abs(first.losses[0] - whole.losses[0])


def large_vlm(folder: Path) -> None:
    """SmolVLM-256M without its weights: sizes of SmolLM2-135M and of SigLIP-B; the nano VLM's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "nano-vlm")
    tokenizer.add_special_tokens({"additional_special_tokens": SMOLVLM_MARKS})
    text = LlamaConfig(
        vocab_size=49280,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 512,
        "patch_size": 16,
    }
    image = tokenizer.convert_tokens_to_ids("<image>")
    config = SmolVLMConfig(
        vision_config=vision,
        text_config=text.to_dict(),
        scale_factor=4,
        image_token_id=image,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
    )
    config.architectures = ["SmolVLMForConditionalGeneration"]
    config.save_pretrained(folder)
    smolvlm_processor(512, 64, tokenizer, CHAT_TEMPLATE).save_pretrained(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100, help="of the nano VLM")
    parser.add_argument("--episodes", type=int, default=9, help="that the nano VLM learns from")
    parser.add_argument("--frames", type=int, default=8, help="of the VLM with 135 M parameters; 0 for none")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        os.environ["APPRENTICE_CACHE"] = place
        dataset = demonstrations(options.episodes, Path(place) / "demonstrations")
        ratio, together, difference = nano(dataset, options.steps)
        wider = large(dataset, options.frames) if options.frames else None
    if wider:
        console.print(f"135M: ratio {wider[0]:.1f}, difference of its first loss {wider[1]:.1e}")
    console.print(f"nano, losses over {options.steps} steps, float32 caches: within {difference:.1e} of uncached ones")
    console.print(f"nano, filling included, over {EPOCHS} epochs: ratio {together:.2f}")
    console.print(f"ratio: {ratio:.1f}")
