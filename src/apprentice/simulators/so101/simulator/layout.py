"""Where things lie when an episode begins: the same distribution whatever the task, so that words alone tell it.

All objects lie on a ring around the arm, apart from one another by what a jaw needs.
"""

from dataclasses import dataclass

import numpy as np

from apprentice.simulators.so101.simulator.scene import PAN, polar

NEAREST, FARTHEST, RIGHT, LEFT = 0.145, 0.245, np.deg2rad(-80), np.deg2rad(15)  # of an object's middle
GAP = 0.030  # m between what a jaw has to go
RADIUS = {
    "plate": 0.05,
    "sponge": 0.041,
    "cup_red": 0.030,
    "cup_blue": 0.030,
    "block_red": 0.0212,
    "block_green": 0.0212,
}
OPEN = (0.04, 0.085)  # m of the drawer
BEYOND = (0.30, 0.34)  # m: where distractors stand
TRIES, RESTARTS = 60, 1000
NEAR, FAR = 0.03, 0.05  # m that the probe `moved` moves an object
LESS = 0.01  # m, where there is no room for that


@dataclass(frozen=True)
class Layout:
    """Places (2,) m of the plate and of the objects, their yaws (rad), how far the drawer is open (m), distractors."""

    places: dict[str, np.ndarray]
    yaws: dict[str, float]
    drawer: float
    extras: list[np.ndarray]


def draw(seed: int, distractors: int) -> Layout:
    """The layout of a seed."""
    rng = np.random.default_rng([seed, 1])
    places = next(found for found in (_placed(rng) for _ in range(RESTARTS)) if found)
    yaws = {name: float(rng.uniform(-np.pi, np.pi)) for name in places}
    drawer = float(rng.uniform(*OPEN))
    extras = [polar(rng.uniform(*BEYOND), rng.uniform(RIGHT + part * 0.9, RIGHT + part * 0.9 + 0.7)) for part in (0, 1)]
    return Layout(places, yaws, drawer, extras[:distractors])


def inside(place: np.ndarray) -> bool:
    """Is a place (2,) on the ring?"""
    way = place - PAN
    return bool(NEAREST <= np.linalg.norm(way) <= FARTHEST and RIGHT <= np.arctan2(way[1], way[0]) <= LEFT)


def free(name: str, place: np.ndarray, others: dict[str, np.ndarray], gap: float = GAP) -> bool:
    """Is there room for an object at a place (2,) m among the others?"""
    return all(
        np.linalg.norm(place - there) >= RADIUS[name] + RADIUS[other] + (gap / 2 if "plate" in (name, other) else gap)
        for other, there in others.items()
        if other != name
    )


def shifted(name: str, places: dict[str, np.ndarray], seed: int) -> np.ndarray | None:
    """Another place (2,) m for an object, NEAR to FAR from where it is; nearer and closer to others where there is no
    room for that; None if there is none at all."""
    rng = np.random.default_rng([seed, 6])
    for number in range(3 * TRIES):
        near, gap = (NEAR, GAP / 2) if number < 2 * TRIES else (LESS, GAP / 6)
        way, distance = rng.uniform(-np.pi, np.pi), rng.uniform(near, FAR)
        place = places[name] + distance * np.array([np.cos(way), np.sin(way)])
        if inside(place) and free(name, place, places, gap):
            return place
    return None


def way_out(name: str, places: dict[str, np.ndarray], way: float, length: float) -> np.ndarray | None:
    """Where (2,) m an object can slide to: in the direction `way` (rad), or the nearest in which there is room."""
    for turn in (0, 1, -1, 2, -2, 3, -3, 4):
        angle = way + turn * np.pi / 4
        place = places[name] + length * np.array([np.cos(angle), np.sin(angle)])
        if inside(place) and free(name, place, places, GAP / 2):
            return place
    return None


def _placed(rng: np.random.Generator) -> dict[str, np.ndarray] | None:
    """One thing after the other, the largest first; None if one finds no room."""
    places: dict[str, np.ndarray] = {}
    for name in RADIUS:
        for _ in range(TRIES):
            place = polar(np.sqrt(rng.uniform(NEAREST**2, FARTHEST**2)), rng.uniform(RIGHT, LEFT))
            if free(name, place, places):
                places[name] = place
                break
        else:
            return None
    return places
