"""Claim: the scripted demonstrator solves LIBERO's tasks on fresh, varied scenes, with noise, within the step limits.

    python benchmarks/demonstrator.py --suites libero_spatial libero_object libero_goal libero_10 --episodes 20
    python benchmarks/demonstrator.py --suites libero_90 --episodes 5

An episode counts as a success if the goal still holds after release and retreat. Finished episodes are kept in a
JSON-lines file: run the same command again to go on after a kill. Lines that other code wrote are kept but not counted.
The last line is the success rate over the claim.
"""

import argparse
from pathlib import Path

from demonstrations import Job, Result, code, demonstrated, row
from resumable import run

from apprentice.common.errors import UserError
from apprentice.simulators.libero.simulator.suites import SUITES, tasks

FOUR = ["libero_spatial", "libero_object", "libero_goal", "libero_10"]
CLAIM, CLAIM_90 = 0.98, 0.90  # success rates of the four suites together, and of LIBERO-90
OUT = Path("runs/benchmarks/demonstrator.jsonl")
FIRST_SEED = 100_000  # skills were tuned on smaller ones; each task has its own, or all would share their noise


def failed(results: list[Result]) -> str:
    return f"{sum(result.failure is not None for result in results)} failed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suites", nargs="+", default=FOUR, choices=SUITES, help="which suites (default: the four)")
    parser.add_argument("--tasks", nargs="+", type=int, help="their indices (default: all)")
    parser.add_argument("--episodes", type=int, default=20, help="a task (default: 20)")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--out", type=Path, default=OUT, help="file of finished episodes")
    options = parser.parse_args()
    if ("libero_90" in options.suites) and len(options.suites) > 1:
        raise UserError("expected libero_90 alone: its claim differs; fix: run it in a second command")
    chosen = {suite: options.tasks or range(len(tasks(suite))) for suite in options.suites}
    jobs = [
        Job(suite, task, FIRST_SEED * (task + 1) + episode)
        for suite, indices in chosen.items()
        for task in indices
        for episode in range(options.episodes)
    ]
    results = run(jobs, demonstrated, options.workers, options.out, Result.of_line, code(), "demonstrations", failed)
    for suite, indices in chosen.items():
        of_suite = [result for result in results if result.job.suite == suite]
        for task in indices:
            of_task = [result for result in of_suite if result.job.task == task]
            print(row(f"{suite}/{task}", of_task, SUITES[suite], tasks(suite)[task].instruction))
        print(row(suite, of_suite, SUITES[suite]) + "\n")
    rate = sum(result.failure is None for result in results) / len(results)
    seconds = sum(result.seconds for result in results) / len(results)
    claim = CLAIM_90 if options.suites == ["libero_90"] else CLAIM
    print(f"{len(results)} episodes, {seconds:.1f} s of CPU each; success rate {rate:.4f}, claimed {claim}")
    print(f"ratio: {rate / claim:.3f}")


if __name__ == "__main__":
    main()
