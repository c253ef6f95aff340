"""A plate that is not lifted but dragged, and a bowl that is nudged out from under something."""

import numpy as np

from apprentice.libero.controller import CLOSE, DOWN, UP, Controller
from apprentice.libero.grasping import REACH, TIP
from apprentice.libero.world import World

DEEP = 0.03  # m from a bowl's floor to its rim


def drag(hand: Controller, world: World, name: str, site: str) -> None:
    """Lead a dish to a region, around what is in the way."""
    via, goal = _way(world, name, site)
    lead(hand, world, name, via, 0.02)
    lead(hand, world, name, goal, 0.006)
    hand.go(hand.position + 0.05 * UP, DOWN, near=0.02, steps=30)


def lead(hand: Controller, world: World, name: str, target: np.ndarray, near: float, tries: int = 4) -> None:
    """Plant the closed finger tips in a dish and lead it by its inner rim to `target` (2,)."""
    points, start = world.points(name, 0.004), world.position(name)
    middle = points[np.linalg.norm((points - start)[:, :2], axis=1) < 0.02]
    deep = points[:, 2].max() - middle[:, 2].max() > DEEP  # a bowl is led by its steep wall, a plate by its low rim
    height = middle[:, 2].max() + TIP + (0.012 if deep else -0.010)
    for _ in range(tries):
        if np.linalg.norm(target - world.position(name)[:2]) < near:
            return
        _plant(hand, world, name, target, height)
        _pull(hand, world, name, target, near, height)
        hand.go(hand.position + 0.03 * UP, DOWN, near=0.02, steps=12)


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


def _pull(hand: Controller, world: World, name: str, target: np.ndarray, near: float, height: float) -> None:
    """Drag until there, or until the dish does not move any more."""
    past: list[np.ndarray] = []
    for count in range(140):
        dish = world.position(name)[:2]
        gap = target - dish
        past.append(dish)
        if np.linalg.norm(gap) < near or (count > 30 and np.linalg.norm(dish - past[-15]) < 0.003):
            return
        lead = min(0.036 + 0.0012 * count, 0.058)
        position = np.array([*(dish + gap / np.linalg.norm(gap) * lead), height])
        hand.guide(position, DOWN, gain=1.5, speed=0.45)


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
