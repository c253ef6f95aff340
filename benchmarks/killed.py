"""A whole suite evaluated by the clock, killed on the way: what is lost, what is counted twice, episodes a minute.

    python benchmarks/killed.py --policy student=runs/demo/two-stage/checkpoint     # 500 episodes, killed three times

`apprentice eval` is killed with all of its workers (SIGKILL) whenever another quarter of the episodes is there, and
started again by the same command. Required: each line that was there before a kill is there in the end, and each
episode stands in it once. Minutes are of the clock, starts included: leave the machine alone meanwhile. Other options,
such as --n-action-steps 6, are those of `apprentice eval`.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from apprentice.common.errors import UserError
from apprentice.common.progress import console
from apprentice.evaluate.results import ALL, read_episodes, success_rows

LOOK = 0.2  # s


def run(command: list[str], log: Path, until: int | None) -> tuple[float, list[str]]:
    """Start the evaluation, kill it when `until` episodes are there; return its seconds and the lines that it left.

    Raises UserError if it ends otherwise.
    """
    start = time.monotonic()
    with (log.parent.parent / "output.log").open("a") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    while process.poll() is None and (until is None or len(lines(log)) < until):
        time.sleep(LOOK)
    if until is not None and process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    elif process.poll() != 0 or until is not None:
        raise UserError(
            f"expected {' '.join(command[2:5])} to be {'killed' if until else 'done'}, found exit code "
            f"{process.returncode}; fix: see {output.name}"
        )
    process.wait()
    return time.monotonic() - start, lines(log)


def lines(log: Path) -> list[str]:
    """Whole lines only: the last one may be torn."""
    return [line for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")] if log.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", required=True, help="NAME=CHECKPOINT")
    parser.add_argument("--suite", default="libero_goal")
    parser.add_argument("--tasks", nargs="+", type=int, default=list(range(10)))
    parser.add_argument("--episodes", type=int, default=50, help="initial states of each task (default: 50)")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/bench-killed"), help="a folder that does not exist yet")
    options, others = parser.parse_known_args()
    options.out.mkdir(parents=True)
    folder, wanted = options.out / "evaluation", options.episodes * len(options.tasks)
    command = [sys.executable, "-m", "apprentice", "eval", "--policies", options.policy, "--suite", options.suite]
    command += ["--tasks", *map(str, options.tasks), "--episodes", str(options.episodes)]
    command += ["--workers", str(options.workers), "--out-dir", str(folder), *others]
    seconds, kept = 0.0, set[str]()
    for kill in range(options.kills + 1):
        until = wanted * (kill + 1) // (options.kills + 1) if kill < options.kills else None
        took, found = run(command, folder / "episodes.jsonl", until)
        seconds += took
        console.print(
            f"{'killed' if until else 'done'} after {took / 60:.1f} min with {len(found)} of {wanted} episodes"
        )
        if missing := kept - set(found):
            raise UserError(f"expected what was there before a kill, found {len(missing)} lines of it missing")
        kept = set(found)
    episodes = read_episodes(folder / "episodes.jsonl")  # all lines: an Evaluation counts each key once
    twice = sum(count > 1 for count in Counter(episode.key for episode in episodes).values())
    row = next(row for row in success_rows(episodes) if row.task == ALL)
    console.print(
        f"{len(episodes)} of {wanted} episodes, {twice} counted twice; {row.successes} succeed; "
        f"{seconds / 60:.1f} min, {len(episodes) / seconds * 60:.1f} episodes a minute",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    if len(episodes) != wanted or twice:
        raise UserError(f"expected {wanted} episodes, each once; fix: see {folder}")


if __name__ == "__main__":
    main()
