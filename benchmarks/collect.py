"""Collection against the same episodes with every control step drawn exactly, as plain LIBERO does; and two workers
against one. Same seeds, one run, datasets written in both cases.

    python benchmarks/collect.py                 # about 5 minutes on two quiet cores

Required: ratio at least 5, and two workers not slower than one.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from apprentice.data.dataset import column, open_dataset
from apprentice.libero import collect as collecting
from apprentice.libero.demonstrator import demonstrate
from apprentice.libero.env import SETTLE_STEPS, LiberoEnv


class Plain(LiberoEnv):
    """Draws after every control step."""

    def reset(self, **keywords: Any) -> None:
        self.frames: list[dict[str, np.ndarray]] = []
        super().reset(**keywords)

    def step(self, action: np.ndarray) -> bool:
        success = super().step(action)
        self.frames.append(self.observe())
        return success


_kept: list[Plain] = []  # of this process, at most one


def collect_plainly(job: collecting.Job) -> collecting.Outcome:
    """In place of `_collect_one`: plan and draw at once, rejected attempts included."""
    if not _kept:
        _kept.append(Plain(job.suite, job.task, render="exact", size=job.size))
    env, rejected = _kept[0], []
    for seed in range(job.first_seed, job.first_seed + collecting.ATTEMPTS):
        episode = demonstrate(env, seed)
        if episode.failure is None:
            steps = len(episode.record.actions)
            return collecting.packed(job, seed, rejected, episode.record, env.frames[SETTLE_STEPS - 1 :][:steps])
        rejected.append(collecting.Rejected(job.task, job.episode, seed, episode.failure))
    raise RuntimeError(f"no success at {job}")


def timed(suite: str, task: int, episodes: int, out: Path, workers: int) -> float:
    start = time.monotonic()
    collecting.collect(suite, episodes, out, [task], workers)
    seconds = time.monotonic() - start
    print(f"{out.name}: {60 * episodes / seconds:.1f} episodes a minute ({seconds:.0f} s)", flush=True)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default="libero_goal")
    parser.add_argument("--task", type=int, default=8)
    parser.add_argument("--episodes", type=int, default=6)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, what = Path(name), (options.suite, options.task, options.episodes)
        one = timed(*what, folder / "one worker", 1)
        two = timed(*what, folder / "two workers", 2)
        ours, collecting._collect_one = collecting._collect_one, collect_plainly
        plain = timed(*what, folder / "every step drawn exactly", 1)
        collecting._collect_one = ours
        actions = [column(open_dataset(path), "action") for path in sorted(folder.iterdir())]
        assert all(np.array_equal(actions[0], other) for other in actions[1:])
    print(f"two workers against one: {one / two:.2f} (required: at least 1)")
    print(f"ratio: {plain / one:.2f}")


if __name__ == "__main__":
    main()
