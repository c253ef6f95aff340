"""Training and planning on a GPU: samples a second, peak memory against `apprentice plan`, chunks against SmolVLA.

    python benchmarks/gpu.py --out results.json         # about 3 minutes of a data-centre GPU, predicted
    python benchmarks/gpu.py --out results.json --quick # a trial of the code, on any machine

Rates are those of the trainer itself, by the clock of its own log, without its first lines: built-in VLM, expert and
demonstrations. "uncached" computes everything in each step, from decoded pictures; all rows lie in the GPU's memory
unless said. Chunks: `benchmarks/infer.py`, random weights, the same backbone. OUT is rewritten after every measurement.
"""

import argparse
import contextlib
import json
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from infer import BACKBONES, compare

from apprentice.common.device import best_device, fast_bfloat16
from apprentice.common.files import write_json
from apprentice.common.progress import console
from apprentice.data.mixture import Mixture, open_mixture
from apprentice.distill import trainer
from apprentice.distill.caches import resident
from apprentice.distill.caches.cache import cached_each, cached_images
from apprentice.distill.caches.resident import on_device
from apprentice.distill.expert import ExpertConfig, train_expert
from apprentice.distill.learner import Learner, decay
from apprentice.distill.plan import plan
from apprentice.distill.samples import Samples
from apprentice.distill.stages import StageConfig, fresh_student
from apprentice.distill.trainer import processes, train

ASSETS = Path(__file__).resolve().parent.parent / "assets"
PLACES = {
    "dataset": str(ASSETS / "demonstrations" / "libero_goal"),
    "vlm": str(ASSETS / "nano-vlm"),
    "expert": str(ASSETS / "seer"),
}
WARM = 0.3  # of the steps are left out


def rate(run: Path) -> float:
    """Samples a second by a run's log, without its first lines."""
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    first = entries[int(WARM * len(entries))]
    return (entries[-1]["samples"] - first["samples"]) / (entries[-1]["seconds"] - first["seconds"])


