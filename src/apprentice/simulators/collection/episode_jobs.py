"""Episodes for a dataset: made one by one in any number of processes, kept until all are there, then written.

Every episode has its own seeds, so a dataset is the same whatever the number of workers and however often its making
was interrupted. `meta/collection.json` keeps the seed of each episode, its variant and its words, and `meta/starts.npz`
where those begin that begin in the middle of another: `apprentice doctor` replays them.
"""

import io
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
from rich.table import Table

from apprentice.common.errors import FileError, UserError
from apprentice.common.files import UNFINISHED, only_one, read_json, replacing, sweep, write_json
from apprentice.common.pool import spread
from apprentice.common.progress import Meter, console
from apprentice.simulators.base import Demonstration, Environment, simulator_of
from apprentice.simulators.collection.config import CollectConfig
from apprentice.simulators.collection.dataset import assemble

ATTEMPTS = 10  # seeds an episode may use up
LAST_SEED = 999  # of a dataset: the seeds of evaluation on fresh layouts lie beyond
TRIED_AGAIN = "succeeded at a second try"
STARTS, START, NOTE = "starts.npz", "start.", "note."


@dataclass(frozen=True)
class CollectJob:
    """One episode to collect. Its attempts use the seeds `first_seed`, `first_seed + 1`, ..."""

    suite: str
    task: int
    episode: int
    seed: int
    render: str
    size: int
    variants: int = 0
    reworded: bool = False

    @property
    def first_seed(self) -> int:
        return self._number(self.episode) * ATTEMPTS

    @property
    def variant(self) -> int | None:
        """The number of the task's variant, which is that of its first episode; None: the task as published."""
        return self._number(self.episode % self.variants) if self.variants else None

    @property
    def instruction(self) -> str:
        simulator = simulator_of(self.suite)
        said = simulator.task(self.suite, self.task, self.variant).instruction
        others = simulator.paraphrases(said) if self.reworded else []
        return str(np.random.default_rng([self.first_seed, 3]).choice(others)) if others else said

    def _number(self, episode: int) -> int:
        return (self.seed * 100 + self.task) * 1000 + episode

    @property
    def file(self) -> str:
        return f"{self.task:02d}_{self.episode:04d}.npz"


@dataclass(frozen=True)
class Setting:
    """What an episode of a collected dataset was recorded in."""

    suite: str
    task: int
    variant: int | None
    seed: int
    start_noise: float  # m
    start: Any = None  # where it begins, if not with the reset


@dataclass(frozen=True)
class Rejected:
    """An attempt that is not in the dataset, and why."""

    task: int
    episode: int
    seed: int
    reason: str


@dataclass(frozen=True)
class Collected:
    """What a job gave: the episode as the bytes of an .npz file, or None if every attempt was rejected."""

    job: CollectJob
    episode: bytes | None
    rejected: list[Rejected]


