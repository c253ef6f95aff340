"""Moves the hand to poses through the policy's own action interface, and records what it does."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from scipy.spatial.transform import Rotation

from apprentice.simulators.base import Record
from apprentice.simulators.libero.simulator.env import LiberoEnv

# What a full action asks of robosuite's OSC_POSE controller in one step.
FULL_STEP, FULL_TURN = 0.05, 0.5  # m, rad
SLEW = 0.4  # most that a component of the arm's action may change in a step
DOWN = np.array([[0, 1, 0], [1, 0, 0], [0, 0, -1.0]])  # home: the fingers open along the world's y, and point down
UP = np.array([0, 0, 1.0])
CLOSE, OPEN = 1.0, -1.0
TRACKING = 1.8  # gain on the error
STOPPED = 0.0006  # m a step: fingers that close more slowly have met something
OFF, WIDE = 0.010, 0.075  # m between the fingers: more than around an object, and as good as open
EXACT, CALM_WITHIN = 0.010, 0.05  # m: a move this exact is not disturbed on its last stretch
FOLLOWED = 0.28  # part of what a steady action asks for that the hand moves in a step
SLOW = 0.002 / (FOLLOWED * FULL_STEP)  # action that moves the hand by 2 mm a step
QUICKER = 20.0  # a m: by how much an action may be larger, the farther the hand is from where it must be slow


class Failure(Exception):
    """The demonstration cannot go on."""


@dataclass
class Style:
    """What makes one demonstration differ from the next."""

    speed: float = 1.0  # largest component of an arm action
    noise: float = 0.0  # standard deviation of what disturbs the arm's actions, in stretches
    approach: np.ndarray = field(default_factory=lambda: np.zeros(3))  # m, offset of way points in free space


class Controller:
    """A proportional controller on the hand's pose: position (3,) in metres and rotation (3, 3), world frame."""

    def __init__(self, env: LiberoEnv, style: Style, rng: np.random.Generator, max_steps: int):
        self.env, self.style, self.max_steps = env, style, max_steps
        self.record = Record()
        self._site = env.model.site("gripper0_grip_site").id
        self._disturbance = Disturbance(style.noise, rng)
        self.gripper, self.retries = OPEN, 0
        self._last: np.ndarray = np.zeros(6)

    def take_over(self, action: np.ndarray) -> None:
        """Go on after another's action (7,), without a jump."""
        self._last, self.gripper = np.clip(action[:6], -1, 1).astype(float), CLOSE if action[6] > 0 else OPEN

    def vary(self, waypoint: np.ndarray) -> np.ndarray:
        """A way point (3,) in free space, moved aside or up as the style wants it."""
        return waypoint + self.style.approach * [1, 1, 0] + np.abs(self.style.approach) * [0, 0, 1]

    @property
    def position(self) -> np.ndarray:
        return self.env.data.site_xpos[self._site].copy()

    @property
    def rotation(self) -> np.ndarray:
        return self.env.data.site_xmat[self._site].reshape(3, 3).copy()

    @property
    def opening(self) -> float:
        """Distance between the fingers (m)."""
        left, right = self.env.proprioception()[6:]
        return float(left - right)

    def step(self, arm: np.ndarray, calm: bool = False, disturbed: float = 1.0) -> None:
        """Execute an arm action (6,) with the present gripper command. Raises Failure when out of steps.

        `disturbed` is the part of the style's noise that is added; none to a `calm` step.
        """
        if len(self.record.actions) >= self.max_steps:
            raise Failure("out of steps")
        arm = self._last = self._last + np.clip(arm - self._last, -SLEW, SLEW)
        action = np.array([*arm, self.gripper], dtype=np.float32)
        executed = action.copy()
        executed[:6] = np.clip(arm + disturbed * self._disturbance.next(calm), -1, 1)
        self.record.snapshots.append(self.env.snapshot())
        self.record.actions.append(action)
        self.record.executed.append(executed)
        self.record.successes.append(self.env.step(executed))

    def towards(self, position: np.ndarray, rotation: np.ndarray, gain: float, speed: float) -> np.ndarray:
        """The arm action (6,) that heads for a pose; each half is clipped by its largest component."""
        limit = speed * self.style.speed
        move = (position - self.position) * gain / FULL_STEP
        turn = self._turn_to(rotation) * gain / FULL_TURN
        return np.concatenate([half * min(1.0, limit / max(np.abs(half).max(), 1e-9)) for half in (move, turn)])

    def _turn_to(self, rotation: np.ndarray) -> np.ndarray:
        return Rotation.from_matrix(rotation @ self.rotation.T).as_rotvec()

    def go(
        self,
        target: np.ndarray | Callable[[], np.ndarray],
        rotation: np.ndarray,
        *,
        near: float,
        turned: float = 3.0,
        steps: int = 80,
        gain: float = TRACKING,
        speed: float | Callable[[], float] = 1.0,
        until: Callable[[], bool] = lambda: False,
        calm: bool = False,
        calm_within: float = CALM_WITHIN,
    ) -> None:
        """Go to a pose, which may move, within `near` (m) and `turned` (rad); give up when nothing changes any more.

        A `calm` move is not disturbed, nor is the last stretch of an exact one, `calm_within` m: it ends at an object.
        Where a `speed` that is a function makes the hand slow, it is disturbed as much less.
        """
        before = float("inf")
        for count in range(steps):
            position = target() if callable(target) else target
            gap, twist = float(np.linalg.norm(position - self.position)), float(np.linalg.norm(self._turn_to(rotation)))
            if (gap < near and twist < turned) or until():
                return
            quiet = calm or (near <= EXACT and gap < calm_within)
            if count > 15 and count % 10 == 0 and (quiet or not self._disturbance.astray):
                if before - (gap + 0.1 * twist) < 0.002:
                    return
                before = gap + 0.1 * twist
            limit = speed() if callable(speed) else speed
            self.step(self.towards(position, rotation, gain, limit), quiet, limit if callable(speed) else 1.0)

    def guide(self, position: np.ndarray, rotation: np.ndarray, gain: float = 2.5, speed: float = 1.0) -> None:
        """One undisturbed step towards a pose, with something in contact that is pulled or pushed along."""
        self.step(self.towards(position, rotation, gain, speed), calm=True)

    def slow_within(self, distance: float, place: np.ndarray) -> Callable[[], float]:
        """A speed for `go`: 2 mm a step within `distance` (m) of a place (3,) whatever the style, faster outside."""

        def speed() -> float:
            outside = max(0.0, float(np.linalg.norm(self.position - place)) - distance)
            return min(1.0, (SLOW + QUICKER * outside) / self.style.speed)

        return speed

    def stay(self, steps: int) -> None:
        position, rotation = self.position, self.rotation
        for _ in range(steps):
            self.guide(position, rotation, TRACKING)

    def close(self, position: np.ndarray, rotation: np.ndarray, steps: int = 14) -> None:
        """Close the fingers at a pose until they stop.

        It returns at the first step at which they stand: a policy that sees only the present must find no frame where
        the hand waits with closed fingers.
        """
        self.gripper = CLOSE
        before = self.opening
        for count in range(steps):
            self.guide(position, rotation, TRACKING)
            if count > 1 and abs(self.opening - before) < STOPPED:
                return
            before = self.opening

    def open(self, position: np.ndarray, rotation: np.ndarray, steps: int = 7) -> None:
        """Open the fingers at a pose until they are off what they held: full travel takes 8 steps."""
        self.gripper = OPEN
        before = self.opening
        for count in range(2 * steps):
            self.guide(position, rotation, TRACKING)
            if count + 1 >= steps and self.opening > min(before + OFF, WIDE):
                return

    def release(self, way: np.ndarray) -> None:
        """Open the fingers and leave along `way` (3,) m."""
        position, rotation = self.position, self.rotation
        self.open(position, rotation)
        self.go(position + way, rotation, near=0.02, steps=25, calm=True)


class Disturbance:
    """Noise that leads the arm astray for a while and then leaves it alone: the labels then show how to recover."""

    MEMORY = 0.8  # correlation of one step with the next
    STRETCH, PAUSE = (8, 25), (10, 40)  # steps

    def __init__(self, sigma: float, rng: np.random.Generator):
        self._sigma, self._rng = sigma, rng
        self._left, self._active = int(rng.integers(*self.PAUSE)) // 2, False
        self._value = np.zeros(6)

    @property
    def astray(self) -> bool:
        return self._active and self._sigma > 0

    def next(self, calm: bool) -> np.ndarray:
        """The noise (6,) of this step; none while fingers move or touch (`calm`)."""
        self._left -= 1
        if self._left < 0:
            self._active = not self._active
            self._left = int(self._rng.integers(*(self.STRETCH if self._active else self.PAUSE)))
            self._value = np.zeros(6)
        fresh = self._rng.normal(0, self._sigma, 6)
        self._value = self.MEMORY * self._value + np.sqrt(1 - self.MEMORY**2) * fresh
        return self._value if self._active and not calm else np.zeros(6)
