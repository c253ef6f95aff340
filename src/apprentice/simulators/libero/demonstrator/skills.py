"""What the demonstrator can do with an object in its hand: pick, place, let go."""

from collections.abc import Callable

import numpy as np
from scipy.spatial.transform import Rotation

from apprentice.simulators.libero.demonstrator.controller import OPEN, UP, Controller, Failure
from apprentice.simulators.libero.demonstrator.grasping import (
    HAND,
    HAND_U,
    HAND_V,
    Grasp,
    about_z,
    differ,
    plan_grasps,
    reachable,
    wrapped,
)
from apprentice.simulators.libero.demonstrator.placements import Spot
from apprentice.simulators.libero.demonstrator.resuming import comes_down_on, is_over, present_grasp
from apprentice.simulators.libero.simulator.geometry import Geometry

LAST, FIRST = 0.038, 0.008  # m: slow before a grasp (the hand needs some way to slow down), and after it
THERE, STILL = 0.003, 0.0008  # m from a grasp, and m a step: the hand stands, and the fingers may close
CALM = 0.010  # m: nearer to a grasp nothing disturbs the hand
RIM = 0.05  # m above the place in a basket: what touches there is not its floor


def pick(
    hand: Controller,
    geometry: Geometry,
    name: str,
    move: np.ndarray | None = None,
    turn: float = 0.0,
    *,
    yaw: float | None = None,
    low: float = 0.0,
) -> Grasp:
    """Grasp an object and lift it by 5 cm. Raises Failure after three tries.

    `move` and `turn` say where the object will go; `yaw` (rad) is how the hand must stand, and `low` (m) the least
    height at which it may hold the object.
    """
    if (present := present_grasp(hand, geometry, name, yaw, low)) is not None:
        return present
    tried: list[Grasp] = []
    for _ in range(3):
        grasps = [g for g in plan_grasps(geometry, name, move, turn) if g.position[2] > low]
        if yaw is not None:
            grasps = [g for g in grasps if abs(wrapped(g.yaw - yaw)) < 0.1]
        if not grasps:
            raise Failure(f"no grasp of {name}")
        grasp = next((g for g in grasps if differ(g, tried)), grasps[0])
        height = geometry.position(name)[2]
        _approach(hand, geometry, name, grasp)
        take(hand, grasp.position, grasp.rotation)
        lift_off(hand, grasp.position, grasp.rotation)
        if geometry.position(name)[2] > height + 0.012 and geometry.held(name):
            hand.go(hand.position + _way_out(geometry, name), grasp.rotation, near=0.02, steps=30)
            return grasp
        tried.append(grasp)
        hand.retries += 1
        hand.release(0.06 * UP)
    raise Failure(f"cannot grasp {name}")


def _approach(hand: Controller, geometry: Geometry, name: str, grasp: Grasp) -> None:
    """Over everything in between, then down onto the grasp."""
    start, end, rotation = hand.position, grasp.position, grasp.rotation
    hand.gripper = OPEN
    if comes_down_on(hand, grasp):
        return
    highest = max(geometry.highest_between(start, end, (name,), 0.10), geometry.bounds(name)[1][2])
    safe = max(highest + 0.045, end[2] + 0.06)
    if start[2] < safe - 0.02:
        hand.go(np.array([*start[:2], safe]), rotation, near=0.03)
    transit = np.array([*end[:2], max(safe, min(start[2], safe + 0.03))])
    hand.go(hand.vary(transit), rotation, near=0.02, turned=0.25)
    hand.go(np.array([*end[:2], max(end[2] + 0.05, min(safe, end[2] + 0.08))]), rotation, near=0.008, turned=0.06)


def take(hand: Controller, position: np.ndarray, rotation: np.ndarray) -> None:
    """Go to a grasp (3,) from a few cm away, the last 3 cm slowly; close the fingers when the hand stands there."""
    was = hand.position

    def stands() -> bool:
        nonlocal was
        before, was = was, hand.position
        moved, missing = np.linalg.norm(was - before), np.linalg.norm(was - position)
        return bool(moved < STILL and missing < THERE)

    slow = hand.slow_within(LAST, position)
    hand.go(position, rotation, near=0.0, steps=80, gain=1.6, speed=slow, until=stands, calm_within=CALM)
    hand.close(position, rotation)


