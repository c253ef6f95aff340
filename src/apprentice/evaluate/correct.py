"""Corrections: a policy acts for a while, the scripted demonstrator takes over, and its continuation is kept.

The states are the policy's own, the actions what should be done there (on-policy distillation; Ross, Gordon and
Bagnell, "A reduction of imitation learning and structured prediction to no-regret online learning", AISTATS 2011).
Episodes are made and written as those of `apprentice collect`, with the state that each begins in.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from apprentice.common.errors import UserError
from apprentice.common.progress import console
from apprentice.evaluate.episode import runner
from apprentice.evaluate.episode.handover import hand_over
from apprentice.evaluate.episode.job import EpisodeJob
from apprentice.evaluate.protocol import Protocol
from apprentice.evaluate.selfcheck.faults import watched
from apprentice.serve.client import is_address
from apprentice.simulators.base import Demonstration, Environment, Record, simulator_of
from apprentice.simulators.collection.config import CollectConfig
from apprentice.simulators.collection.episode_jobs import Collected, CollectJob, attempt, gather

NAME = "policy"
APART = 1_000_000_000  # from the seeds of collection, and from those of evaluation on fresh layouts


@dataclass(frozen=True, kw_only=True)
class Correction(CollectJob):
    """An episode to correct: who acts first, for how many steps, and disturbed by how much."""

    place: str  # folder, experts.yaml or address
    checkpoint: str
    protocol: Protocol
    steps: tuple[int, int]
    noise: float

    @property
    def first_seed(self) -> int:
        return APART + super().first_seed

    def __str__(self) -> str:
        return f"{self.suite} task {self.task}, correction {self.episode}"


@dataclass(frozen=True, kw_only=True)
class CorrectConfig(CollectConfig):
    """Which policy to correct, and from where on.

    Attributes:
        policy: the policy that acts first: a LeRobot checkpoint folder, an experts.yaml with one checkpoint a task, or
            an address ws://HOST:PORT.
        steps: the policy acts for a number of steps drawn from LEAST to MOST; it stops earlier before a mistake. If not
            given, from 1 to half of the suite's limit, about as long as a demonstration.
        noise: standard deviation of the noise on the policy's actions, such as 0.2 (the largest action is 1).
        n_action_steps: execute so many actions of each chunk before the policy plans again, instead of the number in
            its checkpoint.
    """

    policy: str
    steps: Sequence[int] | None = None
    noise: float = 0.0
    n_action_steps: int | None = None


def correct(config: CorrectConfig) -> dict[str, Any]:
    """Write successful corrections of each task into a dataset; returns a summary.

    Finished episodes wait in a folder beside `out` until all are there: start again to go on after a kill. Starts from
    fresh scenes, never from the test states, nor from those of demonstrations.

    Raises UserError if the policy does not fit, and as `apprentice collect` does.
    """
    suite, noise = config.suite, config.noise
    simulator = simulator_of(suite)
    known, most = simulator.tasks(suite), simulator.suites[suite]
    bounds = tuple(config.steps or (1, most // 2))
    if len(bounds) != 2 or not 1 <= bounds[0] <= bounds[1] <= most or noise < 0:
        raise UserError(
            f"expected two numbers of steps from 1 to {most} and a noise from 0 on, found "
            f"{' '.join(map(str, bounds))} and {noise:g}; fix: --steps LEAST MOST"
        )
    protocol = Protocol.with_installed_versions(
        suite=suite,
        tasks=tuple(config.tasks or range(len(known))),
        episodes=1,
        instructed=(),
        step_limit=most,
        image_size=config.size,
        render=config.render,
        seed=config.seed,
        n_action_steps=config.n_action_steps,
    )
    card = runner.inspect(NAME, config.policy, simulator.contract(suite, config.size, config.render), protocol)
    make = partial(
        Correction,
        **config.shared,
        place=config.policy,
        checkpoint=card.checkpoint,
        protocol=protocol,
        steps=bounds,
        noise=noise,
    )
    settings = config.shared | {"policy": vars(card), "policy_steps": list(bounds), "policy_noise": noise}
    summary = gather(config, make, _correct_one, settings)
    kinds = Counter(kind for task in summary["per_task"].values() for kind in task["handed_over"])
    held = sum(sum(task["held"]) for task in summary["per_task"].values())
    said = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    console.print(f"handed over: {said}; {held} of {kinds.total()} with an object in the hand")
    return summary


def _correct_one(job: Correction) -> Collected:
    """Make one correction in a worker."""
    return attempt(job, partial(_corrected, job))


def _corrected(job: Correction, env: Environment, seed: int) -> Demonstration:
    """Let the policy act, then the demonstrator; everything that varies is decided by `seed`."""
    instruction, demonstrator = job.instruction, simulator_of(job.suite).demonstrator()
    player = EpisodeJob(NAME, job.place, job.checkpoint, job.task, job.task, 0, job.protocol)
    policy = runner.load(player, instruction)
    demonstrator.begin(env, seed)
    policy.reset(seed)

    def plan() -> np.ndarray:
        with watched(NAME, f"{job}, seed {seed}", limited=not is_address(job.place)):
            return policy.plan(env.observe(), instruction)

    with closing(policy):
        rng = np.random.default_rng([seed, 5])
        found = hand_over(env, demonstrator, plan, rng, job.steps, job.noise)
    if isinstance(found, str):
        return Demonstration(Record(), found)
    env.resume(found.state)  # also where the policy stopped: so a replay begins as this does
    episode = demonstrator.take_over(env, seed, found.action)
    notes = {"policy_steps": found.step, "handed_over": found.kind, "held": found.held}
    return replace(episode, start=found.state, notes=notes)
