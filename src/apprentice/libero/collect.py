"""Demonstrations by the scripted demonstrator, written as a LeRobotDataset v3.0.

An episode is planned and acted without cameras; only if it succeeded are its recorded states drawn. Every episode has
its own seeds, so a dataset is the same whatever the number of workers and however often collecting was interrupted.
"""

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from apprentice.data.contract import Contract
from apprentice.errors import UserError
from apprentice.files import read_json, replacing, write_json
from apprentice.libero.suites import tasks as tasks_of
from apprentice.pool import spread
from apprentice.progress import Meter, track

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
    target: str

    @property
    def first_seed(self) -> int:
        return ((self.seed * 100 + self.task) * 1000 + self.episode) * ATTEMPTS


@dataclass(frozen=True)
class Rejected:
    """An attempt that is not in the dataset, and why."""

    task: int
    episode: int
    seed: int
    reason: str


def collect(
    suite: str,
    tasks: Sequence[int],
    episodes: int,
    out: Path | str,
    workers: int = 2,
    seed: int = 0,
    render: str = "fast",
    size: int = 128,
) -> dict[str, Any]:
    """Write `episodes` successful demonstrations of each task into the dataset folder `out`; returns a summary.

    Finished episodes wait in a folder beside `out` until all are there: start again to go on after a kill. Starts from
    fresh scenes, never from the test states.

    Args:
        suite: such as libero_goal.
        tasks: their indices in the suite.
        episodes: successful ones of each task, at most 1000.
        out: folder to write, which must not exist.
        workers: processes.
        seed: decides everything that varies.
        render: "fast" (simplified meshes) or "exact".
        size: of the images (px).

    Raises UserError if `out` exists, or if what waits beside it was collected with other settings.
    """
    out = Path(out)
    known = tasks_of(suite)
    if out.exists():
        raise UserError(f"expected no {out}, found one; fix: remove it or choose another folder")
    if unknown := [task for task in tasks if not 0 <= task < len(known)]:
        raise UserError(f"expected tasks 0 to {len(known) - 1} of {suite}, found {unknown}; fix: name existing tasks")
    if not 0 < episodes <= 1000 or seed < 0:
        raise UserError(
            f"expected 1 to 1000 episodes and a seed from 0 on, found {episodes} and {seed}; fix: change them"
        )
    settings: dict[str, Any] = {"suite": suite, "tasks": list(tasks), "episodes": episodes}
    settings |= {"seed": seed, "render": render, "size": size}
    scratch = _scratch(out, settings)
    jobs = [
        Job(suite, task, episode, seed, render, size, str(scratch / f"{task:02d}_{episode:04d}.npz"))
        for task in tasks
        for episode in range(episodes)
    ]
    _run(jobs, workers)
    summary = {**settings, **_summary(jobs)}
    with replacing(out) as fresh:
        _assemble(jobs, fresh)
        Contract.for_libero(size=size, render=render).save(fresh / "meta")
        write_json(fresh / "meta" / "collection.json", summary)
    shutil.rmtree(scratch)
    return summary


def _scratch(out: Path, settings: dict[str, Any]) -> Path:
    """The folder of finished episodes. Raises UserError if it holds episodes of other settings."""
    scratch = out.with_name(f".{out.name}.episodes")
    if (scratch / "settings.json").exists():
        found = read_json(scratch / "settings.json")
        if found != settings:
            raise UserError(f"expected episodes collected with {settings} in {scratch}, found {found}; fix: remove it")
    write_json(scratch / "settings.json", settings)
    return scratch


def _run(jobs: list[Job], workers: int) -> None:
    """Collect the episodes that are not there yet."""
    missing = [job for job in jobs if not Path(job.target).exists()]
    kept, tried = Counter[int](), Counter[int]()
    with Meter("demonstrations", len(jobs), done=len(jobs) - len(missing)) as meter:
        for task, rejected in spread(_collect_one, missing, workers):
            kept[task] += 1
            tried[task] += 1 + rejected
            meter.advance(note=", ".join(f"task {t}: {kept[t] / tried[t]:.0%}" for t in sorted(kept)))


