"""One grasp planner for all objects: from above, over what fits between the fingers (rims, handles, boxes, cans)."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from apprentice.simulators.libero.demonstrator.controller import DOWN
from apprentice.simulators.libero.simulator.geometry import Geometry

# The Panda gripper (m), seen from the grip site: opening axis u, lateral axis v, height z.
TIP = 0.016  # finger tips below, with room for what they must not touch
LOWEST = 0.0095  # the fingers' lowest points below: they touch the table there
HAND = 0.030  # hull of the hand above
HAND_U, HAND_V = 0.106, 0.034  # half size of the hand's hull
PAD_V = 0.009  # half width of a finger pad
FINGER_V = 0.0135  # half width of a finger
HALF_OPENING = 0.040
FINGER_U = 0.018  # thickness of a finger
WIDEST = 0.074
PAD_BELOW, PAD_ABOVE = 0.008, 0.011  # the fingers' contact zone
PAD_END, PAD_TOP = 0.0048, 0.0120  # the pads' lower ends below, and their upper ends above
LEDGE, LEDGE_COST = 0.002, 0.3  # m: a pad whose end is so near to a ledge of the object may get stuck on it
OVERLAP = 0.003  # least height of an object between the pads that is still held
ROOM, ROOM_COST = 0.008, 100.0  # m up or down by which a grasp should be allowed to miss, and cost of a m less
YAW_COST = 0.6  # a rad: of two equal sides always take the same, or a policy cannot learn which
REACH = 0.74  # m from the robot's base: farther out the arm is straight, and sticks there
FAR_COST = 60.0  # a m
YAWS = np.deg2rad(np.arange(-60, 120, 10))  # the last joint's middle is at 45 degrees


@dataclass
class Grasp:
    position: np.ndarray  # (3,) of the grip site
    yaw: float  # rad, about the vertical, from home
    score: float  # less is better

    @property
    def rotation(self) -> np.ndarray:
        return about_z(self.yaw) @ DOWN


def about_z(angle: float) -> np.ndarray:
    return Rotation.from_euler("z", angle).as_matrix()


def yaw_along(direction: np.ndarray) -> float:
    """The yaw at which the fingers open along a horizontal direction (2 or 3,), away from the wrist's limits."""
    return reachable(-np.arctan2(direction[0], direction[1]))


def reachable(yaw: float) -> float:
    """The same yaw of a gripper with two equal sides in [-60, 120) degrees, as YAWS."""
    return float((yaw + np.pi / 3) % np.pi - np.pi / 3)


def wrapped(angle: float) -> float:
    """An angle to within half a turn, in [-90, 90) degrees: the gripper looks the same from both sides."""
    return float((angle + np.pi / 2) % np.pi - np.pi / 2)


def leaning(inward: np.ndarray, angle: float, yaw: float) -> np.ndarray:
    """A hand (3, 3) that points down at `yaw`, then leant by `angle` (rad) so that the fingers point `inward` (3,)."""
    axis = np.cross([0, 0, -1.0], inward / np.linalg.norm(inward))
    return Rotation.from_rotvec(angle * axis).as_matrix() @ about_z(yaw) @ DOWN


