"""A policy acts, and stops where a demonstrator can take over: not while its fingers close, and before it goes wrong.

The demonstrator is labelled with what it does next. A policy without memory reads the same state as the one in which
whole demonstrations close the fingers or carry on; labels that open them there would contradict. So nothing is handed
over between the first step of closing and the moment when the object is in the air, nor after a mistake:

    a miss          the fingers have been closed for GIVEN_UP steps, and hold nothing; or what they held was lost
    a wrong object  they lifted an object that the goal does not name

A mistake moves the hand-over back: to the BEFORE steps before the fingers began to close, or lost what they held.
Where the demonstrator itself would not grip (it closes doors and drags plates with closed fingers) any state will do.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from apprentice.simulators.libero.demonstrator.controller import Disturbance
from apprentice.simulators.libero.demonstrator.demonstrator import in_order
from apprentice.simulators.libero.simulator.env import LiberoEnv, SimulatorState

GIVEN_UP = 12  # steps of closed fingers: they need 6 to 8 to reach what they grip
IN_THE_AIR = 3  # steps in which nothing but the fingers touches an object: slowly lifted, it still rocks
BEFORE = 20  # steps
DRAWN, EARLIER, SOLVED = "as drawn", "before a mistake", "before the goal"


@dataclass(frozen=True)
class Handover:
    """Where the demonstrator takes over."""

    state: SimulatorState
    action: np.ndarray  # (7,) that the policy executed before
    step: int  # that the policy had acted for
    kind: str  # DRAWN, EARLIER or SOLVED
    held: bool  # is an object in the hand?


class Fingers:
    """Watches what a policy's fingers do: `look` after every step."""

    def __init__(self, env: LiberoEnv):
        self._world = env.geometry()
        self._goals = in_order([tuple(goal) for goal in self._world.domain.parsed_problem["goal_state"]])
        self._wanted = {goal[1] for goal in self._goals if goal[0] in ("on", "in")}
        self._closed = self._gripping = False
        self._step = self._last = self._lifted = 0
        self.usable, self.holding = True, False  # may the demonstrator take over? with an object in the hand?
        self.mistake: int | None = None  # the step from which on nothing is usable

    def look(self, action: np.ndarray) -> None:
        """Take in what the last step did, with its action (7,)."""
        self._step += 1
        closed = bool(action[6] > 0 or (self._closed and action[6] == 0))
        if closed and not self._closed:
            self._gripping, self._last = self._next_is_gripped(), self._step - 1
        self._closed, self.holding, self.usable = closed, False, True
        if not closed or not self._gripping:
            self._lifted = 0
            return
        grasped = self._world.grasped()
        lifted = {name for name in grasped & set(self._world.domain.objects_dict) if not self._world.rests(name)}
        if grasped:
            self._last = self._step
        self._lifted = self._lifted + 1 if lifted & self._wanted else 0
        self.holding = self.usable = self._lifted >= IN_THE_AIR
        if lifted - self._wanted or self._step - self._last >= GIVEN_UP:
            self.mistake = self._last

    def _next_is_gripped(self) -> bool:
        """Does the demonstrator grip something for the first goal that does not hold?"""
        unmet = next((goal for goal in self._goals if not self._world.holds(goal)), self._goals[0])
        return not (unmet[0] == "close" or (unmet[0] == "on" and unmet[1].startswith("plate")))


def hand_over(
    env: LiberoEnv,
    plan: Callable[[], np.ndarray],
    rng: np.random.Generator,
    steps: tuple[int, int],
    noise: float,
) -> Handover | str:
    """Let a policy act from a reset on, for a number of steps drawn from a range; where to take over, or why nowhere.

    It acts on if nothing is usable then. What it solves before is handed over at one of its steps.

    Args:
        env: after its reset.
        plan: the policy's next actions (N, 7).
        rng: decides what is drawn.
        steps: the range, both ends included.
        noise: standard deviation of what disturbs its arm, as the demonstrator's, in stretches.
    """
    fingers, disturbance = Fingers(env), Disturbance(noise, rng)
    drawn = int(rng.integers(steps[0], steps[1] + 1))
    passed: list[Handover] = []
    actions: np.ndarray = np.empty((0, 7))
    executed: np.ndarray = np.zeros(7)
    for step in range(env.max_steps):
        if step and fingers.usable:
            passed.append(Handover(env.capture(), executed, step, DRAWN, fingers.holding))
            if step >= drawn:
                return passed[-1]
        if not len(actions):
            actions = plan()
        executed, actions = np.array(actions[0], dtype=float), actions[1:]
        executed[:6] = np.clip(executed[:6] + disturbance.next(calm=False), -1, 1)
        success = env.step(executed)
        fingers.look(executed)
        if success or fingers.mistake is not None:
            break
    else:
        return "the policy ran out of steps"
    if fingers.mistake is not None:
        kind, fit = EARLIER, [each for each in passed if 0 <= fingers.mistake - each.step <= BEFORE]
    else:
        kind, fit = SOLVED, passed
    if not fit:
        return f"nothing to take over {kind}"
    chosen = fit[int(rng.integers(len(fit)))]
    return Handover(chosen.state, chosen.action, chosen.step, kind, chosen.held)
