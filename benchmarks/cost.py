"""What distillation saves: success in closed loop against all that was computed for it, for two-stage, only-ft and
scratch, on the demo's three tasks.

    python benchmarks/cost.py                    # about six hours on a CPU core; killed, it goes on where it was

docs/results/cost.jsonl holds the points that are measured; they are not measured again, not even on another machine.
Seeds can be measured side by side, `--seeds 0` in one process, `--seeds 1` in another once the first one trains.

Every point is a run of its own, trained to the end of its own schedule with its own seed and evaluated on 60 episodes:
no checkpoint is picked. Its cost counts the caches that it reads, the expert's latents among them. Samples of the two
stages differ in price (alignment runs a suffix alone), so the picture shows seconds too: samples times the median
seconds of a sample over all runs of that kind, which other work on the machine disturbs least.
"""

import argparse
import json
import os
import shutil
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch

from apprentice.common.device import best_device
from apprentice.common.files import read_json, write_json
from apprentice.common.intervals import wilson
from apprentice.common.progress import console
from apprentice.data.dataset import open_dataset
from apprentice.distill.caches.cache import cached
from apprentice.distill.config import CacheConfig
from apprentice.distill.stages import StageConfig, align, finetune
from apprentice.evaluate.results import ALL, Evaluation, success_rows
from apprentice.evaluate.rollout import evaluate
from apprentice.policy.modeling_apprentice import ApprenticePolicy

DATA, EXPERT, VLM = "assets/demonstrations/libero_goal", "assets/seer", "assets/nano-vlm"
TASKS, EPISODES = [1, 4, 8], 20
POINTS = Path("docs/results/cost.jsonl")
# Of the demo's number of steps. Those without alignment go on for longer, so that they may cost as much.
BUDGETS = {"two-stage": (0.25, 0.5, 1.0), "only-ft": (0.375, 0.75, 1.5), "scratch": (0.375, 0.75, 1.5)}
COMMON = StageConfig(dataset=DATA, out="", every=2)
ALIGN = replace(COMMON, vlm=VLM, expert=EXPERT, steps=1200)
FINETUNE = replace(COMMON, batch_size=16, steps=2000, learning_rate=6e-4, language_rate_factor=1.0, latent_weight=1.0)
CONTROL = replace(COMMON, vlm=VLM, expert=EXPERT, batch_size=32, steps=1000)


def train(kind: str, budget: float, seed: int, folder: Path) -> dict[str, int]:
    """Train one point; return its samples by stage."""

    def run(stage: Any, config: StageConfig, out: Path) -> int:
        stage(replace(config, out=str(out), steps=round(config.steps * budget), seed=seed))
        return int(read_json(out / "cost.json")["samples"])

    if kind != "two-stage":
        return {"student": run(finetune, replace(CONTROL, scratch=kind == "scratch"), folder / "student")}
    aligned = run(align, ALIGN, folder / "align")
    return {
        "align": aligned,
        "student": run(finetune, replace(FINETUNE, student=str(folder / "align")), folder / "student"),
    }


def fill_caches(folder: Path) -> dict[str, float]:
    """Seconds that the caches of each stage take, measured once, before anything else is in them."""
    if (folder / "caches.json").exists():
        return dict(read_json(folder / "caches.json"))
    seconds, dataset = {}, open_dataset(DATA)
    for name, stage, config in (("finetune", finetune, CONTROL), ("align", align, ALIGN)):
        stage(replace(config, out=str(folder / f"first-{name}"), steps=1))
        policy = ApprenticePolicy.from_pretrained(folder / f"first-{name}" / "checkpoint")
        policy.set_stage(name)
        policy.to(best_device())
        for views in cached(policy, dataset, CacheConfig(every=config.every)).values():
            for rows in views.rows:
                shutil.rmtree(rows.path.parent)
        start = time.monotonic()
        cached(policy, dataset, CacheConfig(every=config.every))
        seconds[name] = time.monotonic() - start
    write_json(folder / "caches.json", seconds)
    return seconds


def seconds_of_samples(folder: Path) -> dict[str, list[float]]:
    """By stage, what the log of this point's run says between two of its lines."""
    found: dict[str, list[float]] = {}
    for stage in ("align", "student"):
        log = folder / stage / "log.jsonl"
        entries = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        for before, after in pairwise(entries):
            samples = after["samples"] - before["samples"]
            if samples and after["seconds"] > before["seconds"]:
                found.setdefault(stage, []).append((after["seconds"] - before["seconds"]) / samples)
    return found