def gather[J: CollectJob](
    config: CollectConfig, make: Callable[..., J], run: Callable[[J], Collected], settings: dict[str, Any]
) -> dict[str, Any]:
    """Make successful episodes of each task and write them into the dataset folder `config.out`.

    Args:
        config: what to collect; finished episodes wait in a folder beside `out`.
        make: the job of a `task` and an `episode`.
        run: does a job, in a worker.
        settings: what all jobs share and the dataset should tell, JSON.

    Returns a summary. Raises UserError as `collect` does.
    """
    out, suite = config.out, config.suite
    simulator = simulator_of(suite)
    known = simulator.tasks(suite)
    chosen = list(config.tasks or range(len(known)))
    finished = _finished(out, {**settings, "tasks": chosen, "episodes": config.episodes})
    if unknown := [task for task in chosen if not 0 <= task < len(known)]:
        raise UserError(f"expected tasks 0 to {len(known) - 1} of {suite}, found {unknown}; fix: name existing tasks")
    if not 0 < config.episodes <= 1000 or not 0 <= config.seed <= LAST_SEED or config.variants < 0:
        raise UserError(
            f"expected 1 to 1000 episodes, a seed from 0 to {LAST_SEED} and a number of variants from 0 on, "
            f"found {config.episodes}, {config.seed} and {config.variants}; fix: change them"
        )
    jobs = [make(task=task, episode=episode) for task in chosen for episode in range(config.episodes)]
    for task in chosen:
        simulator.task(suite, task, 0 if config.variants else None)
    scratch = out.with_name(f".{out.name}.episodes")
    if finished is not None:  # a kill may have come between the last lines below
        sweep(out.parent, f".{out.name}.*{UNFINISHED}")
        shutil.rmtree(scratch, ignore_errors=True)
        console.print(f"{out} is finished already")
        return finished
    with only_one(scratch):
        _check_settings(scratch, settings)
        if failures := _run(run, jobs, scratch, config.workers, config.ray):
            raise UserError(_explained(failures, scratch))
        summary = {**settings, "tasks": chosen, "episodes": config.episodes, **_summary(jobs, scratch)}
        with replacing(out) as fresh:
            files = [scratch / job.file for job in jobs]
            contract = simulator.contract(suite, jobs[0].size, jobs[0].render)
            given = list(zip(files, (job.instruction for job in jobs), strict=True))
            assemble(given, fresh, contract, simulator.demonstrator(), config.images, max(simulator.suites.values()))
            contract.save(fresh / "meta")
            write_json(fresh / "meta" / "collection.json", summary)
            _keep_starts(files, fresh / "meta" / STARTS)
        shutil.rmtree(scratch)
    _show(summary)
    return summary


def attempt(job: CollectJob, act: Callable[[Environment, int], Demonstration]) -> Collected:
    """In a worker: let `act` try one seed after the other until it succeeds, then draw what it recorded.

    What had to be tried again is no demonstration: a policy sees no difference between the grasp that missed, after
    which the hand opens and rises, and the next one, after which it does not.
    """
    simulator = simulator_of(job.suite)
    env = simulator.environment(job.suite, job.task, job.variant, render=job.render, size=job.size)
    rejected: list[Rejected] = []
    for seed in range(job.first_seed, job.first_seed + ATTEMPTS):
        try:
            episode = act(env, seed)
        except NotImplementedError as missing:  # no seed will help
            return Collected(job, None, [Rejected(job.task, job.episode, seed, str(missing))])
        if episode.failure is None and not episode.retries:
            break
        rejected.append(Rejected(job.task, job.episode, seed, episode.failure or TRIED_AGAIN))
    else:
        return Collected(job, None, rejected)
    frames = []
    for snapshot in episode.record.snapshots:
        env.restore(snapshot)
        frames.append(env.observe())
    return packed(job, seed, rejected, episode, frames)


class Kept(TypedDict):
    """What is read of a task in meta/collection.json."""

    seeds: list[int]
    variants: NotRequired[list[int | None]]


class Collection(TypedDict):
    """What is read of meta/collection.json."""

    suite: str
    tasks: list[int]
    per_task: dict[str, Kept]
    start_noise: float


def scenes(root: Path) -> list[Setting]:
    """What each episode of a collected dataset was recorded in, in its order."""
    file = root / "meta" / "collection.json"
    collection: Collection = read_json(file, Collection, "how a dataset was collected", more=True)
    starts = _starts(root / "meta" / STARTS, collection["suite"])
    found: list[Setting] = []
    for task in collection["tasks"]:
        kept = collection["per_task"].get(str(task))
        variants = kept.get("variants", [None] * len(kept["seeds"])) if kept else []
        if kept is None or len(variants) != len(kept["seeds"]):
            there = f"{len(kept['seeds'])} and {len(variants)}" if kept else "nothing"
            raise FileError(
                f"expected seeds of each task, and as many variants, in {file}, found {there} of task {task}; fix: put "
                "back what was written there, or collect again"
            )
        for variant, seed in zip(variants, kept["seeds"], strict=True):
            start = starts.get(len(found))
            found.append(Setting(collection["suite"], task, variant, seed, collection["start_noise"], start))
    return found


