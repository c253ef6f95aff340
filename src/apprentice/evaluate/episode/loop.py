"""The closed loop of an episode: observe, plan, execute, until the goal holds or the steps run out; and its clock."""

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from apprentice.evaluate.episode.job import EpisodeJob, Policy
from apprentice.evaluate.episode.probes import seen
from apprentice.evaluate.selfcheck.faults import watched
from apprentice.serve.client import is_address
from apprentice.simulators.base import Environment, Observation, Observer


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


@dataclass
class Run:
    """What happened in an episode of N actions and P plans.

    Attributes:
        states: N + 1 states (S,), before each action and at the end.
        actions: N actions (A,), as they were executed.
        plans: of each plan, how many actions had been executed before, and how long it took (s).
        observations: what the environment showed before each plan.
        success: the goal of the task that is set up held at some step.
        instructed_success: the goal of the task whose instruction was given held at some step.
        failure: how it failed, if neither held.
        seconds: where the time went.
    """

    seconds: dict[str, float]
    states: list[np.ndarray]
    actions: list[np.ndarray] = field(default_factory=list)
    plans: list[tuple[int, float]] = field(default_factory=list)
    observations: list[Observation] = field(default_factory=list)
    success: bool = False
    instructed_success: bool = False
    failure: str | None = None


def act(
    job: EpisodeJob,
    env: Environment,
    policy: Policy,
    observer: Observer,
    instruction: str,
    clock: Stopwatch,
    cameras: Sequence[str],
) -> Run:
    """Let a policy act from the reset on; the environment has these cameras. Raises UserError if it fails to plan."""
    run = Run(clock.seconds, [env.proprioception()])
    actions: np.ndarray = np.empty(0)
    while len(run.actions) < job.protocol.step_limit and not (run.success or run.instructed_success):
        if not len(actions):
            observation = env.observe()
            run.observations.append(observation)
            clock.lap("render")
            with watched(job.policy, str(job), limited=not is_address(job.place)):
                actions = policy.plan(seen(job.probe, observation, cameras), instruction)
            run.plans.append((len(run.actions), clock.lap("policy")))
        run.success = env.step(actions[0])
        run.instructed_success = run.success if job.instructed == job.task else env.success_of(job.instructed)
        observer.observe(actions[0])
        run.actions.append(actions[0])
        run.states.append(env.proprioception())
        actions = actions[1:]
        clock.lap("physics")
    if not (run.success or run.instructed_success):
        run.failure = observer.kind()
    return run
