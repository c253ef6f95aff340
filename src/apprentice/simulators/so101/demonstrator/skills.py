"""Solves the five tasks with the simulator's state, and names why if it cannot.

A grasp is planned with the hand as upright as reach allows: upright, the jaws rise to 8 cm only; leant by 20 degrees to
12. Leaning across the jaws would let them slip, so jaws are turned along the circle around the arm where possible.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from apprentice.simulators.base import Demonstration
from apprentice.simulators.so101.demonstrator.hand import Finished, Hand
from apprentice.simulators.so101.demonstrator.kinematics import azimuth, hand_axes, kinematics
from apprentice.simulators.so101.simulator.env import HOME, TwinEnv
from apprentice.simulators.so101.simulator.faults import SIZED
from apprentice.simulators.so101.simulator.layout import RADIUS
from apprentice.simulators.so101.simulator.scene import (
    BLOCK_HALF,
    CABINET_ANGLE,
    CABINET_FRONT,
    CABINET_HALF,
    CUP_HEIGHT,
    CUP_RADIUS,
    OBJECTS,
    SPONGE_HALF,
    polar,
)
from apprentice.simulators.so101.suites import BLOCKS, CARRIED, CUPS, DRAWER, SPONGE
from apprentice.simulators.so101.units import CLOSED, OPEN

FIXED_JAW = 0.0195  # m: the fixed jaw's face, from between the tips
TILTS = np.deg2rad([0, 8, 16, 24, 32, 40])
REACHED, HOPELESS = 2.5e-3, 0.02  # m of error, with 2 cm a rad
LIFTED = 0.4  # of the lift: less, and the grasp has missed
SLIPPED = 0.005  # m: an object that has moved so far is grasped anew
ATTEMPTS, LOOKS = 3, 4
RETREAT = 0.05  # m
ANEW = 0.3  # rad: a grasp that missed is not tried again as it was
CORRECTIONS, BROUGHT, LARGEST_AIM, HOVER = 3, 0.0025, 0.02, 0.008  # m
JAW_ROOM = 0.010  # m that jaws need beside what they hold
MISSED, NOT_DONE, TOO_LONG = "cannot grasp", "goal not reached", "too many steps"


@dataclass(frozen=True)
class Grip:
    """How a kind of object is held: its width (m), how high it is lifted (m), the gripper open and closed (0 to 100),
    and how far the open fixed jaw keeps from it (m)."""

    width: float
    lift: float
    opened: float
    closed: float
    clear: float


GRIPS = {
    "cup_red": Grip(0.0024, 0.064, 35, 0, 0.008),
    "block_red": Grip(2 * BLOCK_HALF, 0.060, 45, 2, 0.006),
    "sponge": Grip(2 * SPONGE_HALF[1], 0.062, 50, 2, 0.006),
}
PUSHES, SHUT, FURTHER = 5, 0.004, 0.004  # m
UNDER_RIM, NESTING, STACKING, ON_PLATE = 0.012, 0.019, 0.0015, 0.008  # m


def up(height: float) -> np.ndarray:
    """A way (3,) m straight up."""
    return np.array([0.0, 0.0, height])


def apart(one: float, other: float) -> float:
    """The angle (rad) between two directions."""
    return float(abs((one - other + np.pi) % (2 * np.pi) - np.pi))


def solve(env: TwinEnv, seed: int, joints: np.ndarray) -> Demonstration:
    """Solve the task from where things are, after joints (6,) rad were commanded."""
    rng = np.random.default_rng([seed, 3])
    hand = Hand(env, joints, speed=rng.uniform(0.9, 1.15))
    script: _Close | _Place = _Close(hand, rng) if env.task == DRAWER else _Place(hand, env.task)
    failure = None
    with suppress(Finished):
        failure = script.act()
    record = hand.record
    if failure is None and not (record.successes and record.successes[-1]):
        failure = TOO_LONG if len(record.actions) >= env.max_steps else NOT_DONE
    return Demonstration(record, failure, retries=script.retries)


class _Close:
    """Pushes the drawer shut with closed jaws."""

    retries = 0

    def __init__(self, hand: Hand, rng: np.random.Generator):
        self._hand, self._side = hand, rng.uniform(-0.012, 0.012)

    def act(self) -> str | None:
        hand, data = self._hand, self._hand.env.data
        out = np.array([np.cos(CABINET_ANGLE), np.sin(CABINET_ANGLE), 0.0])
        across = np.array([-out[1], out[0], 0.0])
        shut = np.append(polar(CABINET_FRONT, CABINET_ANGLE), 1.1 * CABINET_HALF[2]) + self._side * across
        opened = float(data.joint("drawer").qpos[0])
        handle, tip = 0.018, 0.010  # m that the handle stands out; half of what the jaws are thick
        start = shut - (opened + handle + tip + 0.02) * out
        end = shut - (handle + tip - 0.014) * out
        hand.go(HOME[:5], grip=CLOSED)
        yaw = CABINET_ANGLE + np.pi / 2
        high = start + up(0.05)
        tilt, yaw = plan(hand.joints, [start, high, end], [yaw, yaw - np.pi], 0.012)
        axes = hand_axes(start, tilt, yaw)
        hand.reach(high, axes, 0.012)
        hand.slide(start, axes, 0.012)
        for _ in range(PUSHES):  # servos that give way stop short of it
            hand.slide(end, axes, 0.012)
            hand.wait(5)
            left = float(data.joint("drawer").qpos[0])
            if left < SHUT:
                break
            end = end + (left + FURTHER) * out
        hand.slide(end - 0.03 * out, axes, 0.012)
        hand.go(HOME[:5])
        hand.wait(8)
        return None


class _Place:
    """Picks an object up and puts it where it belongs."""

    def __init__(self, hand: Hand, task: int):
        self._hand, self._env, self._task, self.retries = hand, hand.env, task, 0
        self._name = CARRIED[task]
        self._tried: list[float] = []  # rad, yaws of the grasps before
        self._grip = GRIPS[self._name]
        self._scale = self._env.faults.size[SIZED.index("cups" if task == CUPS else self._name)]
        self._offset = FIXED_JAW - self._grip.width * self._scale / 2

    def act(self) -> str | None:
        hand, grip = self._hand, self._grip
        hand.go(HOME[:5], grip=CLOSED + (OPEN - CLOSED) * grip.opened / 100)
        failure = MISSED
        for attempt in range(ATTEMPTS):
            if attempt:
                self.retries += 1
                hand.grip(grip.opened, 8)
                self._rise()
                hand.go(HOME[:5])
            tilt, yaw = self._approach()
            self._tried.append(yaw)
            failure = MISSED
            if self._lift(tilt, yaw):
                self._put(tilt, yaw)
                failure = NOT_DONE  # else `Finished` would have been raised
        return failure

    def _approach(self) -> tuple[float, float]:
        """Over the object, again if it moves meanwhile, and down to it; returns the hand's lean and yaw."""
        hand, grip, offset = self._hand, self._grip, self._offset - self._grip.clear
        high = up(min(grip.lift, 0.05))
        for _ in range(LOOKS):
            seen = self._position()
            yaws = [yaw for yaw in self._yaws() if not any(apart(yaw, other) < ANEW for other in self._tried)]
            points = [lambda yaw: self._held(yaw), lambda yaw: self._held(yaw) + up(grip.lift)]
            points += [lambda yaw: self._goal(yaw) + up(grip.lift), self._goal]
            tilt, yaw = plan(hand.joints, points, yaws or self._yaws(), self._offset, blocked=self._blocked, turning=2)
            point = self._held(yaw)
            axes = hand_axes(point, tilt, yaw)
            hand.reach(point + high, axes, offset)
            fix = hand.settle(point + high, axes, offset)
            if np.linalg.norm(self._position() - seen) < SLIPPED:
                break
        hand.slide(point + fix, axes, offset)
        hand.settle(point, axes, offset, rounds=1)
        return tilt, yaw

    def _lift(self, tilt: float, yaw: float) -> bool:
        hand, grip = self._hand, self._grip
        point = self._held(yaw)
        before = self._position()[2]
        hand.grip(grip.closed, 20)
        hand.wait(6)
        hand.slide(point + up(grip.lift), hand_axes(point, tilt, yaw), self._offset)
        return bool(self._position()[2] > before + LIFTED * grip.lift)

    def _put(self, tilt: float, yaw: float) -> None:
        hand, grip, offset = self._hand, self._grip, self._offset
        goal, turned = self._goal(yaw), yaw + self._turn()
        axes, high = hand_axes(goal, tilt, turned), up(grip.lift)
        hand.reach(goal + high, axes, offset)
        aim = self._brought(goal + high, axes, grip.lift) - high + up(HOVER)
        hand.slide(aim, axes, offset)
        hand.slide(self._brought(aim, axes, HOVER) - up(HOVER), axes, offset)
        hand.wait(6)
        hand.grip(grip.opened, 12)
        hand.wait(3)
        self._rise()
        hand.go(HOME[:5])
        hand.wait(12)

    def _rise(self) -> None:
        """Back along the jaws."""
        place, axes = kinematics().forward(self._hand.joints)
        self._hand.slide(place - RETREAT * axes[:, 2], axes, 0.0)

    def _brought(self, aim: np.ndarray, axes: np.ndarray, above: float) -> np.ndarray:
        """Move until the object is `above` its goal (m), whatever droop and slip have left; returns the hand's aim."""
        for _ in range(CORRECTIONS):
            self._hand.wait(7)
            error = self._target() + up(above) - self._position()
            if np.linalg.norm(error) < BROUGHT:
                break
            aim = aim + np.clip(error, -LARGEST_AIM, LARGEST_AIM)
            self._hand.slide(aim, axes, self._offset)
        return aim

    def _position(self) -> np.ndarray:
        return self._env.data.body(self._name).xpos.copy()

    def _yaw_of(self, name: str) -> float:
        turn = self._env.data.body(name).xmat.reshape(3, 3)
        return float(np.arctan2(turn[1, 0], turn[0, 0]))

    def _yaws(self) -> list[float]:
        """Yaws of the fixed jaw, those first that are nearest to the circle around the arm."""
        around, along = azimuth(self._position()), self._yaw_of(self._name)
        if self._task == CUPS:
            return [around + np.pi / 2 + turn for turn in (0, -0.5, 0.5, -1.0, 1.0, np.pi, np.pi - 0.6, np.pi + 0.6)]
        quarter = np.pi if self._task == SPONGE else np.pi / 2
        yaws = [along + np.pi / 2 + quarter * number for number in range(round(2 * np.pi / quarter))]
        return sorted(yaws, key=lambda yaw: apart(yaw, around + np.pi / 2))

    def _held(self, yaw: float) -> np.ndarray:
        """Where (3,) m the object is held: its middle, or a cup's wall under the rim."""
        return self._position() + self._out(yaw)

    def _out(self, yaw: float) -> np.ndarray:
        """From the object's middle to where it is held (3,) m."""
        if self._task != CUPS:
            return np.zeros(3)
        radius = self._scale * (CUP_RADIUS - 0.002)
        return np.array([radius * np.cos(yaw), radius * np.sin(yaw), self._scale * CUP_HEIGHT - UNDER_RIM])

    def _goal(self, yaw: float) -> np.ndarray:
        """Where (3,) m the held point has to go."""
        return self._target() + self._out(yaw + self._turn())

    def _turn(self) -> float:
        """By how much (rad) the hand turns with the arm on the way to the goal."""
        return azimuth(self._target()) - azimuth(self._position())

    def _target(self) -> np.ndarray:
        """Where (3,) m the object's middle has to go."""
        data, goals = self._env.data, self._env.goals
        if self._task == CUPS:
            return data.body("cup_blue").xpos + up(NESTING * self._scale)
        if self._task == BLOCKS:
            stacked = goals.half_height("block_green") + goals.half_height("block_red") + STACKING
            return data.body("block_green").xpos + up(stacked)
        plate = data.body("plate").xpos
        return np.array([plate[0], plate[1], goals.half_height(self._name) + ON_PLATE * 0.5])

    def _blocked(self, yaw: float) -> bool:
        """Does a jaw hit another object beside the one that it grasps?"""
        place, way = self._held(yaw)[:2], np.array([np.cos(yaw), np.sin(yaw)])
        half = FIXED_JAW - self._offset
        gap = 0.075 * np.deg2rad(110 * self._grip.opened / 100 - 10) - 2 * half - self._grip.clear
        spots = [place + way * (half + 0.010), place - way * (half + gap + 0.008)]
        data = self._env.data
        return any(
            np.linalg.norm(spot - data.body(other).xpos[:2]) < RADIUS[other] + JAW_ROOM
            for spot in (spots[:1] if self._task == CUPS else spots)
            for other in OBJECTS
            if other != self._name
        )