def _finished(out: Path, required: dict[str, Any]) -> dict[str, Any] | None:
    """The summary in `out` if it has the required settings. Raises UserError if something else is there."""
    if not out.exists():
        return None
    found: dict[str, Any] = {}
    with suppress(OSError, FileError):
        found = read_json(out / "meta" / "collection.json", dict[str, Any])
    if {key: found.get(key) for key in required} != required:
        raise UserError(f"expected no {out}, found one; fix: remove it or choose another folder")
    return found


def _check_settings(scratch: Path, settings: dict[str, Any]) -> None:
    """Raises UserError if the folder of finished episodes holds those of other settings.

    Tasks and number of episodes may differ: an episode does not depend on which others are wanted.
    """
    if (scratch / "settings.json").exists():
        found = read_json(scratch / "settings.json", dict[str, Any], "the settings of a collection")
        if found != settings:
            raise UserError(f"expected episodes collected with {settings} in {scratch}, found {found}; fix: remove it")
    write_json(scratch / "settings.json", settings)


def _run[J: CollectJob](
    run: Callable[[J], Collected], jobs: list[J], scratch: Path, workers: int, ray: str | None
) -> list[Collected]:
    """Collect the episodes that are not there yet; returns those of which every attempt was rejected."""
    missing = [job for job in jobs if not (scratch / job.file).exists()]
    missing.sort(key=lambda job: job.variant or 0)  # making one takes seconds
    kept, tried, failures = Counter[int](), Counter[int](), []
    with Meter("episodes", len(jobs), done=len(jobs) - len(missing)) as meter:
        for outcome in spread(run, missing, workers, ray=ray):
            task = outcome.job.task
            tried[task] += len(outcome.rejected)
            if outcome.episode is None:
                failures.append(outcome)
            else:
                kept[task] += 1
                tried[task] += 1
                with replacing(scratch / outcome.job.file) as fresh:
                    fresh.write_bytes(outcome.episode)
            meter.advance(note=", ".join(f"task {t}: {kept[t] / tried[t]:.0%}" for t in sorted(tried)))
    return failures


def packed(
    job: CollectJob, seed: int, rejected: list[Rejected], episode: Demonstration, frames: list[dict[str, np.ndarray]]
) -> Collected:
    """The outcome of a success: its record, where it began, and what was seen before each action."""
    columns: dict[str, Any] = {key: np.stack([frame[key] for frame in frames]) for key in frames[0]}
    columns |= {
        "action": np.stack(episode.record.actions),
        "executed": np.stack(episode.record.executed),
        "seed": np.array(seed),
        "rejected_seeds": np.array([r.seed for r in rejected], dtype=np.int64),
        "rejected_reasons": np.array([r.reason for r in rejected], dtype=np.str_),
    }
    columns |= {NOTE + key: np.array(value) for key, value in episode.notes.items()}
    columns |= {START + key: values for key, values in vars(episode.start).items()} if episode.start else {}
    return Collected(job, _zipped(columns), rejected)


