"""A plate that is not lifted but dragged, and a bowl that is nudged out from under something."""

import numpy as np

from apprentice.simulators.libero.demonstrator.controller import CLOSE, DOWN, UP, Controller, Failure
from apprentice.simulators.libero.demonstrator.grasping import REACH, TIP
from apprentice.simulators.libero.demonstrator.placements import Spot
from apprentice.simulators.libero.demonstrator.skills import pick_and_place
from apprentice.simulators.libero.simulator.geometry import Geometry

PUSHED = 0.012  # m that a dish may run into what it passes
DEEP = 0.03  # m from a bowl's floor to its rim


def drag(hand: Controller, geometry: Geometry, name: str, site: str) -> None:
    """Lead a dish to a region, around what is in the way; what leaves no way is first put aside. Raises Failure."""
    way = _way(geometry, name, site)
    for other in _in_the_way(geometry, name, way):
        pick_and_place(hand, geometry, other, _aside(geometry, name, other, way))
        way = _way(geometry, name, site)
    lead(hand, geometry, name, way[1], 0.02)
    lead(hand, geometry, name, way[2], 0.006)
    hand.go(hand.position + 0.05 * UP, DOWN, near=0.02, steps=30)


def lead(hand: Controller, geometry: Geometry, name: str, target: np.ndarray, near: float, tries: int = 4) -> None:
    """Plant the closed finger tips in a dish and lead it by its inner rim to `target` (2,)."""
    points, start = geometry.points(name, 0.004), geometry.position(name)
    middle = points[np.linalg.norm((points - start)[:, :2], axis=1) < 0.02]
    deep = points[:, 2].max() - middle[:, 2].max() > DEEP  # a bowl is led by its steep wall, a plate by its low rim
    height = middle[:, 2].max() + TIP + (0.012 if deep else -0.010)
    for _ in range(tries):
        if np.linalg.norm(target - geometry.position(name)[:2]) < near:
            return
        _plant(hand, geometry, name, target, height)
        _pull(hand, geometry, name, target, near, height)
        hand.go(hand.position + 0.03 * UP, DOWN, near=0.02, steps=12)


def _plant(hand: Controller, geometry: Geometry, name: str, target: np.ndarray, height: float) -> None:
    """Put the finger tips into the dish, a little ahead of its middle."""
    dish = geometry.position(name)[:2]
    ahead = (target - dish) / max(np.linalg.norm(target - dish), 1e-6)
    start = np.array([*(dish + 0.012 * ahead), height])
    above = 0.10 if np.linalg.norm((hand.position - start)[:2]) > 0.10 else 0.03
    hand.gripper = CLOSE
    over = np.array([*start[:2], height + above])
    hand.go(over if above < 0.1 else hand.vary(over), DOWN, near=0.015, turned=0.2, steps=90)
    hand.go(start, DOWN, near=0.006, turned=0.1, steps=30)


def _pull(hand: Controller, geometry: Geometry, name: str, target: np.ndarray, near: float, height: float) -> None:
    """Drag until there, or until the dish does not move any more."""
    past: list[np.ndarray] = []
    for count in range(140):
        dish = geometry.position(name)[:2]
        gap = target - dish
        past.append(dish)
        if np.linalg.norm(gap) < near or (count > 30 and np.linalg.norm(dish - past[-15]) < 0.003):
            return
        lead = min(0.036 + 0.0012 * count, 0.058)
        position = np.array([*(dish + gap / np.linalg.norm(gap) * lead), height])
        hand.guide(position, DOWN, gain=1.5, speed=0.45)


def _way(geometry: Geometry, name: str, site: str) -> np.ndarray:
    """Start, corner and end (3, 2) of a way for the dish that avoids other things, into the region."""
    start, (centre, half), radius = geometry.position(name), geometry.site(site), _radius(geometry, name)
    low = geometry.obstacles((name,), 0.012)
    low = np.unique(np.round(low[low[:, 2] < start[2] + 0.05, :2], 2), axis=0)
    corners = np.stack(np.meshgrid(np.arange(-0.2, 0.2, 0.03), np.arange(-0.1, 0.31, 0.03)), -1).reshape(-1, 2)
    best = (np.inf, np.zeros((3, 2)))
    for offset in np.stack(np.meshgrid([-1, 0, 1], [-1, 0, 1]), -1).reshape(-1, 2) * (half[:2] - 0.010):
        end = centre[:2] + offset
        for corner in corners:
            first = start[:2] + 0.15 * (corner - start[:2])
            room = min(_clearance(low, first, corner), _clearance(low, corner, end))
            length = np.linalg.norm(corner - start[:2]) + np.linalg.norm(end - corner)
            far = max(0.0, float(np.linalg.norm(corner - geometry.base()[:2])) - REACH)
            cost = float(length + 8 * max(0.0, radius - room) + 10 * far)
            if cost < best[0]:
                best = (cost, np.stack([start[:2], corner, end]))
    return best[1]


def _radius(geometry: Geometry, name: str) -> float:
    """Of a dish and a little room around it, m."""
    away = (geometry.points(name, 0.004) - geometry.position(name))[:, :2]
    return float(np.linalg.norm(away, axis=1).max()) + 0.006


def _in_the_way(geometry: Geometry, name: str, way: np.ndarray) -> list[str]:
    """The objects that the dish would push along on its way (3, 2)."""
    others = [other for other in geometry.domain.objects_dict if other != name]
    return [other for other in others if _beside(geometry.points(other, 0.01), way) < _radius(geometry, name) - PUSHED]


def _aside(geometry: Geometry, name: str, other: str, way: np.ndarray) -> Spot:
    """The nearest place on the table for an object where it touches nothing and the dish passes by."""
    origin, points = geometry.position(other), geometry.points(other, 0.01)
    room = float(np.linalg.norm((points - origin)[:, :2], axis=1).max()) + 0.005
    around = geometry.obstacles((other,), 0.012)
    places = np.stack(np.meshgrid(np.arange(-0.3, 0.2, 0.02), np.arange(-0.34, 0.35, 0.02)), -1).reshape(-1, 2)
    free = [
        place
        for place in places
        if np.linalg.norm(place - geometry.base()[:2]) < REACH
        and np.linalg.norm(around[:, :2] - place, axis=1).min() > room
        and _beside(place[None], way) > _radius(geometry, name) + room
    ]
    if not free:
        raise Failure(f"no way for {name}, and no place for {other}, which is in it")
    xy = min(free, key=lambda place: float(np.linalg.norm(place - origin[:2])))
    return Spot(xy, geometry.table_height() + float(origin[2] - points[:, 2].min()) + 0.003)


def _beside(points: np.ndarray, way: np.ndarray) -> float:
    """Distance (m) of the nearest of `points` (N, 2 or more), seen from above, from a way (3, 2)."""
    return min(_clearance(points[:, :2], *way[:2]), _clearance(points[:, :2], *way[1:]))


def _clearance(points: np.ndarray, start: np.ndarray, end: np.ndarray) -> float:
    """Distance (m) of the nearest of `points` (N, 2) from a straight way."""
    way = end - start
    along = np.clip((points - start) @ way / max(way @ way, 1e-9), 0, 1)
    return float(np.linalg.norm(points - (start + along[:, None] * way), axis=1).min())