_env: Any = None  # a worker's environment: making one takes seconds


def _collect_one(job: Job) -> tuple[int, int]:
    """Collect one episode in a worker; returns its task and the number of rejected attempts."""
    from apprentice.libero.demonstrator import demonstrate
    from apprentice.libero.env import LiberoEnv

    global _env
    if _env is None or (_env.suite, _env.task) != (job.suite, job.task):
        if _env is not None:
            _env.close()
        _env = LiberoEnv(job.suite, job.task, render=job.render, size=job.size)
    rejected: list[Rejected] = []
    for seed in range(job.first_seed, job.first_seed + ATTEMPTS):
        episode = demonstrate(_env, seed)
        if episode.failure is None:
            break
        rejected.append(Rejected(job.task, job.episode, seed, episode.failure))
    else:
        raise RuntimeError(f"{ATTEMPTS} attempts at {job} failed: {[r.reason for r in rejected]}")
    frames = []
    for snapshot in episode.record.snapshots:
        _env.restore(snapshot)
        frames.append(_env.observe())
    columns: dict[str, Any] = {key: np.stack([frame[key] for frame in frames]) for key in frames[0]}
    with replacing(job.target) as fresh, fresh.open("wb") as stream:
        np.savez_compressed(
            stream,
            action=np.stack(episode.record.actions),
            executed=np.stack(episode.record.executed),
            rejected_seeds=np.array([r.seed for r in rejected], dtype=np.int64),
            rejected_reasons=np.array([r.reason for r in rejected], dtype=np.str_),
            **columns,
        )
    return job.task, len(rejected)


def _summary(jobs: list[Job]) -> dict[str, Any]:
    """Success rate and length for each task, and every rejected attempt."""
    rejected, steps = [], {}
    for job in jobs:
        with np.load(job.target, allow_pickle=False) as episode:
            steps[job.task, job.episode] = len(episode["action"])
            pairs = zip(episode["rejected_seeds"], episode["rejected_reasons"], strict=True)
            rejected += [Rejected(job.task, job.episode, int(seed), str(reason)) for seed, reason in pairs]
    per_task = {}
    for task in sorted({job.task for job in jobs}):
        lengths = [n for (t, _), n in steps.items() if t == task]
        failures = sum(r.task == task for r in rejected)
        per_task[str(task)] = {
            "success_rate": round(len(lengths) / (len(lengths) + failures), 4),
            "mean_steps": round(float(np.mean(lengths)), 1),
        }
    return {"per_task": per_task, "rejected": [asdict(r) for r in rejected]}


def _assemble(jobs: list[Job], root: Path) -> None:
    """Write the finished episodes, in order, as a LeRobotDataset."""
    import av.logging
    from lerobot.configs.video import RGBEncoderConfig
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    av.logging.set_libav_level(av.logging.ERROR)
    size = jobs[0].size
    image = {"dtype": "video", "shape": (size, size, 3), "names": ["height", "width", "channels"]}
    action = {"dtype": "float32", "shape": (7,), "names": {"motors": ACTION_NAMES}}
    dataset = LeRobotDataset.create(
        repo_id=f"local/{root.name}",
        fps=FPS,
        root=root,
        robot_type="panda",
        features={
            "observation.images.image": image,
            "observation.images.image2": image,
            "observation.state": {"dtype": "float32", "shape": (8,), "names": {"motors": STATE_NAMES}},
            "action": action,
            "executed": action,
        },
        # About 0.7 KB a frame at 128 px, at 36 to 39 dB; one key frame a second.
        rgb_encoder=RGBEncoderConfig(vcodec="h264", crf=20, g=FPS, preset="slow"),
    )
    for job in track(jobs, "writing the dataset"):
        instruction = tasks_of(job.suite)[job.task].instruction
        with np.load(job.target, allow_pickle=False) as episode:
            columns = {key: episode[key] for key in dataset.features if key in episode}
        for index in range(len(columns["action"])):
            dataset.add_frame({"task": instruction, **{key: values[index] for key, values in columns.items()}})
        dataset.save_episode()
    dataset.finalize()
    shutil.rmtree(root / "images", ignore_errors=True)  # empty by now
