"""The scripted demonstrator behind the interface of `simulators.base`, and when it can take over from a policy.

It is labelled with what it does next. A policy without memory reads the same state as the one in which whole
demonstrations close the fingers or carry on; labels that open them there would contradict. So nothing is handed over
between the first step of closing and the moment when the object is in the air, nor after a mistake:

    a miss          the fingers have been closed for GIVEN_UP steps, and hold nothing; or what they held was lost
    a wrong object  they lifted an object that the goal does not name

Where the demonstrator itself would not grip (it closes doors and drags plates with closed fingers) any state will do.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from apprentice.simulators.base import Demonstration
from apprentice.simulators.libero.demonstrator.controller import Disturbance
from apprentice.simulators.libero.demonstrator.demonstrator import (
    START_NOISE,
    demonstrate,
    draw_style,
    in_order,
    solve,
)
from apprentice.simulators.libero.simulator.env import LiberoEnv, SimulatorState

GIVEN_UP = 12  # steps of closed fingers: they need 6 to 8 to reach what they grip
IN_THE_AIR = 3  # steps in which nothing but the fingers touches an object: slowly lifted, it still rocks


class Scripted:
    """`simulators.base.Demonstrator` for LIBERO."""

    start_noise = START_NOISE
    robot_type = "panda"
    state_names: Sequence[str] = ("x", "y", "z", "axis_angle1", "axis_angle2", "axis_angle3", "gripper", "gripper")
    action_names: Sequence[str] = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")

    def begin(self, env: LiberoEnv, seed: int) -> None:
        env.reset(seed=seed, start_noise=START_NOISE)

    def demonstrate(self, env: LiberoEnv, seed: int) -> Demonstration:
        return demonstrate(env, seed)

    def take_over(self, env: LiberoEnv, seed: int, action: np.ndarray) -> Demonstration:
        rng = np.random.default_rng([seed, 2])
        return solve(env, draw_style(rng), rng, action)

    def watch(self, env: LiberoEnv) -> "Fingers":
        return Fingers(env)

    def noise(self, deviation: float, rng: np.random.Generator) -> "ArmNoise":
        return ArmNoise(deviation, rng)

    def state(self, arrays: Mapping[str, np.ndarray]) -> SimulatorState:
        return SimulatorState(**arrays)


class Fingers:
    """Watches what a policy's fingers do: `observe` after every step."""

    def __init__(self, env: LiberoEnv):
        self._geometry = env.geometry()
        self._goals = in_order([tuple(goal) for goal in self._geometry.domain.parsed_problem["goal_state"]])
        self._wanted = {goal[1] for goal in self._goals if goal[0] in ("on", "in")}
        self._closed = self._gripping = False
        self._step = self._last = self._lifted = 0
        self.usable, self.holding = True, False  # may the demonstrator take over? with an object in the hand?
        self.mistake: int | None = None  # the step from which on nothing is usable

    def observe(self, action: np.ndarray) -> None:
        """Take in what the last step did, with its action (7,)."""
        self._step += 1
        closed = bool(action[6] > 0 or (self._closed and action[6] == 0))
        if closed and not self._closed:
            self._gripping, self._last = self._next_is_gripped(), self._step - 1
        self._closed, self.holding, self.usable = closed, False, True
        if not closed or not self._gripping:
            self._lifted = 0
            return
        grasped = self._geometry.grasped()
        lifted = {name for name in grasped & set(self._geometry.domain.objects_dict) if not self._geometry.rests(name)}
        if grasped:
            self._last = self._step
        self._lifted = self._lifted + 1 if lifted & self._wanted else 0
        self.holding = self.usable = self._lifted >= IN_THE_AIR
        if lifted - self._wanted or self._step - self._last >= GIVEN_UP:
            self.mistake = self._last

    def _next_is_gripped(self) -> bool:
        """Does the demonstrator grip something for the first goal that does not hold?"""
        unmet = next((goal for goal in self._goals if not self._geometry.holds(goal)), self._goals[0])
        return not (unmet[0] == "close" or (unmet[0] == "on" and unmet[1].startswith("plate")))


class ArmNoise:
    """Disturbs the arm's part of a policy's actions, as the demonstrator's own."""

    def __init__(self, deviation: float, rng: np.random.Generator):
        self._disturbance = Disturbance(deviation, rng)

    def disturbed(self, action: np.ndarray) -> np.ndarray:
        """The action (7,), within -1 and 1."""
        executed = np.array(action, dtype=float)
        executed[:6] = np.clip(executed[:6] + self._disturbance.next(calm=False), -1, 1)
        return executed
