"""Where the time goes in each stage, what limits it, and how far we are from it (docs/results/performance.md).

    python benchmarks/stages.py                  # about 3 minutes on a quiet core

The built-in VLM, expert and demonstrations, fresh weights, one thread; CPU seconds, which a busy machine does not
change. Peaks are measured in the same run: a product of 1,024 x 1,024 matrices for arithmetic, a copy of 256 MB for
memory. FLOP are those of products and convolutions; bytes are what all operators read and write, one after
the other, as if no cache were there. The limit of a stage is the time that its FLOP take at the peak (ms); "memory" is
the time that its bytes take.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs import FeatureType
from lerobot.utils.feature_utils import dataset_to_policy_features
from rich.table import Table
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from apprentice.common.progress import console
from apprentice.data.batch import EXPERT_LATENTS, IMAGE_TOKENS, PREFIX
from apprentice.data.dataset import open_dataset
from apprentice.data.items import Items
from apprentice.evaluate.results import Evaluation
from apprentice.evaluate.rollout import evaluate
from apprentice.policy.configuration_apprentice import ApprenticeConfig
from apprentice.policy.inputs import camera_images
from apprentice.policy.modeling_apprentice import ApprenticePolicy
from apprentice.policy.processor_apprentice import make_apprentice_pre_post_processors

ASSETS = Path(__file__).parents[1] / "assets"
BATCH, REPEATS, STEP_COUNT = 32, 7, 120
GROUPS = {
    "products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "conv", "mkldnn"),
    "attention": ("scaled_dot_product", "aten::_softmax"),
    "optimizer": ("Optimizer", "_foreach", "_fused", "clip_grad"),
    "other operators": ("aten::", "Backward", "autograd"),
}


class Bytes(TorchDispatchMode):
    """Adds up what operators read and write; views move nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)]
            self.total += sum(x.numel() * x.element_size() for x in tensors)
        return out


def best(run: Callable[[], Any], count: int = 7) -> float:
    """The shortest time of some (s)."""
    return min(timed(run) for _ in range(count))


def timed(run: Callable[[], Any]) -> float:
    """CPU seconds, of all threads."""
    start = time.process_time()
    run()
    return time.process_time() - start


def peaks() -> tuple[float, float]:
    """FLOP/s and bytes/s of this machine, with as many threads as are set."""
    a, b = torch.randn(2, 1024, 1024)
    source, target = torch.zeros(2, 1 << 26)
    return 2 * 1024**3 / best(lambda: a @ b, 15), 2 * source.nbytes / best(lambda: target.copy_(source))


def student() -> tuple[ApprenticePolicy, dict[str, Any]]:
    """A fresh student, and a batch of the demonstrations with all that can be cached."""
    torch.manual_seed(0)
    data = open_dataset(ASSETS / "demonstrations/libero_goal")
    features = dataset_to_policy_features(data.meta.features)
    config = ApprenticeConfig(
        vlm=str(ASSETS / "nano-vlm"),
        expert=str(ASSETS / "seer"),
        input_features={k: f for k, f in features.items() if f.type is not FeatureType.ACTION},
        output_features={k: f for k, f in features.items() if f.type is FeatureType.ACTION},
        device="cpu",
    )
    policy = ApprenticePolicy(config, dataset_stats=data.meta.stats, dataset_meta=data.meta)
    keys = [*config.image_features, "observation.state", "action"]
    items = Items(data, {"action": config.action_delta_indices}, keys)
    return policy, items.batch(np.random.default_rng(0).permutation(len(items))[:BATCH])


