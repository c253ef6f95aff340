"""How many samples a CPU-second trains a Seer on: `apprentice train-expert` against `lerobot-train`, in one run.

    python benchmarks/expert.py                 # about five CPU minutes
    python benchmarks/expert.py --repeats 3     # the median of three

Same data, policy, batch size and number of threads (one each). Both are run for a few and for more steps, one program
after the other; what the additional steps take is counted, worker processes included, so starting up is not. Images
are decoded beforehand for train-expert, once for all trainings; what that takes stands beside.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
DATASET = ROOT / "assets" / "demonstrations" / "libero_goal"


def cpu_seconds(command: list[str], cache: Path) -> float:
    """CPU time (s) of a command and all of its processes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "APPRENTICE_CACHE": str(cache)}
    program = Path(sys.executable).with_name(command[0])
    done = subprocess.run([str(program), *command[1:]], env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit((done.stdout + done.stderr)[-4000:])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def ours(steps: int, batch: int, out: Path) -> list[str]:
    words = f"apprentice train-expert --kind seer --steps {steps} --batch-size {batch} --track none"
    return [*words.split(), "--dataset", str(DATASET), "--out", str(out)]


def lerobots(steps: int, batch: int, out: Path) -> list[str]:
    words = f"lerobot-train --policy.type=seer --policy.push_to_hub=false --policy.device=cpu --steps={steps}"
    words += f" --batch_size={batch} --num_workers=1 --wandb.enable=false --save_checkpoint=false"
    place = ["--dataset.repo_id=local/libero_goal", f"--dataset.root={DATASET}", f"--output_dir={out}"]
    return [*words.split(), *place]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, nargs=2, default=(4, 24), help="a few, and more")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--cache", type=Path, help="a folder for decoded images, to find them there the next time")
    options = parser.parse_args()
    few, more = options.steps
    rates: dict[str, list[float]] = {"train-expert": [], "lerobot-train": []}
    with tempfile.TemporaryDirectory() as scratch:
        folder, cache = Path(scratch), options.cache or Path(scratch, "cache")
        if not cache.exists():
            cold, warm = (cpu_seconds(ours(1, options.batch, folder / name), cache) for name in ("cold", "warm"))
            print(f"images are decoded once, for all trainings: {cold - warm:.0f} CPU-s", flush=True)
        for repeat in range(options.repeats):
            for name, command in (("train-expert", ours), ("lerobot-train", lerobots)):
                spent = [
                    cpu_seconds(command(n, options.batch, folder / f"{name}{n}-{repeat}"), cache) for n in (few, more)
                ]
                rates[name].append((more - few) * options.batch / (spent[1] - spent[0]))
                print(f"{name}: {rates[name][-1]:.1f} samples a CPU-second", flush=True)
    print(f"ratio: {median(rates['train-expert']) / median(rates['lerobot-train']):.2f}")


if __name__ == "__main__":
    main()