def plan_grasps(geometry: Geometry, name: str, move: np.ndarray | None = None, turn: float = 0.0) -> list[Grasp]:
    """Grasps of an object, the best first, that collide with nothing.

    `move` (3,) and `turn` (rad) say how the object will be moved afterwards: a hand that would collide there
    is avoided if possible.
    """
    target = geometry.points(name, 0.004)
    centre = (target.min(axis=0) + target.max(axis=0)) / 2
    around = _near(geometry.obstacles((name,), 0.008), centre)
    there = np.zeros((0, 3))
    if move is not None:
        there = _near(geometry.obstacles((name,), 0.008), centre + move) - move
        there = (there - centre) @ about_z(turn) + centre
    table = geometry.table_height()
    com, heights, base = geometry.centre_of_mass(name), _heights(target, table), geometry.base()
    upper, lower = geometry.ledges(name)
    ledges = np.concatenate([upper + PAD_END, lower - PAD_TOP])
    stuck = {z: LEDGE_COST * bool((np.abs(ledges - z) < LEDGE).any()) for z in heights}
    grasps = []
    for yaw in YAWS:
        frame = about_z(yaw) @ DOWN
        axes = np.column_stack([frame[:, 0], frame[:, 1], [0, 0, 1.0]])  # u, v, z
        slices = _Slices(table, *(_in_frame(points, centre, axes) for points in (target, around, there, com[None])))
        for (u, v, z), score in slices.candidates(heights):
            score += stuck[z]
            position = np.array([*centre[:2], 0]) + axes @ [u, v, z]
            far = max(0.0, float(np.linalg.norm((position - base)[:2])) - REACH)
            grasps.append(Grasp(position, float(yaw), score + YAW_COST * abs(wrapped(yaw)) + FAR_COST * far))
    return sorted(grasps, key=lambda grasp: grasp.score)


def differ(grasp: Grasp, others: Collection[Grasp]) -> bool:
    """Is this grasp unlike all the others?"""
    return all(np.linalg.norm(grasp.position - o.position) > 0.01 or abs(grasp.yaw - o.yaw) > 0.1 for o in others)


def _near(points: np.ndarray, centre: np.ndarray) -> np.ndarray:
    return points[np.linalg.norm((points - centre)[:, :2], axis=1) < 0.26]


def _in_frame(points: np.ndarray, centre: np.ndarray, axes: np.ndarray) -> np.ndarray:
    return (points - [centre[0], centre[1], 0.0]) @ axes


def _heights(target: np.ndarray, table: float) -> list[float]:
    """Heights of the grip site to try: down to 55 mm below the top, and above the table; the middle of a flat box."""
    lowest = max(table + LOWEST + 0.003, target[:, 2].min() + 0.004)
    top = target[:, 2].max()
    middle = (table + LOWEST + top + PAD_END - OVERLAP) / 2
    heights = [*np.arange(top - 0.010, max(top - 0.055, table + TIP + 0.002), -0.006), min(middle, top)]
    return sorted({max(float(z), lowest) for z in heights})


