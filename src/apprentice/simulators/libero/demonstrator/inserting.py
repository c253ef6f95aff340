"""What goes in from the front, under a roof: a mug into the microwave, pans and books into a shelf."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from apprentice.simulators.libero.demonstrator.controller import OPEN, UP, Controller, Failure
from apprentice.simulators.libero.demonstrator.grasping import leaning, yaw_along
from apprentice.simulators.libero.demonstrator.skills import pick, take
from apprentice.simulators.libero.simulator.geometry import Geometry

BOOKS = ("black_book", "yellow_book")  # they stand, and are laid down as they go in


@dataclass
class Cavity:
    """A room that is open in front."""

    front: np.ndarray  # (3,) m, middle of its floor's front edge
    inward: np.ndarray  # (3,) unit
    depth: float  # m
    aside: np.ndarray  # (3,) m, from where to come, past an open door that is then pushed away from inside


@dataclass
class Hold:
    """How an object is held while it goes in."""

    rotation: np.ndarray  # (3, 3) of the hand
    deep: float  # m, how far behind the front edge the object's origin goes
    way_back: np.ndarray  # (3,) m, along which the hand leaves


def cavity_of(geometry: Geometry, site: str) -> Cavity:
    """From the walls' places in LIBERO's models of its microwave and its two-layer shelf."""
    fixture = geometry.parent(site)
    frame, origin = geometry.rotation(fixture), geometry.position(fixture)
    if fixture.startswith("microwave"):
        return Cavity(origin + frame @ [-0.04, -0.088, 0.024], frame[:, 1], 0.168, 0.04 * frame[:, 0])
    front = origin + frame @ [0.005, -0.079, 0.071]
    if "bottom" in site:
        front[2] = geometry.table_height()
    return Cavity(front, frame[:, 1], 0.186, np.zeros(3))


def insert(hand: Controller, geometry: Geometry, name: str, site: str) -> None:
    """Put an object into a cavity: by its handle if it lies, leant over if it stands. Raises Failure."""
    cavity = cavity_of(geometry, site)
    if name.startswith(BOOKS):
        hold = _take_and_lean(hand, geometry, name, cavity, "bottom" in site)
    else:
        hold = _take_by_handle(hand, geometry, name, cavity, "mug" in name)
    if not geometry.held(name):
        raise Failure(f"dropped {name}")
    _slide_in(hand, geometry, name, hold, cavity)


def _take_by_handle(hand: Controller, geometry: Geometry, name: str, cavity: Cavity, short: bool) -> Hold:
    """Grasp a handle that points out of the cavity with a leant hand: near its end, or in the middle."""
    points, inward = geometry.points(name, 0.003), cavity.inward
    outside = -(points @ inward)
    end = outside.max() - (0.0045 if short else 0.09)
    grip = points[np.abs(outside - end) < 0.0045].mean(axis=0)
    yaw = yaw_along(np.cross(inward, UP))
    leant = leaning(inward, np.deg2rad(40 if short else 35), yaw)
    fingers = leant[:, 2]
    grip = grip + 0.004 * fingers
    hand.gripper = OPEN
    before = grip - 0.10 * fingers
    over = np.array([*before[:2], max(hand.position[2] - 0.03, grip[2] + 0.10)])
    hand.go(hand.vary(over), leant, near=0.03, turned=0.2, steps=110)
    hand.go(grip - 0.05 * fingers, leant, near=0.01, turned=0.1, steps=60)
    take(hand, grip, leant)
    return Hold(leant, 0.053 if short else 0.08, -0.12 * inward)


def _take_and_lean(hand: Controller, geometry: Geometry, name: str, cavity: Cavity, low: bool) -> Hold:
    """Grasp a book by its top and lean it in front of the cavity, its bottom inwards: let go, it will lie.

    Under a low roof it leans less, or the hand would touch the table.
    """
    grasp = pick(hand, geometry, name, low=geometry.bounds(name)[1][2] - 0.03)
    yaw = yaw_along(cavity.inward)
    before = cavity.front - 0.20 * cavity.inward
    height = max(geometry.highest_between(hand.position, before, (name,), 0.11), cavity.front[2]) + 0.18
    hand.go(np.array([*hand.position[:2], height]), grasp.rotation, near=0.03, steps=60)
    hand.go(np.array([*before[:2], height]), leaning(cavity.inward, 0.3, yaw), near=0.03, turned=0.3, speed=0.85)
    leant = leaning(cavity.inward, np.deg2rad(45 if low else 50), yaw)
    return Hold(leant, 0.05 if low else 0.10, -0.12 * leant[:, 2])


def _slide_in(hand: Controller, geometry: Geometry, name: str, hold: Hold, cavity: Cavity) -> None:
    """Bring the held object before the cavity, push it in, let go and leave. Raises Failure."""

    def object_at(depth: float, height: float, aside: float = 0.0) -> Callable[[], np.ndarray]:
        goal = cavity.front + depth * cavity.inward + height * UP + aside * cavity.aside
        return lambda: hand.position + goal - geometry.position(name)

    def hang() -> float:
        return float(geometry.position(name)[2] - geometry.bounds(name)[0][2])

    up = max(0.0, cavity.front[2] + 0.018 + hang() - geometry.position(name)[2])
    hand.go(hand.position + up * UP, hold.rotation, near=0.012, turned=0.1, steps=60)
    below = hang()
    ahead = float((geometry.points(name, 0.01) @ cavity.inward).max() - geometry.position(name) @ cavity.inward)
    hand.go(object_at(-ahead - 0.05, below + 0.018, 1.0), hold.rotation, near=0.008, turned=0.1)
    if not geometry.held(name):
        raise Failure(f"dropped {name}")
    deep = min(hold.deep, cavity.depth - ahead - 0.01)
    hand.go(object_at(-ahead - 0.01, below + 0.018, 1.0), hold.rotation, near=0.012, turned=0.3, steps=20, calm=True)
    hand.go(object_at(deep, below + 0.012), hold.rotation, near=0.008, turned=0.3, steps=70, speed=0.6, calm=True)
    down = object_at(deep, below - 0.004)
    hand.go(down, hold.rotation, near=0.004, turned=0.3, steps=15, until=lambda: geometry.rests(name))
    hand.release(hold.way_back)
    hand.go(hand.position + 0.12 * UP, hold.rotation, near=0.03, steps=40)
