"""One closed-loop episode in LIBERO: what is to be run, who acts, and what is kept of it."""

import time
from collections import defaultdict
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol as Interface

import numpy as np

from apprentice.common.device import best_device
from apprentice.data.contract import Contract
from apprentice.evaluate.episode.probes import MOVED, PLAIN, carried, said, seen
from apprentice.evaluate.episode.recording import record
from apprentice.evaluate.episode.trace import Trace
from apprentice.evaluate.episode.video import encode
from apprentice.evaluate.protocol import Protocol
from apprentice.evaluate.results import Episode
from apprentice.evaluate.selfcheck.faults import watched
from apprentice.serve.card import PolicyCard
from apprentice.serve.checkpoint import Checkpoint, inspect_checkpoint
from apprentice.serve.client import PolicyServer, inspect_server, is_address
from apprentice.serve.one_a_task import inspect_by_task, told_folder
from apprentice.simulators.libero.evaluation.failures import OTHER_TASK, Observer
from apprentice.simulators.libero.evaluation.moving import Start, reset_moved
from apprentice.simulators.libero.simulator.env import environment
from apprentice.simulators.libero.simulator.suites import tasks

CAMERA = "observation.images.image"
CONTROL_HZ = 20
SPEED = 2  # films run at twice the real speed
FRESH_SEED = 2_000_000_000  # beyond those of collection
FRESH_START = 0.015  # m: the hand of a fresh layout starts as far from home as in the test states (5 to 9 mm deviation)
FILMED = 2  # initial states of each task that are filmed even if they succeed; failures always are


@dataclass(frozen=True)
class Job:
    """One episode to run: `task` is set up, the instruction is that of `told`."""

    policy: str
    place: str  # folder, experts.yaml or address
    checkpoint: str
    task: int
    told: int
    init_state: int
    protocol: Protocol
    film: str = "some"
    rerun: bool = False
    probe: str = PLAIN

    def __str__(self) -> str:
        told = f" told {self.told}" if self.told != self.task else ""
        return f"policy {self.policy}, {self.protocol.suite} task {self.task}{told}, initial state {self.init_state}"


class Policy(Interface):
    """What acts: a checkpoint in this process, or a server."""

    @property
    def n_action_steps(self) -> int: ...
    def reset(self, seed: int) -> None: ...
    def plan(self, observation: dict[str, np.ndarray], instruction: str) -> np.ndarray: ...
    def close(self) -> None: ...


def inspect(name: str, place: str, environment: Contract, protocol: Protocol) -> PolicyCard:
    """Look at a policy before anything runs. Raises UserError if it does not fit."""
    if is_address(place):
        return inspect_server(name, place, environment, protocol.execution)
    if Path(place).is_file():
        instructions = [tasks(protocol.suite)[told].instruction for _, told in protocol.pairs]
        return inspect_by_task(name, Path(place), environment, protocol.execution, instructions)
    return inspect_checkpoint(name, Path(place), environment, protocol.execution)


_policies: dict[tuple, Policy] = {}  # of this process


def load(job: Job, instruction: str) -> Policy:
    """The policy of a job; loaded once in a process."""
    protocol = job.protocol
    place = job.place if is_address(job.place) else str(told_folder(job.policy, job.place, instruction))
    key = (place, job.checkpoint, protocol.execution)
    if key not in _policies:
        _policies[key] = (
            PolicyServer(job.policy, place, protocol.n_action_steps)
            if is_address(place)
            else Checkpoint(job.policy, Path(place), best_device(), protocol.execution)
        )
    return _policies[key]


def run_episode(job: Job) -> tuple[Episode, dict[str, bytes]]:
    """Run one episode in this process; returns it and the files to keep in the evaluation's folder."""
    protocol = job.protocol
    env = environment(protocol.suite, job.task, render=protocol.render, size=protocol.image_size)
    seed = protocol.seed + job.init_state
    instruction = said(job.probe, tasks(protocol.suite)[job.told].instruction, seed)
    policy = load(job, instruction)
    goal = env.goals_of(job.told)
    clock = Stopwatch()

    if protocol.layouts == "fresh":
        start = Start(FRESH_SEED + seed, None, FRESH_START, protocol.settle_steps)
    else:
        start = Start(seed, job.init_state, 0.0, protocol.settle_steps)
    if job.probe == MOVED:
        reset_moved(env, carried(goal), start)
    else:
        start.reset(env)
    policy.reset(seed)
    observer = Observer(env, goal)
    clock.lap("reset")
    success = told_success = False
    steps, frames, plans = 0, [], []
    states, executed = [env.proprioception()], []
    actions: np.ndarray = np.empty((0, 7))
    with closing(policy):
        while steps < protocol.step_limit and not (success or told_success):
            if not len(actions):
                observation = env.observe()
                frames.append(observation)
                clock.lap("render")
                with watched(job.policy, str(job), limited=not is_address(job.place)):
                    actions = policy.plan(seen(job.probe, observation), instruction)
                plans.append((steps, clock.lap("policy")))
            success = env.step(actions[0])
            told_success = success if job.told == job.task else env.success_of(job.told)
            observer.look(actions[0])
            executed.append(actions[0])
            states.append(env.proprioception())
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
        seed=seed,
        probe=job.probe,
        failure=None if told_success else OTHER_TASK if success else observer.kind(),
    )
    trace = Trace.of(states, executed, plans)
    episode = replace(episode, trace=f"{episode.stem}.npz")
    files = {f"traces/{episode.trace}": trace.to_bytes()}
    if job.film == "all" or (job.film == "some" and not (told_success and job.init_state >= FILMED)):
        # Images are mirrored by convention; people should see left where the instruction says left.
        film = [each[CAMERA][:, ::-1] for each in [*frames, env.observe()]]
        episode = replace(episode, video=f"{episode.stem}.mp4")
        files[f"videos/{episode.video}"] = encode(film, SPEED * CONTROL_HZ / policy.n_action_steps)
    if job.rerun:
        files[f"recordings/{episode.stem}.rrd"] = record(episode, trace, frames)
    return episode, files


class Stopwatch:
    """Adds up where time goes; `lap` books everything since the lap before."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._last = time.perf_counter()

    def lap(self, part: str) -> float:
        """Seconds since the lap before."""
        now = time.perf_counter()
        passed = now - self._last
        self.seconds[part] += passed
        self._last = now
        return passed
