"""Closed-loop episodes in LIBERO: many policies, the same initial states, several processes, resumable.

Every episode is a job of its own and is written down as soon as it ends. It depends on nothing but the protocol and the
checkpoint, so it does not matter which process runs it, or in which order.
"""

import time
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from apprentice.data.contract import Contract
from apprentice.device import best_device
from apprentice.errors import UserError
from apprentice.evaluate.checkpoint import Checkpoint, inspect_checkpoint
from apprentice.evaluate.protocol import Protocol
from apprentice.evaluate.results import Episode, Evaluation, append_episode, drop_half_line
from apprentice.evaluate.video import encode
from apprentice.files import replacing
from apprentice.libero.env import SETTLE_STEPS, environment
from apprentice.libero.suites import SUITES, initial_states
from apprentice.libero.suites import tasks as suite_tasks
from apprentice.pool import spread
from apprentice.progress import Meter

CAMERA = "observation.images.image"
CONTROL_HZ = 20
SPEED = 2  # films run at twice the real speed
FILMED = 2  # initial states of each task that are filmed even if they succeed; failures always are


def evaluate(
    policies: dict[str, Path],
    suite: str,
    tasks: list[int],
    episodes: int,
    out_dir: Path,
    *,
    workers: int = 2,
    told: dict[int, int] | None = None,
    render: Literal["fast", "exact"] = "fast",
    size: int = 128,
    max_steps: int | None = None,
) -> list[Episode]:
    """Run policies in closed loop on a benchmark's initial states; every finished episode is kept in `out_dir`.

    Args:
        policies: LeRobot checkpoint folders by name.
        suite: name of the LIBERO suite.
        tasks: indices of its tasks.
        episodes: initial states 0 .. episodes - 1 of each task are run, the same ones for every policy.
        out_dir: folder of the evaluation; one that was begun there is continued.
        workers: processes.
        told: language probe instead: 1=8 sets up task 1 (scene, initial states) and gives the instruction of task 8.
        render: "fast" draws simplified meshes, "exact" those of the benchmark.
        size: height and width of the images (px).
        max_steps: actions before an episode counts as failed, instead of the suite's own limit.

    Raises UserError if a checkpoint does not fit, a policy's actions are unusable, or a worker process dies.
    """
    protocol = Protocol.with_installed_versions(
        suite=suite,
        tasks=tuple(tasks),
        episodes=episodes,
        told=tuple((told or {}).items()),
        step_limit=max_steps or SUITES.get(suite, 0),
        image_size=size,
        render=render,
        settle_steps=SETTLE_STEPS,
    )
    _check(protocol)
    environment = Contract.for_libero(size, render)
    cards = {name: inspect_checkpoint(name, Path(folder), environment) for name, folder in policies.items()}
    evaluation = Evaluation(Path(out_dir), protocol, cards, [])
    evaluation.save()
    drop_half_line(evaluation.log)
    evaluation = Evaluation.load(out_dir)
    finished = {episode.key for episode in evaluation.episodes}
    jobs = [
        Job(name, Path(policies[name]), checkpoint, task, other, state, protocol)
        for name, checkpoint, _, task, other, state in evaluation.wanted
        if (name, checkpoint, protocol.conditions, task, other, state) not in finished
    ]
    if jobs:
        _run(jobs, evaluation, min(workers, len(jobs)))
    return Evaluation.load(out_dir).episodes


@dataclass(frozen=True)
class Job:
    """One episode to run: `task` is set up, the instruction is that of `told`."""

    policy: str
    folder: Path
    checkpoint: str
    task: int
    told: int
    init_state: int
    protocol: Protocol


def _check(protocol: Protocol) -> None:
    """Raise UserError for a task or an initial state that the suite does not have."""
    known = len(suite_tasks(protocol.suite))
    for task in {task for pair in protocol.pairs for task in pair}:
        if task not in range(known):
            raise UserError(f"expected tasks 0 to {known - 1} of {protocol.suite}, found {task}; fix: choose another")
        states = len(initial_states(protocol.suite, task))
        if not 1 <= protocol.episodes <= states:
            raise UserError(
                f"expected 1 to {states} episodes, one for each initial state of {protocol.suite} task {task}, "
                f"found {protocol.episodes}; fix: ask for as many as there are"
            )


