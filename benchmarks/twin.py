"""Claim: the scripted demonstrator solves 95 % of 250 fresh episodes of the SO-101 twin, at the level of a real arm.

    python benchmarks/twin.py                                  # 50 episodes a task, then frames drawn a second
    python benchmarks/twin.py --suite so101_twin_clean --episodes 10

An episode counts as a success if the goal holds, within the steps that a policy has; "at once" ones needed no second
grasp: a dataset keeps these alone. Finished episodes are kept in a JSON-lines file: run the same command again to go on
after a kill. CPU seconds of one thread are counted. The last line is the success rate over the claim.
"""

import os

os.environ.setdefault("LP_NUM_THREADS", "1")  # Mesa's software renderer: its threads wait busily

import argparse
import json
import time
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from resumable import run

import apprentice.simulators.so101
from apprentice.common.files import fingerprint
from apprentice.common.intervals import wilson
from apprentice.simulators.so101.suites import INSTRUCTIONS, MOST_STEPS, REAL, SUITES

CLAIM = 0.95
FIRST_SEED = 4_100_000_000  # beyond those of collection, of evaluation, of tests, and of runs while it was made
OUT = Path("runs/benchmarks/twin.jsonl")
FRAMES = 30  # drawn for each rate


@dataclass(frozen=True)
class Job:
    suite: str
    task: int
    seed: int


@dataclass(frozen=True)
class Result:
    job: Job
    code: str  # fingerprint of the sources of apprentice.simulators.so101
    steps: int
    failure: str | None
    retries: int
    seconds: float  # of CPU time

    @classmethod
    def of_line(cls, line: str) -> "Result":
        fields = json.loads(line)
        return cls(**{**fields, "job": Job(**fields["job"])})


def run_episode(job: Job) -> Result:
    from apprentice.simulators.so101.demonstrator.scripted import Scripted
    from apprentice.simulators.so101.simulator.env import environment

    env = environment(job.suite, job.task, render="fast", size=128)  # neither is used: nothing is drawn
    start = time.process_time()
    found = Scripted().demonstrate(env, job.seed)
    seconds = time.process_time() - start
    return Result(job, code(), len(found.record.actions), found.failure, found.retries, seconds)


@cache
def code() -> str:
    """Fingerprint of the sources of the twin."""
    return fingerprint(*sorted(Path(apprentice.simulators.so101.__path__[0]).rglob("*.py")))


def row(label: str, results: list[Result]) -> str:
    """One line of the table: successes, interval, successes at once, steps, reasons of the others."""
    good = [result for result in results if result.failure is None]
    low, high = wilson(len(good), len(results))
    steps = sum(result.steps for result in good) / max(len(good), 1)
    reasons = Counter(result.failure for result in results if result.failure is not None)
    why = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common())
    at_once = sum(not result.retries for result in good)
    return (
        f"{label:<40} {len(good):>3}/{len(results):<3} {len(good) / len(results):6.1%} [{low:6.1%}, {high:6.1%}]  "
        f"{at_once} at once  {steps:4.0f} of {MOST_STEPS} steps  {why}"
    )


def frames_a_second(suite: str, render: str, width: int) -> float:
    """How many frames, two images each, are drawn in a CPU second."""
    from apprentice.simulators.so101.simulator.env import TwinEnv

    env = TwinEnv(suite, 0, render=render, size=width)
    env.reset(FIRST_SEED)
    env.observe()  # makes the renderer
    start = time.process_time()
    for _ in range(FRAMES):
        env.observe()
    seconds = time.process_time() - start
    env.close()
    return FRAMES / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default=REAL, choices=SUITES, help=f"level of faults (default: {REAL})")
    parser.add_argument("--episodes", type=int, default=50, help="a task (default: 50)")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--out", type=Path, default=OUT, help="file of finished episodes")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    jobs = [
        Job(options.suite, task, FIRST_SEED + 1_000 * task + episode)
        for task in range(len(INSTRUCTIONS))
        for episode in range(options.episodes)
    ]
    results = run(jobs, run_episode, options.workers, options.out, Result.of_line, code(), "demonstrations")
    for task, instruction in enumerate(INSTRUCTIONS):
        print(row(instruction, [result for result in results if result.job.task == task]))
    print(row(options.suite, results))
    frames = sum(result.steps for result in results)
    seconds = sum(result.seconds for result in results)
    print(f"{1e3 * seconds / frames:.2f} ms of CPU a frame, without drawing")
    for render, width in (("fast", 128), ("exact", 128), ("fast", 640)):
        rate = frames_a_second(options.suite, render, width)
        print(f"{render}, {width} px wide: {rate:.1f} frames of two images drawn in a CPU second")
    print(f"ratio: {sum(result.failure is None for result in results) / len(results) / CLAIM:.3f}")


if __name__ == "__main__":
    main()
