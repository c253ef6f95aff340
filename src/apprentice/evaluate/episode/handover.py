"""A policy acts, and stops where a demonstrator can take over: not while its fingers close, and before it goes wrong.

The demonstrator knows which states it can take over in (`Demonstrator.watch`). A mistake moves the hand-over back: to
the BEFORE steps before the fingers began to close, or lost what they held.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from apprentice.simulators.base import Demonstrator, Environment

BEFORE = 20  # steps
DRAWN, EARLIER, SOLVED = "as drawn", "before a mistake", "before the goal"


@dataclass(frozen=True)
class Handover:
    """Where the demonstrator takes over."""

    state: Any  # captured
    action: np.ndarray  # (A,) that the policy executed before
    step: int  # that the policy had acted for
    kind: str  # DRAWN, EARLIER or SOLVED
    held: bool  # is an object in the hand?


def hand_over(
    env: Environment,
    demonstrator: Demonstrator,
    plan: Callable[[], np.ndarray],
    rng: np.random.Generator,
    steps: tuple[int, int],
    noise: float,
) -> Handover | str:
    """Let a policy act from a reset on, for a number of steps drawn from a range; where to take over, or why nowhere.

    It acts on if nothing is usable then. What it solves before is handed over at one of its steps.

    Args:
        env: after its reset.
        demonstrator: who is to take over.
        plan: the policy's next actions (N, A).
        rng: decides what is drawn.
        steps: the range, both ends included.
        noise: standard deviation of what disturbs it, as the demonstrator's, in stretches.
    """
    watcher, disturbance = demonstrator.watch(env), demonstrator.noise(noise, rng)
    drawn = int(rng.integers(steps[0], steps[1] + 1))
    passed: list[Handover] = []
    actions: np.ndarray = np.empty(0)
    executed: np.ndarray = np.empty(0)
    for step in range(env.max_steps):
        if step and watcher.usable:
            passed.append(Handover(env.capture(), executed, step, DRAWN, watcher.holding))
            if step >= drawn:
                return passed[-1]
        if not len(actions):
            actions = plan()
        executed, actions = disturbance.disturbed(actions[0]), actions[1:]
        success = env.step(executed)
        watcher.observe(executed)
        if success or watcher.mistake is not None:
            break
    else:
        return "the policy ran out of steps"
    if watcher.mistake is not None:
        kind, fit = EARLIER, [each for each in passed if 0 <= watcher.mistake - each.step <= BEFORE]
    else:
        kind, fit = SOLVED, passed
    if not fit:
        return f"nothing to take over {kind}"
    chosen = fit[int(rng.integers(len(fit)))]
    return Handover(chosen.state, chosen.action, chosen.step, kind, chosen.held)
