"""Demonstrations by the scripted demonstrator, written as a LeRobotDataset v3.0.

An episode is planned and acted without cameras; only if it succeeded are its recorded states drawn. Every episode has
its own seeds, so a dataset is the same whatever the number of workers and however often collecting was interrupted.
`meta/collection.json` keeps the seed of each episode, its own world and words: `apprentice doctor` replays them.
"""

import io
import shutil
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from apprentice.data.contract import Contract
from apprentice.errors import UserError
from apprentice.files import read_json, replacing, write_json
from apprentice.libero.suites import SUITES
from apprentice.libero.suites import tasks as tasks_of
from apprentice.libero.wording import paraphrases
from apprentice.libero.worlds import find_task
from apprentice.pool import spread
from apprentice.progress import Meter, console, track

if TYPE_CHECKING:  # MuJoCo is for the workers
    from apprentice.libero.controller import Record

FPS = 20  # Hz
ATTEMPTS = 10  # seeds an episode may use up
STATE_NAMES = ["x", "y", "z", "axis_angle1", "axis_angle2", "axis_angle3", "gripper", "gripper"]
ACTION_NAMES = ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]


@dataclass(frozen=True)
class Job:
    """One episode to collect. Its attempts use the seeds `first_seed`, `first_seed + 1`, ..."""

    suite: str
    task: int
    episode: int
    seed: int
    render: str
    size: int
    worlds: int = 0
    reworded: bool = False

    @property
    def first_seed(self) -> int:
        return self._number(self.episode) * ATTEMPTS

    @property
    def world(self) -> int | None:
        """The number of its own world: that of the task's first episode there."""
        return self._number(self.episode % self.worlds) if self.worlds else None

    @property
    def instruction(self) -> str:
        said = find_task(self.suite, self.task, self.world).instruction
        others = paraphrases(said) if self.reworded else []
        return str(np.random.default_rng([self.first_seed, 3]).choice(others)) if others else said

    def _number(self, episode: int) -> int:
        return (self.seed * 100 + self.task) * 1000 + episode

    @property
    def file(self) -> str:
        return f"{self.task:02d}_{self.episode:04d}.npz"


@dataclass(frozen=True)
class Scene:
    """What an episode of a collected dataset was recorded in."""

    suite: str
    task: int
    world: int | None
    seed: int
    start_noise: float  # m


@dataclass(frozen=True)
class Rejected:
    """An attempt that is not in the dataset, and why."""

    task: int
    episode: int
    seed: int
    reason: str


@dataclass(frozen=True)
class Outcome:
    """What a job gave: the episode as the bytes of an .npz file, or None if every attempt was rejected."""

    job: Job
    episode: bytes | None
    rejected: list[Rejected]


def collect(
    suite: str,
    episodes: int,
    out: Path | str,
    tasks: Sequence[int] | None = None,
    workers: int = 2,
    ray: str | None = None,
    seed: int = 0,
    render: str = "fast",
    size: int = 128,
    images: bool = False,
    worlds: int = 0,
    reworded: bool = False,
) -> dict[str, Any]:
    """Write `episodes` successful demonstrations of each task into the dataset folder `out`; returns a summary.

    Finished episodes wait in a folder beside `out` until all are there: start again to go on after a kill. Starts from
    fresh scenes, never from the test states.

    Args:
        suite: such as libero_goal.
        episodes: successful ones of each task, at most 1000.
        out: folder to write, which must not exist.
        tasks: their indices in the suite; all of them if not given.
        workers: processes.
        ray: address of a Ray cluster whose processes do the work, such as auto.
        seed: decides everything that varies.
        render: "fast" (simplified meshes) or "exact".
        size: of the images (px).
        images: keep each image as PNG in place of videos: exact and quick to read, many times larger.
        worlds: play each task in so many worlds of its own, with objects exchanged and spread over the table;
            0 plays it as published.
        reworded: say each instruction in other words.

    Raises UserError if `out` exists, if what waits beside it was collected with other settings, if a task can have no
    own world, or, when all else is done, if a task could not be demonstrated.
    """
    out, known = Path(out), tasks_of(suite)
    chosen = list(tasks or range(len(known)))
    if out.exists():
        raise UserError(f"expected no {out}, found one; fix: remove it or choose another folder")
    if unknown := [task for task in chosen if not 0 <= task < len(known)]:
        raise UserError(f"expected tasks 0 to {len(known) - 1} of {suite}, found {unknown}; fix: name existing tasks")
    if not 0 < episodes <= 1000 or min(seed, worlds) < 0:
        raise UserError(
            "expected 1 to 1000 episodes, a seed and a number of worlds from 0 on, "
            f"found {episodes}, {seed} and {worlds}; fix: change them"
        )
    settings: dict[str, Any] = {"suite": suite, "seed": seed, "render": render, "size": size}
    settings |= {key: value for key, value in {"worlds": worlds, "reworded": reworded}.items() if value}
    jobs = [Job(task=task, episode=episode, **settings) for task in chosen for episode in range(episodes)]
    for task in chosen:
        find_task(suite, task, 0 if worlds else None)
    scratch = _scratch(out, settings)
    if failures := _run(jobs, scratch, workers, ray):
        raise UserError(_explained(failures, scratch))
    summary = {**settings, "tasks": chosen, "episodes": episodes, **_summary(jobs, scratch)}
    with replacing(out) as fresh:
        _assemble(jobs, scratch, fresh, images)
        Contract.for_libero(size=size, render=render).save(fresh / "meta")
        write_json(fresh / "meta" / "collection.json", summary)
    shutil.rmtree(scratch)
    _show(summary)
    return summary