def lift_off(hand: Controller, position: np.ndarray, rotation: np.ndarray) -> None:
    """Rise by 5 cm from a grasp (3,), at first slowly: fingers that have just closed do not yet press at full force."""
    slow, end = hand.slow_within(FIRST, position), position + 0.05 * UP

    def off() -> bool:
        return float(np.linalg.norm(hand.position - position)) > FIRST

    hand.go(end, rotation, near=0.02, turned=0.5, steps=20, speed=slow, until=off, calm=True)
    hand.go(end, rotation, near=0.02, turned=0.5, steps=25, speed=slow)


def _way_out(geometry: Geometry, name: str) -> np.ndarray:
    """How far (3,) m an object must go sideways before it can be lifted past what hangs over it."""
    low, high = geometry.bounds(name)
    centre, radius = (low + high) / 2, (high - low)[:2].max() / 2
    points = geometry.obstacles((name,), 0.012)
    points = points[points[:, 2] > high[2]] - centre
    over = points[np.linalg.norm(points[:, :2], axis=1) < radius + 0.01] * [1, 1, 0]
    if not len(over):
        return np.zeros(3)
    away = -over.mean(axis=0) / max(np.linalg.norm(over.mean(axis=0)), 1e-6)
    return away * (radius + 0.02 + (over @ away).max())


def place(hand: Controller, geometry: Geometry, name: str, spot: Spot, grasp: Grasp) -> None:
    """Bring the held object to a spot, down to its height or to contact, let go and retreat.

    Raises Failure if the object is lost on the way.
    """
    hang = geometry.position(name)[2] - geometry.bounds(name)[0][2]
    target = np.array([*spot.xy, 0.0])
    turn = reachable(grasp.yaw + spot.turn) - grasp.yaw if spot.turn else 0.0
    rotation = Rotation.from_rotvec(spot.tilt).as_matrix() @ about_z(turn) @ grasp.rotation
    height = spot.height
    if not spot.tilt.any():
        height = max(height, _clear_of_hand(hand, geometry, name, spot.xy, turn, rotation))
    room = 0.02 + 0.06 * np.sin(np.linalg.norm(spot.tilt))  # what is leant hangs lower
    carry = max(geometry.highest_between(geometry.position(name), target, (name,), 0.11) + room + hang, height + 0.02)

    if is_over(geometry, name, spot.xy) and not (turn or spot.tilt.any()):
        carry = float(geometry.position(name)[2])

    def so_that_object_is_at(z: float) -> Callable[[], np.ndarray]:
        return lambda: hand.position + np.array([*spot.xy, z]) - geometry.position(name)

    def lost() -> bool:
        return not geometry.held(name)

    def arrived() -> bool:  # a basket's rim or handle may touch before
        return geometry.rests(name) and not (spot.deep and geometry.position(name)[2] > height + RIM)

    lift = max(0.0, carry - geometry.position(name)[2])
    hand.go(hand.position + lift * UP, grasp.rotation, near=0.02, turned=1.0, steps=60)
    hand.go(so_that_object_is_at(carry), rotation, near=0.012, turned=0.12, steps=120, speed=0.85, until=lost)
    if lost():
        raise Failure(f"dropped {name}")
    hand.go(so_that_object_is_at(carry), rotation, near=0.006, turned=0.08, steps=15, calm=True)
    down = so_that_object_is_at(height)
    hand.go(down, rotation, near=0.004, steps=60, gain=1.3, until=arrived, calm=True)
    hand.release(-0.08 * hand.rotation[:, 2])


def _clear_of_hand(
    hand: Controller, geometry: Geometry, name: str, xy: np.ndarray, turn: float, rotation: np.ndarray
) -> float:
    """The least height of the object's origin at which the hand's hull hits nothing around the spot."""
    offset = about_z(turn) @ (hand.position - geometry.position(name))
    points = geometry.obstacles((name,), 0.008)
    inside = np.abs((points - [*xy, 0.0] - offset) @ rotation)
    under = points[(inside[:, 0] < HAND_U) & (inside[:, 1] < HAND_V), 2]
    return float(under.max(initial=-1.0) + 0.012 - HAND - offset[2])


def pick_and_place(hand: Controller, geometry: Geometry, name: str, spot: Spot) -> None:
    """Raises Failure."""
    move = np.array([*spot.xy, spot.height]) - geometry.position(name)
    grasp = pick(hand, geometry, name, None if spot.deep else move, spot.turn, yaw=spot.yaw)
    place(hand, geometry, name, spot, grasp)