@contextlib.contextmanager
def peak(found: dict[str, Any]) -> Iterator[None]:
    """Note the most GPU memory that was taken inside (GB)."""
    if best_device().type != "cuda":
        yield
        return
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    yield
    found["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9


def expert(out: Path, batch: int, steps: int, precision: str, **patches: Any) -> dict[str, Any]:
    """`apprentice train-expert` with a Seer of the default size."""
    found: dict[str, Any] = {}
    places = {"dataset": PLACES["dataset"], "out": str(out)}
    config = ExpertConfig(**places, steps=steps, batch_size=batch, precision=precision, track="none")
    with peak(found), patched(**patches):
        train_expert(config)
    return found | {"samples_per_s": rate(out)}


def stage(name: str, out: Path, batch: int, steps: int, every: int, mixture: Mixture, **patches: Any) -> dict[str, Any]:
    """A stage of distillation, from caches of every n-th frame or, with 0, from decoded pictures of all."""
    config = StageConfig(**PLACES, out=str(out), latent_weight=1.0, steps=steps, batch_size=batch, every=max(1, every))
    out.mkdir(parents=True)
    accelerator, device = processes(name), best_device()
    torch.manual_seed(0)
    policy = fresh_student(config, mixture)
    policy.config.latent_weight = config.latent_weight
    policy.set_stage(name)
    policy.to(device)
    start = time.monotonic()
    cameras = list(policy.config.image_features)
    datasets = mixture.datasets
    rows = cached_each(policy, datasets, config) if every else cached_images(datasets, cameras)
    found: dict[str, Any] = {"caches_s": time.monotonic() - start}
    with patched(**patches):
        rows = on_device(rows, device)
        held = sum(r._rows.nbytes for v in rows[0].values() for r in v.rows if isinstance(r, resident.Resident))
        samples = Samples.of(datasets, policy.config, rows, device, max(1, every))
        optimizer = torch.optim.AdamW(policy.get_optim_params())
        learner = Learner(policy, name, optimizer, decay(steps), bfloat16=fast_bfloat16(device))
        with peak(found):
            train(learner, samples, config, accelerator=accelerator)
    if "peak_gb" in found:
        found["peak_without_rows_gb"] = found["peak_gb"] - held / 1e9  # what `apprentice plan` predicts
    return found | {"samples_per_s": rate(out), "frames": len(samples), "resident_gb": held / 1e9}


@contextlib.contextmanager
def patched(share: float | None = None, exact: bool = True) -> Iterator[None]:
    """Inside, rows may take that share of the GPU's memory, and gradients need not be the same each time."""
    with contextlib.ExitStack() as stack:
        if share is not None:
            stack.enter_context(patch.object(resident, "SHARE", share))
        if not exact:
            stack.enter_context(patch.object(trainer, "same_bits", lambda device: contextlib.nullcontext()))
        yield


def chunks(name: str, count: int) -> dict[str, Any]:
    """Median time of a chunk, SmolVLA's and ours."""
    times = compare(BACKBONES[name], count, time.perf_counter, best_device().type)
    theirs, ours = (float(np.median(side)) for side in times.T)
    return {"smolvla_ms": 1e3 * theirs, "ours_ms": 1e3 * ours, "ratio": theirs / ours, "chunks": count}


def measurements(place: Path, quick: bool) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """What is measured, the most wanted first."""
    steps, small, large, every = (4, 4, 8, 300) if quick else (300, 64, 512, 4)
    mixture = open_mixture(PLACES["dataset"])
    named = lambda name: place / name  # noqa: E731

    def planned(batch: int) -> dict[str, Any]:
        stages = plan(PLACES["vlm"], PLACES["expert"], batch, PLACES["dataset"]).content.stages
        return {name: {"peak_gb": memory.peak / 1e9, "tflop": memory.work / 1e12} for name, memory in stages.items()}

    for batch in (small, large):
        for precision in ("float32", "bfloat16"):
            name = f"train-expert, {batch} a step, {precision}"
            yield name, lambda n=name, b=batch, p=precision: expert(named(n), b, steps, p)
    for kind in ("align", "finetune"):
        for batch in (small, large):
            name = f"{kind}, {batch} a step, cached"
            yield name, lambda k=kind, n=name, b=batch: stage(k, named(n), b, steps, every, mixture)
        name = f"{kind}, {small} a step, uncached"
        yield name, lambda k=kind, n=name: stage(k, named(n), small, max(4, steps // 10), 0, mixture)
    yield f"plan, {small} a step", lambda: planned(small)
    yield "chunk of 50, the built-in VLM", lambda: chunks("nano", 4 if quick else 60)
    if not quick:
        yield "chunk of 50, language model of 135 M", lambda: chunks("135M", 30)
        yield f"plan, {large} a step", lambda: planned(large)
        for name, how in (("from the disk", {"share": 0.0}), ("sums in any order", {"exact": False})):
            full = f"train-expert, {large} a step, bfloat16, {name}"
            yield full, lambda n=full, h=how: expert(named(n), large, steps, "bfloat16", **h)
            full = f"align, {large} a step, cached, {name}"
            yield full, lambda n=full, h=how: stage("align", named(n), large, steps, every, mixture, **h)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="few and small steps")
    options = parser.parse_args()
    trainer.LOG_EVERY = 1 if options.quick else 20
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        os.environ.setdefault("APPRENTICE_CACHE", place)
        for name, measure in measurements(Path(place) / "runs", options.quick):
            start = time.monotonic()
            try:
                results[name] = measure()
            except Exception as error:  # the others are wanted all the same
                traceback.print_exc()
                results[name] = {"error": f"{type(error).__name__}: {error}"}
            results[name]["took_s"] = time.monotonic() - start
            console.print(f"{name}: {results[name]}", highlight=False, markup=False, soft_wrap=True)
            write_json(options.out, results)


if __name__ == "__main__":
    main()