def _run(jobs: list[Job], evaluation: Evaluation, workers: int) -> None:
    """Run jobs in a pool and write each episode down as it ends."""
    done = Counter(episode.policy for episode in evaluation.episodes)
    successes = Counter(episode.policy for episode in evaluation.episodes if episode.told_success)
    total = len(evaluation.wanted)
    meter = Meter(f"evaluate {evaluation.protocol.suite}", total, total - len(jobs))
    try:
        with meter:
            for episode, film in spread(run_episode, jobs, workers):
                if film is not None and episode.video is not None:
                    with replacing(evaluation.folder / "videos" / episode.video) as fresh:
                        fresh.write_bytes(film)
                append_episode(evaluation.log, episode)
                successes[episode.policy] += episode.told_success
                done[episode.policy] += 1
                meter.advance(note="  ".join(f"{name} {successes[name]}/{done[name]}" for name in done))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"stopped with {meter.done} of {total} episodes done, all of them kept in {evaluation.folder}; "
            "run the same command again to go on from there"
        ) from None


_checkpoints: dict[str, Checkpoint] = {}  # of this process, by fingerprint


def run_episode(job: Job) -> tuple[Episode, bytes | None]:
    """Run one episode in this process; returns it and its film (mp4) if it is one to look at."""
    protocol = job.protocol
    env = environment(protocol.suite, job.task, render=protocol.render, size=protocol.image_size)
    if job.checkpoint not in _checkpoints:
        _checkpoints[job.checkpoint] = Checkpoint(job.policy, job.folder, best_device())
    policy = _checkpoints[job.checkpoint]
    instruction = suite_tasks(protocol.suite)[job.told].instruction
    clock = Stopwatch()

    env.reset(seed=protocol.seed + job.init_state, init_state=job.init_state)
    policy.reset(protocol.seed + job.init_state)
    clock.lap("reset")
    success = told_success = False
    steps, frames = 0, []
    actions: np.ndarray = np.empty((0, 7))
    while steps < protocol.step_limit and not (success or told_success):
        if not len(actions):
            observation = env.observe()
            frames.append(observation[CAMERA])
            clock.lap("render")
            actions = policy.plan(observation, instruction)
            clock.lap("policy")
        success = env.step(actions[0])
        told_success = success if job.told == job.task else env.success_of(job.told)
        actions = actions[1:]
        steps += 1
        clock.lap("physics")

    episode = Episode(
        policy=job.policy,
        checkpoint=job.checkpoint,
        conditions=protocol.conditions,
        suite=protocol.suite,
        task=job.task,
        told=job.told,
        init_state=job.init_state,
        instruction=instruction,
        success=success,
        told_success=told_success,
        steps=steps,
        seconds=round(sum(clock.seconds.values()), 3),
        reset_seconds=round(clock.seconds["reset"], 3),
        policy_seconds=round(clock.seconds["policy"], 3),
        render_seconds=round(clock.seconds["render"], 3),
        physics_seconds=round(clock.seconds["physics"], 3),
        video=None,
    )
    if told_success and job.init_state >= FILMED:
        return episode, None
    frames.append(env.observe()[CAMERA])
    # Images are mirrored by convention; people should see left where the instruction says left.
    film = encode([frame[:, ::-1] for frame in frames], SPEED * CONTROL_HZ / policy.n_action_steps)
    return replace(episode, video=f"{job.checkpoint}-task{job.task}-told{job.told}-state{job.init_state}.mp4"), film


class Stopwatch:
    """Adds up where time goes; `lap` books everything since the lap before."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._last = time.perf_counter()

    def lap(self, part: str) -> None:
        now = time.perf_counter()
        self.seconds[part] += now - self._last
        self._last = now