def training(policy: ApprenticePolicy, stage: str, batch: dict[str, Any]) -> Callable[[], None]:
    """A step of a stage, with its optimizer."""
    policy.set_stage(stage)
    optimizer = torch.optim.AdamW(policy.get_optim_params())
    trained = [p for p in policy.parameters() if p.requires_grad]

    def step() -> None:
        policy.set_stage(stage)
        policy.train()
        loss, _ = policy(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


@torch.no_grad()
def stages(policy: ApprenticePolicy, batch: dict[str, Any]) -> dict[str, tuple[int, Callable[[], Any]]]:
    """By name: samples of a call, and the call."""
    tokens, latents = policy.vlm.image_tokens(camera_images(policy.config, batch)), policy.expert.encode(batch)
    length = policy.prompt(batch).ids.shape[1]
    packed = policy.prefix({**batch, IMAGE_TOKENS: tokens}, length).pack()
    small = {key: batch[key] for key in ("observation.state", "action", "action_is_pad", "task")}
    seen = {**small, IMAGE_TOKENS: tokens, EXPERT_LATENTS: latents}
    one = {key: value[:1] for key, value in batch.items()}
    return {
        "align, nothing cached": (BATCH, training(policy, "align", batch)),
        "align, keys and values cached": (BATCH, training(policy, "align", {**seen, PREFIX: packed})),
        "fine-tune, images encoded": (BATCH, training(policy, "finetune", {**batch, EXPERT_LATENTS: latents})),
        "fine-tune, image tokens cached": (BATCH, training(policy, "finetune", seen)),
        "plan a chunk": (1, lambda: policy.predict_action_chunk(one)),
    }


def shares(run: Callable[[], Any]) -> dict[str, float]:
    """Of the time of a call, by kind of operator; the rest is Python's. The profiler knows the clock alone."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        start = time.perf_counter()
        for _ in range(3):
            run()
        wall = time.perf_counter() - start
    seconds = dict.fromkeys([*GROUPS, "python"], 0.0)
    for event in found.key_averages():
        group = next((g for g, names in GROUPS.items() if any(name in event.key for name in names)), "python")
        seconds[group] += event.self_cpu_time_total / 1e6
    seconds["python"] = max(0.0, wall - sum(seconds.values()) + seconds["python"])
    return {group: value / wall for group, value in seconds.items()}


def counted(run: Callable[[], Any]) -> tuple[float, float]:
    """FLOP and bytes of a call."""
    with FlopCounterMode(display=False) as flop:
        run()
    with Bytes() as moved:
        run()
    return float(flop.get_total_flops()), float(moved.total)


def profile_stages(policy: ApprenticePolicy, batch: dict[str, Any]) -> None:
    todo = stages(policy, batch)
    rows: dict[str, list[float]] = {name: [] for name in todo}
    flop, memory = [], []
    for _ in range(REPEATS):  # by turns, so that a busy moment of the machine meets all
        for found, value in zip((flop, memory), peaks(), strict=True):
            found.append(value)
        for name, (_, run) in todo.items():
            rows[name].append(timed(run))
    peak, bandwidth = np.median(flop), np.median(memory)
    console.print(f"peak {peak / 1e9:.0f} GFLOP/s, {bandwidth / 1e9:.1f} GB/s")
    table = Table("stage", "samples/s", "ms", "GFLOP", "limit", "of it", "GB", "memory")
    where = Table("share of", *GROUPS, "python")
    for name, (samples, run) in todo.items():
        seconds, (work, moved) = np.median(rows[name]), counted(run)
        limit = work / peak
        cells = [f"{samples / seconds:.1f}", f"{1e3 * seconds:.1f}", f"{work / 1e9:.2f}", f"{1e3 * limit:.1f}"]
        cells += [f"{limit / seconds:.0%}", f"{moved / 1e9:.2f}", f"{1e3 * moved / bandwidth:.1f}"]
        table.add_row(name, *cells)
        where.add_row(name, *(f"{share:.0%}" for share in shares(run).values()))
    console.print(table, where)


def profile_episode(policy: ApprenticePolicy) -> None:
    """One episode in LIBERO, to its limit of steps: a fresh student does not succeed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "student"
        policy.save_pretrained(folder)
        for processor in make_apprentice_pre_post_processors(policy.config):
            processor.save_pretrained(folder)
        where, settings = Path(name) / "out", {"tasks": [8], "episodes": 1, "workers": 1, "max_steps": STEP_COUNT}
        evaluate({"student": str(folder)}, "libero_goal", where, **settings, film="none")
        (episode,) = Evaluation.load(where).episodes
    parts = {part: getattr(episode, f"{part}_seconds") for part in ("reset", "physics", "render", "policy")}
    table = Table("an episode", "s", "share", title=f"{episode.steps} steps, {episode.seconds:.1f} s")
    for part, seconds in parts.items():
        table.add_row(part, f"{seconds:.2f}", f"{seconds / episode.seconds:.0%}")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-episode", action="store_true", help="leave LIBERO out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    policy, batch = student()
    profile_stages(policy, batch)
    if not options.no_episode:
        profile_episode(policy)


if __name__ == "__main__":
    main()