def scenes(root: Path) -> list[Scene]:
    """What each episode of a collected dataset was recorded in, in its order."""
    collection = read_json(root / "meta" / "collection.json")
    found = []
    for task in collection["tasks"]:
        kept = collection["per_task"][str(task)]
        worlds = kept.get("worlds", [None] * len(kept["seeds"]))
        for world, seed in zip(worlds, kept["seeds"], strict=True):
            found.append(Scene(collection["suite"], task, world, seed, collection["start_noise"]))
    return found


def _scratch(out: Path, settings: dict[str, Any]) -> Path:
    """The folder of finished episodes. Raises UserError if it holds episodes of other settings.

    Tasks and number of episodes may differ: an episode does not depend on which others are wanted.
    """
    scratch = out.with_name(f".{out.name}.episodes")
    if (scratch / "settings.json").exists():
        found = read_json(scratch / "settings.json")
        if found != settings:
            raise UserError(f"expected episodes collected with {settings} in {scratch}, found {found}; fix: remove it")
    write_json(scratch / "settings.json", settings)
    return scratch


def _run(jobs: list[Job], scratch: Path, workers: int, ray: str | None) -> list[Outcome]:
    """Collect the episodes that are not there yet; returns those of which every attempt was rejected."""
    missing = [job for job in jobs if not (scratch / job.file).exists()]
    missing.sort(key=lambda job: job.world or 0)  # making one takes seconds
    kept, tried, failures = Counter[int](), Counter[int](), []
    with Meter("demonstrations", len(jobs), done=len(jobs) - len(missing)) as meter:
        for outcome in spread(_collect_one, missing, workers, ray=ray):
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


def _collect_one(job: Job) -> Outcome:
    """Collect one episode in a worker."""
    from apprentice.libero.demonstrator import demonstrate
    from apprentice.libero.env import environment

    env = environment(job.suite, job.task, job.world, render=job.render, size=job.size)
    rejected: list[Rejected] = []
    for seed in range(job.first_seed, job.first_seed + ATTEMPTS):
        try:
            episode = demonstrate(env, seed)
        except NotImplementedError as missing:  # no seed will help
            return Outcome(job, None, [Rejected(job.task, job.episode, seed, str(missing))])
        if episode.failure is None:
            break
        rejected.append(Rejected(job.task, job.episode, seed, episode.failure))
    else:
        return Outcome(job, None, rejected)
    frames = []
    for snapshot in episode.record.snapshots:
        env.restore(snapshot)
        frames.append(env.observe())
    return packed(job, seed, rejected, episode.record, frames)


def packed(
    job: Job, seed: int, rejected: list[Rejected], record: "Record", frames: list[dict[str, np.ndarray]]
) -> Outcome:
    """The outcome of a success: its record, and what was seen before each action."""
    columns: dict[str, Any] = {key: np.stack([frame[key] for frame in frames]) for key in frames[0]}
    columns |= {
        "action": np.stack(record.actions),
        "executed": np.stack(record.executed),
        "seed": np.array(seed),
        "rejected_seeds": np.array([r.seed for r in rejected], dtype=np.int64),
        "rejected_reasons": np.array([r.reason for r in rejected], dtype=np.str_),
    }
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for key, values in columns.items():
            with archive.open(f"{key}.npy", "w") as file:
                np.lib.format.write_array(file, values, allow_pickle=False)
    return Outcome(job, stream.getvalue(), rejected)


def _explained(failures: list[Outcome], scratch: Path) -> str:
    """Which tasks could not be demonstrated, and why."""
    lines = []
    for task in sorted({failure.job.task for failure in failures}):
        episodes = [failure for failure in failures if failure.job.task == task]
        reasons = _counted(attempt.reason for failure in episodes for attempt in failure.rejected)
        lines.append(f"task {task}, {tasks_of(episodes[0].job.suite)[task].instruction!r}: {reasons}")
    return (
        f"expected a success in {ATTEMPTS} attempts at every episode, found none at {len(failures)} of them:\n  "
        + "\n  ".join(lines)
        + f"\nall other episodes are kept in {scratch}; fix: collect again without these tasks, or with another seed"
    )


def _counted(reasons: Iterable[str]) -> str:
    return ", ".join(f"{count} x {reason}" for reason, count in Counter(reasons).most_common())


