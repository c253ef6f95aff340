"""What the demonstrator can do with an object in its hand: pick, place, let go."""

from collections.abc import Callable

import numpy as np

from apprentice.libero.controller import OPEN, UP, Controller, Failure
from apprentice.libero.grasping import HAND, HAND_U, HAND_V, Grasp, about_z, differ, plan_grasps
from apprentice.libero.spots import Spot
from apprentice.libero.world import World


def pick(hand: Controller, world: World, name: str, move: np.ndarray | None = None, turn: float = 0.0) -> Grasp:
    """Grasp an object and lift it by 5 cm; `move` and `turn` say where it will go. Raises Failure after three tries."""
    tried: list[Grasp] = []
    for _ in range(3):
        grasps = plan_grasps(world, name, move, turn)
        if not grasps:
            raise Failure(f"no grasp of {name}")
        grasp = next((g for g in grasps if differ(g, tried)), grasps[0])
        height = world.position(name)[2]
        _approach(hand, world, name, grasp)
        hand.close(grasp.position, grasp.rotation)
        hand.go(grasp.position + 0.05 * UP, grasp.rotation, near=0.012, turned=0.5, steps=25)
        if world.position(name)[2] > height + 0.012 and world.held(name):
            return grasp
        tried.append(grasp)
        hand.release(0.06 * UP)
    raise Failure(f"cannot grasp {name}")


def _approach(hand: Controller, world: World, name: str, grasp: Grasp) -> None:
    """Over everything in between, then down onto the grasp."""
    start, end, rotation = hand.position, grasp.position, grasp.rotation
    hand.gripper = OPEN
    highest = max(world.highest_between(start, end, (name,), 0.10), world.bounds(name)[1][2])
    safe = max(highest + 0.045, end[2] + 0.06)
    if start[2] < safe - 0.02:
        hand.go(np.array([*start[:2], safe]), rotation, near=0.03)
    transit = np.array([*end[:2], max(safe, min(start[2], safe + 0.03))])
    hand.go(hand.vary(transit), rotation, near=0.02, turned=0.25)
    hand.go(np.array([*end[:2], max(end[2] + 0.05, min(safe, end[2] + 0.08))]), rotation, near=0.008, turned=0.06)
    hand.go(end, rotation, near=0.004, turned=0.05, steps=45, gain=1.6)


def place(hand: Controller, world: World, name: str, spot: Spot, grasp: Grasp) -> None:
    """Bring the held object to a spot, down to its height or to contact, let go and retreat.

    Raises Failure if the object is lost on the way.
    """
    hang = world.position(name)[2] - world.bounds(name)[0][2]
    target, rotation = np.array([*spot.xy, 0.0]), about_z(spot.turn) @ grasp.rotation
    height = max(spot.height, _clear_of_hand(hand, world, name, spot, rotation))
    carry = max(world.highest_between(world.position(name), target, (name,), 0.11) + 0.02 + hang, height + 0.02)

    def so_that_object_is_at(z: float) -> Callable[[], np.ndarray]:
        return lambda: hand.position + np.array([*spot.xy, z]) - world.position(name)

    lift = max(0.0, carry - world.position(name)[2])
    hand.go(hand.position + lift * UP, grasp.rotation, near=0.02, turned=1.0, steps=60)
    hand.go(so_that_object_is_at(carry), rotation, near=0.012, turned=0.12, steps=120, speed=0.85)
    if not world.held(name):
        raise Failure(f"dropped {name}")
    hand.go(so_that_object_is_at(carry), rotation, near=0.006, turned=0.08, steps=15)
    hand.go(so_that_object_is_at(height), rotation, near=0.004, steps=60, gain=1.3, until=lambda: world.rests(name))
    hand.release(0.08 * UP)


def _clear_of_hand(hand: Controller, world: World, name: str, spot: Spot, rotation: np.ndarray) -> float:
    """The least height of the object's origin at which the hand's hull hits nothing around the spot."""
    offset = about_z(spot.turn) @ (hand.position - world.position(name))
    points = world.obstacles((name,), 0.008)
    inside = np.abs((points - [*spot.xy, 0.0] - offset) @ rotation)
    under = points[(inside[:, 0] < HAND_U) & (inside[:, 1] < HAND_V), 2]
    return float(under.max(initial=-1.0) + 0.012 - HAND - offset[2])


def pick_and_place(hand: Controller, world: World, name: str, spot: Spot) -> None:
    """Raises Failure."""
    move = np.array([*spot.xy, spot.height]) - world.position(name)
    grasp = pick(hand, world, name, None if spot.deep else move, spot.turn)
    place(hand, world, name, spot, grasp)
