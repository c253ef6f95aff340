"""Collection against the same episodes in LIBERO as it comes, every control step drawn exactly; and two workers against
one. Same seeds, one run, datasets written in all cases; the first task of each suite.

    python benchmarks/collect.py                 # about 15 minutes on two quiet cores

Start of the workers, writing of the dataset and rejected attempts are included. The ratio is of CPU seconds of one
worker, which a busy machine does not change; workers are compared by the clock, so let the machine be quiet.
Required: ratio at least 5, and two workers not slower than one.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from apprentice.common.progress import console
from apprentice.simulators.collection import collect as collecting
from apprentice.simulators.collection import episode_jobs
from apprentice.simulators.collection.config import CollectConfig
from apprentice.simulators.libero.demonstrator.demonstrator import demonstrate
from apprentice.simulators.libero.simulator.env import SETTLE_STEPS, LiberoEnv


class Plain(LiberoEnv):
    """Robosuite's own physics loop with its sensors, and an exact drawing after every control step."""

    def __init__(self, *arguments: Any, **keywords: Any):
        super().__init__(*arguments, **keywords)
        domain, sim, watch = self.control.env, self.control.env.sim, self._watch
        del sim.forward, sim.step, domain._update_observables, domain._pre_action
        domain._observables = domain._setup_observables()
        update = domain._update_observables

        def both(force: bool = False) -> None:
            update(force)
            watch(force)

        domain._update_observables = both

    def reset(self, **keywords: Any) -> None:
        self.frames: list[dict[str, np.ndarray]] = []
        super().reset(**keywords)

    def step(self, action: np.ndarray) -> bool:
        success = super().step(action)
        self.frames.append(self.observe())
        return success


_kept: list[Plain] = []  # of this process, at most one


def collect_plainly(job: episode_jobs.CollectJob) -> episode_jobs.Collected:
    """In place of `_collect_one`: plan and draw at once, rejected attempts included."""
    if not _kept:
        _kept.append(Plain(job.suite, job.task, render="exact", size=job.size))
    env = _kept[0]
    rejected: list[episode_jobs.Rejected] = []
    for seed in range(job.first_seed, job.first_seed + episode_jobs.ATTEMPTS):
        episode = demonstrate(env, seed)
        if episode.failure is None:
            steps = len(episode.record.actions)
            return episode_jobs.packed(job, seed, rejected, episode, env.frames[SETTLE_STEPS - 1 :][:steps])
        rejected.append(episode_jobs.Rejected(job.task, job.episode, seed, episode.failure))
    raise RuntimeError(f"no success at {job}")


def timed(suite: str, task: int, episodes: int, out: Path, workers: int) -> tuple[float, float]:
    """Seconds of the clock and of the processors."""
    clock, cpu = time.monotonic(), cpu_seconds()
    collecting.collect(CollectConfig(suite=suite, episodes=episodes, out=out, tasks=[task], workers=workers))
    return time.monotonic() - clock, cpu_seconds() - cpu


def cpu_seconds() -> float:
    """Of this process and of the workers that ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def compare(suite: str, task: int, episodes: int, folder: Path) -> list[tuple[float, float]]:
    """Seconds of the clock and of the processors of one worker, of two, and of one that draws every step exactly."""
    from apprentice.data.dataset import column, open_dataset  # LeRobot is not for the workers, who import this file

    collecting.collect(
        CollectConfig(suite=suite, episodes=1, out=folder / "warm", tasks=[task], workers=1)
    )  # meshes are simplified once
    rows = [timed(suite, task, episodes, folder / str(workers), workers) for workers in (1, 2)]
    fast, collecting._collect_one = collecting._collect_one, collect_plainly
    rows.append(timed(suite, task, episodes, folder / "exact", 1))
    collecting._collect_one = fast
    actions = [column(open_dataset(folder / path), "action") for path in ("1", "2", "exact")]
    assert all(np.array_equal(actions[0], other) for other in actions[1:])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suites", nargs="+", default=["libero_spatial", "libero_object", "libero_goal", "libero_10"])
    parser.add_argument("--task", type=int, default=0)
    parser.add_argument("--episodes", type=int, default=6, help="of each suite")
    options = parser.parse_args()
    count, totals = options.episodes, np.zeros((3, 2))
    table = Table("", "", "episodes", "a minute", "CPU-s an episode")
    for suite in options.suites:
        with tempfile.TemporaryDirectory() as name:
            rows = compare(suite, options.task, count, Path(name))
        totals += rows
        for label, (clock, cpu) in zip(("1 worker", "2 workers", "every step exact"), rows, strict=True):
            table.add_row(suite, label, str(count), f"{60 * count / clock:.1f}", f"{cpu / count:.1f}")
        console.print(table)
    (one, cpu), (two, _), (_, exact_cpu) = totals
    print(f"two workers against one: {one / two:.2f} (required: at least 1)")
    print(f"ratio: {exact_cpu / cpu:.2f}")


if __name__ == "__main__":
    main()