class _Slices:
    """The scene in the gripper's axes u, v, z for one yaw."""

    def __init__(self, table: float, target: np.ndarray, around: np.ndarray, there: np.ndarray, com: np.ndarray):
        self.target, self.there, self.com, self.table = target, there, com[0], table
        self.all = np.concatenate([target, around])
        self.is_target = np.arange(len(self.all)) < len(target)

    def candidates(self, heights: list[float]) -> Iterator[tuple[tuple[float, float, float], float]]:
        """Collision-free grasp positions (u, v, z) with their scores."""
        lateral = self.target[:, 1]
        steps = np.arange(lateral.min() + 0.004, lateral.max() - 0.003, 0.006)
        for v in np.unique(np.round([*steps, self.com[1], 0.0], 4)):
            strip = self.target[np.abs(lateral - v) < PAD_V]
            aside = np.abs(self.all[:, 1] - v)
            fingers, hand = aside < FINGER_V + 0.003, self.all[aside < HAND_V]
            near, is_target = self.all[fingers], self.is_target[fingers]
            for z in heights:
                band = strip[(strip[:, 2] > z - PAD_BELOW) & (strip[:, 2] < z + PAD_ABOVE)]
                segments = list(_segments(band[:, 0]))
                if not segments:
                    continue
                below = near[:, 2] > z - TIP - 0.001
                beside = near[below], is_target[below], hand[hand[:, 2] > z + HAND - 0.003, 0]
                for low, high in segments:
                    crowd = self._crowding(*beside, low, high, z)
                    if crowd is not None:
                        u = (low + high) / 2
                        part = _between(band, low, high)
                        score = self._score(part, u, v, z, high - low) + crowd
                        top = _between(strip, low, high)[:, 2].max()
                        yield (u, v, z), score + ROOM_COST * max(0.0, ROOM - self._room(near, hand, u, z, top))

    def _crowding(
        self, points: np.ndarray, is_target: np.ndarray, above: np.ndarray, low: float, high: float, z: float
    ) -> float | None:
        """A penalty for other parts of the object between the fingers, or None if anything is in the way.

        `points` (N, 3) are those that fingers could touch, `above` (M,) places along u of those that the hand could.
        """
        u = (low + high) / 2
        if (np.abs(above - u) < HAND_U).any():
            return None
        distance = np.abs(points[:, 0] - u)
        if ((distance > HALF_OPENING - 0.002) & (distance < HALF_OPENING + FINGER_U)).any():
            return None
        if (~is_target & (distance < HALF_OPENING + FINGER_U)).any():
            return None
        outside = (points[:, 0] < low - 0.004) | (points[:, 0] > high + 0.004)
        return 0.002 * float((outside & (points[:, 2] < z + PAD_ABOVE)).sum())

    def _room(self, near: np.ndarray, hand: np.ndarray, u: float, z: float, top: float) -> float:
        """How far (m) the hand may be too high or too low at a grasp: that of the two which is less.

        Too high: the pads pass the top of what they hold. Too low: a finger meets what is under it, or the hand does.
        """
        away = np.abs(near[:, 0] - u)
        under = near[(away > HALF_OPENING - 0.002) & (away < HALF_OPENING + FINGER_U), 2]
        under = under[under < z].max(initial=self.table)
        below = hand[np.abs(hand[:, 0] - u) < HAND_U, 2].max(initial=self.table)
        return float(min(top + PAD_END - OVERLAP - z, z - LOWEST - under, z + HAND - below))

    def _score(self, part: np.ndarray, u: float, v: float, z: float, width: float) -> float:
        """Slope and coverage of the contact, distance from the centre of mass, room where the object will go."""
        bins = np.round((part[:, 1] - v) / 0.004).astype(int)
        kinds = np.unique(bins)
        outer = np.array([part[bins == k, 0].max() for k in kinds])
        inner = np.array([part[bins == k, 0].min() for k in kinds])
        slope = np.ptp(outer) + np.ptp(inner)
        score = 200 * slope + 12 * np.hypot(u - self.com[0], v - self.com[1])
        score += 16 * max(0.0, abs(z - self.com[2]) - 0.01) + (6 * width if width > 0.055 else 0)
        score -= 0.5 * min(len(kinds) / 5, 1) + 0.6 * min(np.ptp(part[:, 2]) / (PAD_BELOW + PAD_ABOVE), 1)
        away, beside = np.abs(self.there[:, 0] - u), np.abs(self.there[:, 1] - v)
        above = self.there[:, 2] - z
        if ((above > HAND - 0.003) & (away < HAND_U) & (beside < HAND_V)).any():
            score += 5
        if ((above > -TIP) & (away < HALF_OPENING + FINGER_U + 0.004) & (beside < FINGER_V + 0.003)).any():
            score += 3
        return float(score)


def _between(points: np.ndarray, low: float, high: float) -> np.ndarray:
    return points[(points[:, 0] >= low - 1e-6) & (points[:, 0] <= high + 1e-6)]


def _segments(u: np.ndarray) -> Iterator[tuple[float, float]]:
    """Stretches of the object along the opening axis that fit between the fingers."""
    if len(u) < 4:
        return
    u = np.sort(u)
    breaks = np.flatnonzero(np.diff(u) > 0.009)
    for start, end in zip([0, *(breaks + 1)], [*breaks, len(u) - 1], strict=True):
        if u[end] - u[start] <= WIDEST:
            yield float(u[start]), float(u[end])
