"""Things that are not lifted and put down from above: a plate is dragged, a mug is slid into the microwave."""

from collections.abc import Callable

import numpy as np

from apprentice.libero.controller import CLOSE, DOWN, OPEN, UP, Controller, Failure
from apprentice.libero.grasping import TIP, leaning, yaw_along
from apprentice.libero.world import World

REACH = 0.74  # m from the robot's base


def drag(hand: Controller, world: World, name: str, site: str) -> None:
    """Plant the closed finger tips in a dish and lead it to a region by its inner rim."""
    points, start = world.points(name, 0.004), world.position(name)
    middle = points[np.linalg.norm((points - start)[:, :2], axis=1) < 0.02]
    height = middle[:, 2].max() + TIP - 0.010
    via, goal = _way(world, name, site)
    for target, near in ((via, 0.02), (goal, 0.006)):
        for _ in range(4):
            if np.linalg.norm(target - world.position(name)[:2]) < near:
                break
            _plant(hand, world, name, target, height)
            _lead(hand, world, name, target, near, height)
            hand.go(hand.position + 0.03 * UP, DOWN, near=0.01, steps=12)
    hand.go(hand.position + 0.08 * UP, DOWN, near=0.02, steps=30)


def _plant(hand: Controller, world: World, name: str, target: np.ndarray, height: float) -> None:
    """Put the finger tips into the dish, a little ahead of its middle."""
    dish = world.position(name)[:2]
    ahead = (target - dish) / max(np.linalg.norm(target - dish), 1e-6)
    start = np.array([*(dish + 0.012 * ahead), height])
    above = 0.10 if np.linalg.norm((hand.position - start)[:2]) > 0.10 else 0.03
    hand.gripper = CLOSE
    over = np.array([*start[:2], height + above])
    hand.go(over if above < 0.1 else hand.vary(over), DOWN, near=0.015, turned=0.2, steps=90)
    hand.go(start, DOWN, near=0.006, turned=0.1, steps=30)


def _lead(hand: Controller, world: World, name: str, target: np.ndarray, near: float, height: float) -> None:
    """Drag until there, or until the dish does not move any more."""
    past: list[np.ndarray] = []
    for count in range(140):
        dish = world.position(name)[:2]
        gap = target - dish
        past.append(dish)
        if np.linalg.norm(gap) < near or (count > 45 and np.linalg.norm(dish - past[-15]) < 0.003):
            return
        lead = min(0.036 + 0.0006 * count, 0.058)
        position = np.array([*(dish + gap / np.linalg.norm(gap) * lead), height])
        hand.step(hand.towards(position, DOWN, 1.5, 0.45))


def _way(world: World, name: str, site: str) -> tuple[np.ndarray, np.ndarray]:
    """A corner (2,) and an end (2,) of a way for the dish that avoids other things, into the region."""
    start, (centre, half) = world.position(name), world.site(site)
    radius = np.linalg.norm((world.points(name, 0.004) - start)[:, :2], axis=1).max() + 0.006
    low = world.obstacles((name,), 0.012)
    low = np.unique(np.round(low[low[:, 2] < start[2] + 0.05, :2], 2), axis=0)
    corners = np.stack(np.meshgrid(np.arange(-0.2, 0.2, 0.03), np.arange(-0.1, 0.31, 0.03)), -1).reshape(-1, 2)
    best = (np.inf, centre[:2], centre[:2])
    for offset in np.stack(np.meshgrid([-1, 0, 1], [-1, 0, 1]), -1).reshape(-1, 2) * (half[:2] - 0.010):
        end = centre[:2] + offset
        for corner in corners:
            first = start[:2] + 0.15 * (corner - start[:2])
            room = min(_clearance(low, first, corner), _clearance(low, corner, end))
            length = np.linalg.norm(corner - start[:2]) + np.linalg.norm(end - corner)
            far = max(0.0, float(np.linalg.norm(corner - world.base()[:2])) - REACH)
            cost = float(length + 8 * max(0.0, radius - room) + 10 * far)
            if cost < best[0]:
                best = (cost, corner, end)
    return best[1], best[2]


def _clearance(points: np.ndarray, start: np.ndarray, end: np.ndarray) -> float:
    """Distance (m) of the nearest of `points` (N, 2) from a straight way."""
    way = end - start
    along = np.clip((points - start) @ way / max(way @ way, 1e-9), 0, 1)
    return float(np.linalg.norm(points - (start + along[:, None] * way), axis=1).min())


def insert_in_microwave(hand: Controller, world: World, name: str, site: str) -> None:
    """Take a mug's handle with a leant hand and slide the mug in through the opening. Raises Failure."""
    oven = world.parent(site)
    frame, origin = world.rotation(oven), world.position(oven)
    inward = frame[:, 1]
    points = world.points(name, 0.003)
    outside = -(points @ inward)
    grip = points[outside > outside.max() - 0.009].mean(axis=0)
    leant = _nearer(hand, inward, np.deg2rad(55), yaw_along(frame[:, 0]))
    fingers = leant[:, 2]
    hand.gripper = OPEN
    before = grip - 0.10 * fingers
    over = np.array([*before[:2], max(hand.position[2] - 0.03, grip[2] + 0.10)])
    hand.go(hand.vary(over), leant, near=0.03, turned=0.2, steps=110)
    hand.go(grip - 0.05 * fingers, leant, near=0.01, turned=0.1, steps=60)
    hand.go(grip + 0.004 * fingers, leant, near=0.005, turned=0.08, steps=40)
    hand.close(grip + 0.004 * fingers, leant)

    height = origin[2] + 0.032  # the mug's origin is at its bottom, the cavity's floor 24 mm up
    before, inside = (origin + frame @ [-0.04, y, 0] for y in (-0.188, -0.035))

    def so_that_mug_is_at(xy: np.ndarray, z: float) -> Callable[[], np.ndarray]:
        return lambda: hand.position + np.array([*xy[:2], z]) - world.position(name)

    hand.go(so_that_mug_is_at(world.position(name), height + 0.01), leant, near=0.012, turned=0.2, steps=40)
    hand.go(so_that_mug_is_at(before, height + 0.01), leant, near=0.012, turned=0.2)
    if not world.held(name):
        raise Failure(f"dropped {name}")
    hand.go(so_that_mug_is_at(inside, height + 0.004), leant, near=0.008, turned=0.3, steps=70, speed=0.6)
    down = so_that_mug_is_at(inside, height - 0.012)
    hand.go(down, leant, near=0.004, turned=0.3, steps=15, until=lambda: world.rests(name))
    hand.release(-0.12 * inward)
    hand.go(hand.position + 0.15 * UP, leant, near=0.03, steps=40)


def _nearer(hand: Controller, inward: np.ndarray, angle: float, yaw: float) -> np.ndarray:
    """Of the two hands that look the same from both sides, the one that needs less turning."""
    both = [leaning(inward, angle, turned) for turned in (yaw, yaw + np.pi)]
    return max(both, key=lambda rotation: float(np.trace(rotation @ hand.rotation.T)))
