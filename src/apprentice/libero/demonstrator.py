"""A scripted expert: reads a task's goal and the simulator's state, and acts through the policy's own interface."""

from dataclasses import dataclass

import numpy as np

from apprentice.libero.controller import Controller, Failure, Record, Style
from apprentice.libero.env import LiberoEnv
from apprentice.libero.skills import pick_and_place, release
from apprentice.libero.world import World

START_NOISE = 0.04  # m, on each axis; test states differ by 5-9 mm (one standard deviation)
AFTER_SUCCESS = 20  # steps kept after the goal is reached for good: release and retreat
TRIES = 3


@dataclass
class Episode:
    """What came of one seed: the record, and why it failed if it did."""

    record: Record
    failure: str | None


def demonstrate(env: LiberoEnv, seed: int) -> Episode:
    """Reset the environment and solve its task; everything that varies is decided by `seed`."""
    rng = np.random.default_rng([seed, 2])
    env.reset(seed=seed, start_noise=START_NOISE)
    style = Style(
        speed=float(rng.uniform(0.75, 1.0)),
        noise=float(rng.choice([0.0, 0.2, 0.3])),
        approach=rng.uniform(-0.02, 0.02, 3),
    )
    hand, world = Controller(env, style, rng, env.max_steps), World(env)
    failure = None
    try:
        for predicate in [tuple(goal) for goal in world.domain.parsed_problem["goal_state"]]:
            _achieve(hand, world, predicate)
        hand.stay(3)
    except Failure as reason:
        failure = str(reason)
    if failure is None and not hand.record.successes[-1]:
        failure = "goal not reached"
    if failure is None:
        _trim(hand.record)
    return Episode(hand.record, failure)


def _achieve(hand: Controller, world: World, predicate: tuple[str, ...]) -> None:
    """Make a goal predicate true by the skill for it, in a few tries. Raises Failure."""
    for attempt in range(TRIES):
        if world.holds(predicate):
            return
        try:
            match predicate:
                case ("on", name, destination):
                    pick_and_place(hand, world, name, destination)
                case _:
                    raise NotImplementedError(f"no skill for the goal {' '.join(predicate)}")
        except Failure:
            if attempt == TRIES - 1:
                raise
            release(hand, 0.08)


def _trim(record: Record) -> None:
    """Cut the episode AFTER_SUCCESS steps after the goal was reached for good."""
    last_miss = max((step for step, success in enumerate(record.successes) if not success), default=0)
    end = last_miss + 1 + AFTER_SUCCESS
    for series in vars(record).values():
        del series[end:]