def _summary(jobs: list[Job], scratch: Path) -> dict[str, Any]:
    """Seeds, success rate and length for each task, every rejected attempt, and how far starts are spread."""
    from apprentice.libero.demonstrator import START_NOISE

    rejected: list[Rejected] = []
    per_task: dict[int, dict[str, Any]] = {}
    for job in jobs:
        with np.load(scratch / job.file, allow_pickle=False) as episode:
            task = per_task.setdefault(job.task, {key: [] for key in ("steps", "seeds", "worlds", "instructions")})
            task["worlds"].append(job.world)
            task["instructions"].append(job.instruction)
            task["seeds"].append(int(episode["seed"]))
            task["steps"].append(len(episode["action"]))
            pairs = zip(episode["rejected_seeds"], episode["rejected_reasons"], strict=True)
            rejected += [Rejected(job.task, job.episode, int(seed), str(reason)) for seed, reason in pairs]
    failures = Counter(attempt.task for attempt in rejected)
    told = {"seeds": True, "worlds": bool(jobs[0].worlds), "instructions": bool(jobs[0].worlds) or jobs[0].reworded}
    rates = {
        str(index): {
            "success_rate": round(len(task["seeds"]) / (len(task["seeds"]) + failures[index]), 4),
            "mean_steps": round(float(np.mean(task["steps"])), 1),
            **{key: task[key] for key, wanted in told.items() if wanted},
        }
        for index, task in per_task.items()
    }
    return {"start_noise": START_NOISE, "per_task": rates, "rejected": [asdict(attempt) for attempt in rejected]}


def _show(summary: dict[str, Any]) -> None:
    table = Table("task", "instruction", "success", "steps", "rejected", title=f"{summary['suite']}: attempts")
    for task, found in summary["per_task"].items():
        reasons = _counted(attempt["reason"] for attempt in summary["rejected"] if attempt["task"] == int(task))
        instruction = tasks_of(summary["suite"])[int(task)].instruction
        table.add_row(task, instruction, f"{found['success_rate']:.0%}", f"{found['mean_steps']:.0f}", reasons)
    console.print(table)


def _assemble(jobs: list[Job], scratch: Path, root: Path, images: bool) -> None:
    """Write the finished episodes, in order, as a LeRobotDataset."""
    import av.logging
    import datasets
    from lerobot.configs.video import RGBEncoderConfig
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    av.logging.set_libav_level(av.logging.ERROR)
    datasets.disable_progress_bars()
    size = jobs[0].size
    image = {
        "dtype": "image" if images else "video",
        "shape": (size, size, 3),
        "names": ["height", "width", "channels"],
    }
    action = {"dtype": "float32", "shape": (7,), "names": {"motors": ACTION_NAMES}}
    dataset = LeRobotDataset.create(
        repo_id=f"local/{root.name}",
        fps=FPS,
        root=root,
        robot_type="panda",
        use_videos=not images,
        video_backend="pyav",  # for reading; else LeRobot tries torchcodec, and prints why it has no FFmpeg
        features={
            "observation.images.image": image,
            "observation.images.image2": image,
            "observation.state": {"dtype": "float32", "shape": (8,), "names": {"motors": STATE_NAMES}},
            "action": action,
            "executed": action,
        },
        # About 0.7 KB a frame at 128 px, at 36 to 39 dB; one key frame a second.
        rgb_encoder=RGBEncoderConfig(vcodec="h264", crf=20, g=FPS, preset="slow"),
        image_writer_threads=4 if images else 0,
        streaming_encoding=not images,
        encoder_queue_maxsize=2 * max(SUITES.values()),  # a full queue would drop frames
        encoder_threads=1,  # with more, the bytes would depend on the number of cores
    )
    with _lean_writing(images):
        for job in track(jobs, "writing the dataset"):
            instruction = job.instruction
            with np.load(scratch / job.file, allow_pickle=False) as episode:
                columns = {key: episode[key] for key in dataset.features if key in episode}
            for index in range(len(columns["action"])):
                dataset.add_frame({"task": instruction, **{key: values[index] for key, values in columns.items()}})
            dataset.save_episode()
    dataset.finalize()
    shutil.rmtree(root / "images", ignore_errors=True)  # empty by now
    statistics = root / "meta" / "stats.json"  # in the order of a set, another in each process
    write_json(statistics, dict(sorted(read_json(statistics).items())))


@contextmanager
def _lean_writing(images: bool) -> Iterator[None]:
    """Statistics of every fourth image alone, and without images no search for them in the table.

    LeRobot samples images too, but not those of a video that it encodes as they come: it sorts the pixels of each,
    which takes longer than to encode it.
    """
    from lerobot.datasets import compute_stats, dataset_writer

    class Sampled(compute_stats.RunningQuantileStats):  # type: ignore[misc]
        calls = -1

        def update(self, batch: np.ndarray) -> None:
            self.calls += 1
            if self.calls % 4 == 0:
                super().update(batch)

    whole, embed = compute_stats.RunningQuantileStats, dataset_writer.embed_images
    compute_stats.RunningQuantileStats = Sampled
    if not images:
        dataset_writer.embed_images = lambda table: table
    try:
        yield
    finally:
        compute_stats.RunningQuantileStats, dataset_writer.embed_images = whole, embed