def plan(
    joints: np.ndarray,
    points: list,
    yaws: list[float],
    offset: float,
    blocked: Callable[[float], bool] = lambda yaw: False,
    turning: int = 0,
) -> tuple[float, float]:
    """The least lean, and the yaw, at which the hand reaches all points; the last `turning` as the arm turns it."""
    best = (np.inf, 0.0, yaws[0])
    for rank, yaw in enumerate(yaws):
        placed = [point(yaw) if callable(point) else point for point in points]
        first, hit = azimuth(placed[0]), blocked(yaw)
        for tilt in TILTS:
            start, worst = joints, 0.0
            for number, point in enumerate(placed):
                turn = azimuth(point) - first if number >= len(placed) - turning else 0.0
                axes = hand_axes(point, tilt, yaw + turn)
                start, error, turned = kinematics().inverse(point, axes, start, offset)
                worst = max(worst, error + 0.02 * turned)
                if worst > HOPELESS:
                    break
            leaning = 1e-3 * tilt * (0.2 + abs(np.cos(yaw - first)))
            cost = max(worst, REACHED) + leaning + 1e-4 * rank + 3e-3 * hit
            if cost < best[0]:
                best = (cost, float(tilt), yaw)
            if worst < REACHED:
                break
    return best[1], best[2]
