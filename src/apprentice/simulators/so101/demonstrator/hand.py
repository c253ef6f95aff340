"""Moves the arm as the demonstrator wants, through the policy's own actions; keeps a record of every step."""

import numpy as np

from apprentice.simulators.base import Record
from apprentice.simulators.so101.demonstrator.kinematics import kinematics
from apprentice.simulators.so101.simulator.env import TwinEnv
from apprentice.simulators.so101.suites import FPS
from apprentice.simulators.so101.units import CLOSED, OPEN, to_radians

FASTEST = np.deg2rad([90, 90, 90, 110, 150])  # rad/s; a servo without load does 276 degrees/s
FASTEST_GRIP = 4.0  # rad/s
PEAK = 1.6  # of a minimum-jerk motion's speed, over its mean, with a little to spare
STRAIGHT = 0.12  # m/s along a line
CLOSE_ENOUGH, LARGEST_FIX = 0.0015, 0.015  # m
HELD = 5  # steps that the goal must hold before the demonstration ends


class Finished(Exception):
    """The demonstration has ended: the goal holds, or the steps have run out."""


class Hand:
    """`joints` are what was commanded last (6,) rad."""

    def __init__(self, env: TwinEnv, joints: np.ndarray, speed: float):
        self.env, self.joints, self._speed = env, joints.copy(), speed
        self.record, self._kin, self._held = Record(), kinematics(), 0

    @property
    def tips(self) -> np.ndarray:
        """Where (3,) m the point between the jaws' tips is in truth."""
        return self.env.goals.tips(self.env.data)

    def held_point(self, offset: float) -> np.ndarray:
        """Where (3,) m the point is that lies `offset` m from there towards the fixed jaw."""
        site = self.env.data.site("gripperframe")
        return site.xpos + offset * site.xmat.reshape(3, 3)[:, 0]

    def step(self) -> None:
        """Command `joints` for a frame. Raises Finished."""
        env, record = self.env, self.record
        if len(record.actions) >= env.max_steps:
            raise Finished
        action = env.to_action(self.joints).astype(np.float32)
        self.joints = to_radians(action.astype(float)) + env.faults.joints
        record.snapshots.append(env.snapshot())
        record.actions.append(action)
        record.executed.append(action)
        record.successes.append(env.step(action))
        self._held = self._held + 1 if record.successes[-1] else 0
        if self._held >= HELD:
            raise Finished

    def wait(self, frames: int) -> None:
        for _ in range(frames):
            self.step()

    def go(self, joints: np.ndarray, grip: float | None = None) -> None:
        """To joints (5,) rad, at limited speed and without a jerk; the gripper to rad, if given."""
        start, goal = self.joints.copy(), np.append(joints[:5], self.joints[5] if grip is None else grip)
        longest = np.max(np.abs(goal - start)[:5] / (FASTEST * self._speed)) * PEAK
        seconds = max(longest, abs(goal[5] - start[5]) / FASTEST_GRIP, 1 / FPS)
        frames = int(np.ceil(seconds * FPS))
        for frame in range(1, frames + 1):
            s = frame / frames
            self.joints = start + (10 * s**3 - 15 * s**4 + 6 * s**5) * (goal - start)
            self.step()

    def reach(self, point: np.ndarray, axes: np.ndarray, offset: float) -> None:
        """To where the held point is at `point`, whatever the way."""
        self.go(self._kin.inverse(point, axes, self.joints, offset)[0])

    def slide(self, point: np.ndarray, axes: np.ndarray, offset: float) -> None:
        """To where the held point is at `point`, along a line."""
        place, now = self._kin.forward(self.joints)
        start = place + offset * now[:, 0]
        frames = max(2, int(np.ceil(np.linalg.norm(point - start) / (STRAIGHT * self._speed) * FPS)))
        for frame in range(1, frames + 1):
            along = start + (point - start) * frame / frames
            joints = self._kin.inverse(along, axes, self.joints, offset, rounds=15)[0]
            self.joints[:5] += np.clip(joints - self.joints[:5], -FASTEST / FPS, FASTEST / FPS)
            self.step()

    def settle(self, point: np.ndarray, axes: np.ndarray, offset: float, rounds: int = 2) -> np.ndarray:
        """Correct what droop and play of the servos leave; returns by how much (3,) m the aim had to differ."""
        aim = point.copy()
        for _ in range(rounds):
            self.wait(9)
            error = point - self.held_point(offset)
            if np.linalg.norm(error) < CLOSE_ENOUGH:
                break
            aim = aim + np.clip(error, -LARGEST_FIX, LARGEST_FIX)
            self.reach(aim, axes, offset)
        return aim - point

    def grip(self, percent: float, frames: int) -> None:
        """Open or close to 0 to 100, evenly."""
        start, goal = self.joints[5], CLOSED + (OPEN - CLOSED) * percent / 100
        for frame in range(1, frames + 1):
            self.joints[5] = start + (goal - start) * frame / frames
            self.step()