def measure(kind: str, budget: float, seed: int, out: Path, caches: dict[str, float]) -> dict[str, Any]:
    """Train a point and evaluate it."""
    folder = out / f"{kind}_{budget}_{seed}"
    samples = train(kind, budget, seed, folder)
    student = str(folder / "student" / "checkpoint")
    evaluate({kind: student}, "libero_goal", folder / "evaluation", tasks=TASKS, episodes=EPISODES)
    row = next(row for row in success_rows(Evaluation.load(folder / "evaluation").episodes) if row.task == ALL)
    price = {stage: float(np.median(values)) for stage, values in seconds_of_samples(folder).items()}
    return {
        "kind": kind,
        "budget": budget,
        "seed": seed,
        "successes": row.successes,
        "episodes": row.episodes,
        "samples": samples,
        "seconds_of_a_sample": price,
        "seconds_of_caches": caches["finetune"] + (caches["align"] if kind == "two-stage" else 0),
    }


def measured() -> list[dict[str, Any]]:
    """The points so far, with their cost in `seconds`."""
    points = [json.loads(line) for line in POINTS.read_text().splitlines()] if POINTS.exists() else []
    for point in points:
        alike = [p for p in points if p["kind"] == point["kind"]]
        price = {stage: np.median([p["seconds_of_a_sample"][stage] for p in alike]) for stage in point["samples"]}
        training = sum(price[stage] * count for stage, count in point["samples"].items())
        point["seconds"] = float(training + np.median([p["seconds_of_caches"] for p in alike]))
        point["samples"] = sum(point["samples"].values())
        point["rate"] = point["successes"] / point["episodes"]
    return points


def picture(points: list[dict[str, Any]], expert: float) -> str:
    """Success against seconds and against samples, as SVG."""
    figure, panels = plt.subplots(1, 2, figsize=(8, 3.2), sharey=True, layout="constrained")
    for axes, axis, unit in zip(panels, ("seconds", "samples"), (60, 1000), strict=True):
        for colour, kind in zip(("tab:blue", "tab:orange", "tab:green"), BUDGETS, strict=True):
            mine = [p for p in points if p["kind"] == kind]
            axes.scatter([p[axis] / unit for p in mine], [p["rate"] for p in mine], s=10, alpha=0.4, color=colour)
            budgets = sorted({p["budget"] for p in mine})
            groups = [[p for p in mine if p["budget"] == budget] for budget in budgets]
            counts = [(sum(p["successes"] for p in g), sum(p["episodes"] for p in g)) for g in groups]
            rates = np.array([successes / episodes for successes, episodes in counts])
            bounds = np.array([wilson(*count) for count in counts]).T
            x = [float(np.mean([p[axis] for p in g])) / unit for g in groups]
            axes.errorbar(x, rates, np.abs(bounds - rates), color=colour, capsize=3, marker="o", label=kind)
        axes.axhline(expert, color="grey", ls=":", label="the expert")
        axes.set_ylim(-0.03, 1.03)
        axes.grid(alpha=0.3)
    panels[0].set(
        xlabel=f"minutes of training and caches, CPU threads: {torch.get_num_threads()}",
        ylabel="success, 3 tasks of LIBERO-Goal",
    )
    panels[1].set(xlabel="thousand samples, both stages")
    panels[1].legend(loc="lower right")
    out = Path("docs/results/cost.svg")
    with plt.rc_context({"svg.hashsalt": "cost"}):
        figure.savefig(out, metadata={"Date": None})
    return str(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/cost"))
    options = parser.parse_args()
    out: Path = options.out
    os.environ["APPRENTICE_CACHE"] = str(out.absolute() / "cache")  # the first of them are removed, to be timed
    caches = fill_caches(out)
    jobs = [(kind, budget, seed) for seed in options.seeds for kind, budgets in BUDGETS.items() for budget in budgets]
    done = {(p["kind"], p["budget"], p["seed"]) for p in measured()}
    for number, job in enumerate(jobs, 1):
        if job not in done:
            console.rule("{}, budget {}, seed {}".format(*job) + f": {number} of {len(jobs)}")
            with POINTS.open("a") as file:
                file.write(json.dumps(measure(*job, out, caches)) + "\n")
    evaluate({"expert": EXPERT}, "libero_goal", out / "expert", tasks=TASKS, episodes=EPISODES)
    expert = Evaluation.load(out / "expert").episodes
    console.print(f"wrote {picture(measured(), sum(e.success for e in expert) / len(expert))}")


if __name__ == "__main__":
    main()