def _zipped(columns: dict[str, Any]) -> bytes:
    """Arrays as an .npz file, the same bytes at any time."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for key, values in columns.items():
            with archive.open(f"{key}.npy", "w") as file:
                np.lib.format.write_array(file, values, allow_pickle=False)
    return stream.getvalue()


def _keep_starts(files: list[Path], path: Path) -> None:
    """Write where episodes begin, of those that do not begin with a reset."""
    starts: dict[str, np.ndarray] = {}
    for index, file in enumerate(files):
        with np.load(file, allow_pickle=False) as episode:
            starts |= {f"{index}.{k.removeprefix(START)}": episode[k] for k in episode if k.startswith(START)}
    if starts:
        with replacing(path) as fresh:
            fresh.write_bytes(_zipped(starts))


def _starts(path: Path, suite: str) -> dict[int, Any]:
    """Where episodes begin, by their number."""
    if not path.exists():
        return {}
    found: dict[int, dict[str, np.ndarray]] = {}
    with np.load(path, allow_pickle=False) as arrays:
        for key in arrays:
            index, _, name = key.partition(".")
            found.setdefault(int(index), {})[name] = arrays[key]
    demonstrator = simulator_of(suite).demonstrator()
    return {index: demonstrator.state(fields) for index, fields in found.items()}


def _explained(failures: list[Collected], scratch: Path) -> str:
    """Which tasks could not be demonstrated, and why."""
    lines = []
    for task in sorted({failure.job.task for failure in failures}):
        episodes = [failure for failure in failures if failure.job.task == task]
        reasons = _counted(attempt.reason for failure in episodes for attempt in failure.rejected)
        lines.append(f"task {task}, {_instruction(episodes[0].job.suite, task)!r}: {reasons}")
    return (
        f"expected a success in {ATTEMPTS} attempts at every episode, found none at {len(failures)} of them:\n  "
        + "\n  ".join(lines)
        + f"\nall other episodes are kept in {scratch}; fix: collect again without these tasks, or with another seed"
    )


def _counted(reasons: Iterable[str]) -> str:
    return ", ".join(f"{count} x {reason}" for reason, count in Counter(reasons).most_common())


def _summary(jobs: Sequence[CollectJob], scratch: Path) -> dict[str, Any]:
    """Seeds, the share of attempts kept, lengths; every rejected attempt, and how far starts are spread."""
    rejected: list[Rejected] = []
    per_task: dict[int, dict[str, Any]] = {}
    for job in jobs:
        with np.load(scratch / job.file, allow_pickle=False) as episode:
            task = per_task.setdefault(job.task, {key: [] for key in ("steps", "seeds", "variants", "instructions")})
            task["variants"].append(job.variant)
            task["instructions"].append(job.instruction)
            task["seeds"].append(int(episode["seed"]))
            task["steps"].append(len(episode["action"]))
            for key in (key for key in episode if key.startswith(NOTE)):
                task.setdefault(key.removeprefix(NOTE), []).append(episode[key].item())
            pairs = zip(episode["rejected_seeds"], episode["rejected_reasons"], strict=True)
            rejected += [Rejected(job.task, job.episode, int(seed), str(reason)) for seed, reason in pairs]
    failures = Counter(attempt.task for attempt in rejected)
    own = {key for task in per_task.values() for key in task} - {"steps", "seeds", "variants", "instructions"}
    always = {
        "seeds": True,
        "variants": bool(jobs[0].variants),
        "instructions": bool(jobs[0].variants) or jobs[0].reworded,
    }
    rates = {
        str(index): {
            "kept": round(len(task["seeds"]) / (len(task["seeds"]) + failures[index]), 4),
            "mean_steps": round(float(np.mean(task["steps"])), 1),
            **{key: task[key] for key, wanted in (always | dict.fromkeys(sorted(own), True)).items() if wanted},
        }
        for index, task in per_task.items()
    }
    start_noise = simulator_of(jobs[0].suite).demonstrator().start_noise
    return {"start_noise": start_noise, "per_task": rates, "rejected": [asdict(attempt) for attempt in rejected]}


def _show(summary: dict[str, Any]) -> None:
    table = Table("task", "instruction", "kept", "steps", "rejected", title=f"{summary['suite']}: attempts")
    for task, found in summary["per_task"].items():
        reasons = _counted(attempt["reason"] for attempt in summary["rejected"] if attempt["task"] == int(task))
        instruction = _instruction(summary["suite"], int(task))
        table.add_row(task, instruction, f"{found['kept']:.0%}", f"{found['mean_steps']:.0f}", reasons)
    console.print(table)


def _instruction(suite: str, task: int) -> str:
    return simulator_of(suite).tasks(suite)[task].instruction
