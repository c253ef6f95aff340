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
import time
from pathlib import Path

from demonstrations import Job, Result, code, demonstrated, row
from resumable import run

from apprentice.simulators.so101.suites import INSTRUCTIONS, MOST_STEPS, REAL, SUITES

CLAIM = 0.95
FIRST_SEED = 4_100_000_000  # beyond those of collection, of evaluation, of tests, and of runs while it was made
OUT = Path("runs/benchmarks/twin.jsonl")
FRAMES = 30  # drawn for each rate


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
    results = run(jobs, demonstrated, options.workers, options.out, Result.of_line, code(), "demonstrations")
    for task, instruction in enumerate(INSTRUCTIONS):
        of_task = [result for result in results if result.job.task == task]
        print(row(f"{options.suite}/{task}", of_task, MOST_STEPS, instruction))
    print(row(options.suite, results, MOST_STEPS))
    frames = sum(result.steps for result in results)
    seconds = sum(result.seconds for result in results)
    print(f"{1e3 * seconds / frames:.2f} ms of CPU a frame, without drawing")
    for render, width in (("fast", 128), ("exact", 128), ("fast", 640)):
        rate = frames_a_second(options.suite, render, width)
        print(f"{render}, {width} px wide: {rate:.1f} frames of two images drawn in a CPU second")
    print(f"ratio: {sum(result.failure is None for result in results) / len(results) / CLAIM:.3f}")


if __name__ == "__main__":
    main()
