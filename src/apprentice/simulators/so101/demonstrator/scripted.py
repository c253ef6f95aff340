"""The scripted demonstrator behind the interface of `simulators.base`, and when it can take over from a policy.

It takes over where nothing is held: it opens the hand and grasps anew, so a state in which the jaws are about a thing
would be labelled otherwise than in whole demonstrations.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from apprentice.simulators.base import Demonstration
from apprentice.simulators.so101.demonstrator.skills import solve
from apprentice.simulators.so101.simulator.env import START_NOISE, TwinEnv, TwinState
from apprentice.simulators.so101.simulator.scene import OBJECTS
from apprentice.simulators.so101.suites import CARRIED
from apprentice.simulators.so101.units import NAMES, to_radians

NOISE = 10.0  # degrees, or hundredths of the gripper's way, that a disturbance of 1 stands for
SLOW = 0.8  # of a disturbance is left in the next step
NEAR = 0.05  # m: closer, the jaws may be about an object


class Scripted:
    """`simulators.base.Demonstrator` for the twin."""

    start_noise = START_NOISE  # degrees
    robot_type = "so101_follower"
    state_names: Sequence[str] = NAMES
    action_names: Sequence[str] = NAMES

    def begin(self, env: TwinEnv, seed: int) -> None:
        env.reset(seed)

    def demonstrate(self, env: TwinEnv, seed: int) -> Demonstration:
        env.reset(seed)
        return solve(env, seed, env.start)

    def take_over(self, env: TwinEnv, seed: int, action: np.ndarray) -> Demonstration:
        return solve(env, seed, to_radians(np.asarray(action, dtype=float)) + env.faults.joints)

    def watch(self, env: TwinEnv) -> "Jaws":
        return Jaws(env)

    def noise(self, deviation: float, rng: np.random.Generator) -> "JointNoise":
        return JointNoise(deviation, rng)

    def state(self, arrays: Mapping[str, np.ndarray]) -> TwinState:
        return TwinState(**arrays)


class Jaws:
    """Watches what a policy's jaws do: `observe` after every step."""

    def __init__(self, env: TwinEnv):
        self._env = env
        self._wanted = CARRIED.get(env.task)
        self._step = 0
        self.usable, self.holding = True, False
        self.mistake: int | None = None  # the step from which on nothing is usable: a wrong object was lifted

    def observe(self, action: np.ndarray) -> None:
        """Take in what the last step did, with its action (6,)."""
        self._step += 1
        goals, data = self._env.goals, self._env.data
        touched = [name for name in OBJECTS if goals.touched(data, name)]
        near = [name for name in OBJECTS if np.linalg.norm(goals.tips(data) - data.body(name).xpos) < NEAR]
        self.usable = not touched and not near
        if any(name != self._wanted and data.body(name).xpos[2] > NEAR for name in touched):
            self.mistake = self._step


class JointNoise:
    """Disturbs joints, in stretches."""

    def __init__(self, deviation: float, rng: np.random.Generator):
        self._deviation, self._rng = NOISE * deviation, rng
        self._now: np.ndarray = np.zeros(5)

    def disturbed(self, action: np.ndarray) -> np.ndarray:
        """The action (6,) that is executed; the gripper's is left alone."""
        fresh = self._rng.normal(0, self._deviation * np.sqrt(1 - SLOW**2), 5)
        self._now = SLOW * self._now + fresh
        executed = np.array(action, dtype=float)
        executed[:5] += self._now
        return executed
