"""What goes in from the front, under a roof: a mug into the microwave, pans and books into a shelf."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from apprentice.libero.controller import OPEN, UP, Controller, Failure
from apprentice.libero.grasping import leaning, wrapped, yaw_along
from apprentice.libero.skills import pick
from apprentice.libero.world import World


@dataclass
class Cavity:
    """A room that is open in front."""

    front: np.ndarray  # (3,) m, middle of its floor's front edge
    inward: np.ndarray  # (3,) unit
    depth: float  # m
    deep: float  # m, how far in an object's origin needs to be


def cavity_of(world: World, site: str) -> Cavity:
    """From the walls' places in LIBERO's models of its microwave and its two-layer shelf."""
    fixture = world.parent(site)
    frame, origin = world.rotation(fixture), world.position(fixture)
    if fixture.startswith("microwave"):
        return Cavity(origin + frame @ [-0.04, -0.088, 0.024], frame[:, 1], 0.168, 0.053)
    front = origin + frame @ [0.005, -0.079, 0.071]
    if "bottom" in site:
        front[2] = world.table_height()
    return Cavity(front, frame[:, 1], 0.186, 0.12)


def insert(hand: Controller, world: World, name: str, site: str) -> None:
    """Put an object into a cavity: by its handle if it lies, tipped over if it stands. Raises Failure."""
    cavity = cavity_of(world, site)
    low, high = world.bounds(name)
    if name.startswith(("black_book", "yellow_book")):
        rotation = _take_and_tip(hand, world, name, cavity)
    else:
        rotation = _take_by_handle(hand, world, name, cavity.inward, 0.009 if high[1] - low[1] < 0.2 else 0.03)
    if not world.held(name):
        raise Failure(f"dropped {name}")
    _slide_in(hand, world, name, rotation, cavity)


def _take_by_handle(hand: Controller, world: World, name: str, inward: np.ndarray, band: float) -> np.ndarray:
    """Grasp the object's outermost part, `band` (m) deep, with a leant hand; returns the hand's rotation."""
    points = world.points(name, 0.003)
    outside = -(points @ inward)
    grip = points[outside > outside.max() - band].mean(axis=0)
    yaw = yaw_along(np.cross(inward, UP))
    both = [leaning(inward, np.deg2rad(55), turned) for turned in (yaw, yaw + np.pi)]
    leant = max(both, key=lambda rotation: float(np.trace(rotation @ hand.rotation.T)))
    fingers = leant[:, 2]
    grip = grip + 0.004 * fingers
    hand.gripper = OPEN
    before = grip - 0.10 * fingers
    over = np.array([*before[:2], max(hand.position[2] - 0.03, grip[2] + 0.10)])
    hand.go(hand.vary(over), leant, near=0.03, turned=0.2, steps=110)
    hand.go(grip - 0.05 * fingers, leant, near=0.01, turned=0.1, steps=60)
    hand.go(grip, leant, near=0.005, turned=0.08, steps=40)
    hand.close(grip, leant)
    return leant


def _take_and_tip(hand: Controller, world: World, name: str, cavity: Cavity) -> np.ndarray:
    """Grasp a book by its top, lift it in front of the cavity and lay it down in the hand, its bottom inwards."""
    grasp = pick(hand, world, name, low=world.bounds(name)[1][2] - 0.03)
    yaw = grasp.yaw + wrapped(yaw_along(cavity.inward) - grasp.yaw)
    before = cavity.front - 0.22 * cavity.inward
    height = max(world.highest_between(hand.position, before, (name,), 0.11), cavity.front[2]) + 0.20
    hand.go(np.array([*hand.position[:2], height]), grasp.rotation, near=0.03, steps=60)
    hand.go(np.array([*before[:2], height]), leaning(cavity.inward, 0.4, yaw), near=0.03, turned=0.3, speed=0.85)
    return leaning(cavity.inward, np.deg2rad(85), yaw)


def _slide_in(hand: Controller, world: World, name: str, rotation: np.ndarray, cavity: Cavity) -> None:
    """Bring the held object before the cavity, push it in, let go and leave the way it came. Raises Failure."""
    origin = world.position(name)

    def object_at(depth: float, height: float) -> Callable[[], np.ndarray]:
        goal = cavity.front + depth * cavity.inward + height * UP
        return lambda: hand.position + goal - world.position(name)

    clear = origin[2] - world.bounds(name)[0][2] + 0.018
    up = max(0.0, cavity.front[2] + clear - origin[2])
    hand.go(hand.position + up * UP, rotation, near=0.012, turned=0.1, steps=60)
    hang = world.position(name)[2] - world.bounds(name)[0][2]
    ahead = float((world.points(name, 0.01) @ cavity.inward).max() - world.position(name) @ cavity.inward)
    hand.go(object_at(-ahead - 0.05, hang + 0.018), rotation, near=0.012, turned=0.1)
    if not world.held(name):
        raise Failure(f"dropped {name}")
    deep = min(cavity.deep, cavity.depth - ahead - 0.01)
    hand.go(object_at(deep, hang + 0.012), rotation, near=0.008, turned=0.3, steps=70, speed=0.6)
    down = object_at(deep, hang - 0.004)
    hand.go(down, rotation, near=0.004, turned=0.3, steps=15, until=lambda: world.rests(name))
    hand.release(-0.12 * cavity.inward)
    hand.go(hand.position + 0.12 * UP, rotation, near=0.03, steps=40)
