"""Why an episode failed, told from the simulator's own state; the kinds are named as LIBERO's are.

A *thing* is an object or the drawer. It was

- reached once the point between the jaws' tips came within REACH of its middle, or the arm touched it;
- held while both jaws touched it;
- moved once it was held LIFT above where it stood; the drawer, once it was touched and moved by PUSHED.

If the goal does not hold in the end, the first line that is true names the kind:

    timed out             at the end it still held the thing, or was still pushing the drawer
    dropped               the thing had been lifted, and fell by more than FALL after it was last held
    left elsewhere        the thing had been moved, and was left where the goal does not hold
    wrong object          what should be moved was not, but another thing was
    timed out             it had first reached the thing less than RECENT steps before the end
    missed the grasp      the thing was reached, and never moved
    never reached         nor that
"""

from typing import TYPE_CHECKING

import numpy as np

from apprentice.simulators.failures import DROPPED, ELSEWHERE, MISSED, NEVER_REACHED, TIMED_OUT, WRONG_OBJECT
from apprentice.simulators.so101.suites import CARRIED

if TYPE_CHECKING:
    from apprentice.simulators.so101.simulator.env import TwinEnv

MEANINGS = {
    NEVER_REACHED: "The hand never came within 5 cm of what had to be moved, and did not touch it.",
    MISSED: "The hand got there, but never lifted the object, or never moved the drawer.",
    DROPPED: "The object was lifted, and fell by more than 3 cm before it was where it belongs.",
    ELSEWHERE: "It was moved and left where the goal does not hold: set down beside its place, a drawer half open.",
    WRONG_OBJECT: "Another thing was lifted or moved, and not what should be.",
    TIMED_OUT: "The steps ran out while it was in the hand or being moved, or within 2 s of getting there.",
}
REACH, LIFT, PUSHED, FALL = 0.05, 0.02, 0.01, 0.03  # m
RECENT, BUSY = 60, 15  # steps of 1/30 s
DRAWER = "drawer"
THINGS = (DRAWER, "cup_red", "cup_blue", "block_red", "block_green", "sponge")
FIXED, MOVING = ("gripper",), ("moving_jaw_so101_v1",)


class FailureObserver:
    """Watches one episode of a task: made after the reset, it observes every step, and names the kind at the end."""

    def __init__(self, env: "TwinEnv", task: int):
        self._env, self._wanted = env, CARRIED.get(task, DRAWER)
        self._step = 0
        self._start = self._places()
        self._moved: set[str] = set()
        self._last_held, self._last_touched = dict.fromkeys(THINGS, -BUSY), dict.fromkeys(THINGS, -BUSY)
        self._held_at = dict.fromkeys(THINGS, -np.inf)  # m, how high a thing was when it was last held
        self._reached = -1

    def observe(self, action: np.ndarray) -> None:
        """Take in what the last step did, with its action (6,)."""
        self._step += 1
        goals, data = self._env.goals, self._env.data
        for name, place in self._places().items():
            touched = goals.touched(data, name)
            held = touched and all(goals.touched(data, name, jaw) for jaw in (FIXED, MOVING))
            if touched:
                self._last_touched[name] = self._step
            if held:
                self._last_held[name], self._held_at[name] = self._step, place[2]
            if name == DRAWER:
                moved = touched and abs(place[0] - self._start[name][0]) > PUSHED
            else:
                moved = held and place[2] - self._start[name][2] > LIFT
            if moved:
                self._moved.add(name)
            near = name != DRAWER and np.linalg.norm(goals.tips(data) - place) < REACH
            if name == self._wanted and self._reached < 0 and (touched or near):
                self._reached = self._step

    def kind(self) -> str:
        """The kind of failure, one of MEANINGS."""
        wanted = self._wanted
        if self._step - (self._last_touched if wanted == DRAWER else self._last_held)[wanted] < BUSY:
            return TIMED_OUT
        if wanted in self._moved:
            fell = wanted != DRAWER and self._held_at[wanted] - self._places()[wanted][2] > FALL
            return DROPPED if fell else ELSEWHERE
        if self._moved:
            return WRONG_OBJECT
        if self._reached < 0:
            return NEVER_REACHED
        return TIMED_OUT if self._step - self._reached < RECENT else MISSED

    def _places(self) -> dict[str, np.ndarray]:
        """Where (3,) m each object is; of the drawer, how far it is open."""
        data = self._env.data
        drawer = np.array([data.joint(DRAWER).qpos[0], 0, 0])
        return {name: drawer if name == DRAWER else data.body(name).xpos.copy() for name in THINGS}
