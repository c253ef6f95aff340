"""What the demonstrator can do: pick an object and place it."""

from collections.abc import Callable

import numpy as np

from apprentice.libero.controller import Controller, Failure
from apprentice.libero.grasping import Grasp, about_z, differ, plan_grasps
from apprentice.libero.world import World

UP = np.array([0, 0, 1.0])


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
        release(hand, 0.06)
    raise Failure(f"cannot grasp {name}")


def _approach(hand: Controller, world: World, name: str, grasp: Grasp) -> None:
    """Over everything in between, then down onto the grasp."""
    start, end, rotation = hand.position, grasp.position, grasp.rotation
    highest = max(world.highest_between(start, end, (name,), 0.10), world.bounds(name)[1][2])
    safe = max(highest + 0.045, end[2] + 0.06)
    if start[2] < safe - 0.02:
        hand.go(np.array([*start[:2], safe]), rotation, near=0.03)
    transit = np.array([*end[:2], max(safe, min(start[2], safe + 0.03))]) + np.abs(hand.style.approach) * UP
    hand.go(transit + hand.style.approach * (1 - UP), rotation, near=0.02, turned=0.25)
    hand.go(np.array([*end[:2], max(end[2] + 0.05, min(safe, end[2] + 0.08))]), rotation, near=0.008, turned=0.06)
    hand.go(end, rotation, near=0.004, turned=0.05, steps=45, gain=1.6)


def place(
    hand: Controller, world: World, name: str, xy: np.ndarray, height: float, grasp: Grasp, turn: float = 0.0
) -> None:
    """Bring the held object's origin to `xy` (2,) and down to `height` or contact, let go and retreat.

    Raises Failure if the object is lost on the way.
    """
    hang = world.position(name)[2] - world.bounds(name)[0][2]
    target = np.array([*xy, 0.0])
    carry = max(world.highest_between(world.position(name), target, (name,), 0.11) + 0.02 + hang, height + 0.02)
    rotation = about_z(turn) @ grasp.rotation

    def so_that_object_is_at(z: float) -> Callable[[], np.ndarray]:
        return lambda: hand.position + np.array([*xy, z]) - world.position(name)

    lift = max(0.0, carry - world.position(name)[2])
    hand.go(hand.position + lift * UP, grasp.rotation, near=0.02, turned=1.0, steps=60)
    hand.go(so_that_object_is_at(carry), rotation, near=0.012, turned=0.12, steps=120, speed=0.85)
    if not world.held(name):
        raise Failure(f"dropped {name}")
    hand.go(so_that_object_is_at(carry), rotation, near=0.006, turned=0.08, steps=15)
    hand.go(so_that_object_is_at(height), rotation, near=0.004, steps=60, gain=1.3, until=lambda: world.rests(name))
    release(hand, 0.08)


def release(hand: Controller, retreat: float) -> None:
    """Open the fingers and go up by `retreat` (m)."""
    position, rotation = hand.position, hand.rotation
    hand.open(position, rotation)
    hand.go(position + retreat * UP, rotation, near=0.02, steps=25)


def pick_and_place(hand: Controller, world: World, name: str, destination: str) -> None:
    """Put an object on a region or on another object. Raises Failure."""
    origin, (low, _) = world.position(name), world.bounds(name)
    hang = origin[2] - low[2]
    if world.is_site(destination):
        xy, radius = world.site(destination)[0][:2], 0.03
    else:
        xy, radius = world.position(destination)[:2], 0.012
    height = world.support_height(xy, (name,), radius) + hang + 0.004
    grasp = pick(hand, world, name, np.array([*xy, height]) - origin)
    place(hand, world, name, xy, height, grasp)
