"""Goes on with what the hand is doing already: down over the object, with it in the hand, or over its place.

The demonstrator's plans begin above everything. From a state that another policy has reached they would let go of what
is held, or rise from where the next step is down: the opposite of what the same state is labelled with in whole
demonstrations.
"""

import numpy as np

from apprentice.simulators.libero.demonstrator.controller import CLOSE, Controller
from apprentice.simulators.libero.demonstrator.grasping import Grasp, wrapped
from apprentice.simulators.libero.simulator.geometry import Geometry

LEVEL = 0.9  # cosine of how far a hand that holds or comes down may lean
ASIDE, SLOPE, HIGHEST, TURNED = 0.004, 0.25, 0.10, 0.3  # m, m a m, m, rad: a funnel over the grasp
OPENED = 0.07  # m between the fingers
OVER = 0.012  # m beside its place that an object may be let down from


def holds(hand: Controller, geometry: Geometry, name: str) -> bool:
    """Is the object in the closed hand, and lifted?"""
    return hand.gripper == CLOSE and name in geometry.grasped() and not geometry.rests(name)


def present_grasp(hand: Controller, geometry: Geometry, name: str, yaw: float | None, low: float) -> Grasp | None:
    """How the hand holds the object; None if it does not, or not as `pick` is asked to (its `yaw` and `low`)."""
    rotation = hand.rotation
    if not holds(hand, geometry, name) or rotation[2, 2] > -LEVEL or hand.position[2] < low:
        return None
    grasp = Grasp(hand.position, float(np.arctan2(-rotation[0, 0], rotation[1, 0])), 0.0)
    return grasp if yaw is None or abs(wrapped(grasp.yaw - yaw)) < 0.1 else None


def comes_down_on(hand: Controller, grasp: Grasp) -> bool:
    """Is the open hand in the funnel over a grasp, so that it can go straight down?"""
    way, turn = hand.position - grasp.position, hand.rotation.T @ grasp.rotation
    inside = 0 <= way[2] < HIGHEST and np.linalg.norm(way[:2]) < ASIDE + SLOPE * way[2]
    return bool(hand.opening > OPENED and inside and np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1)) < TURNED)


def is_over(geometry: Geometry, name: str, xy: np.ndarray) -> bool:
    """Is the object over `xy` (2,), so that it can be let straight down?"""
    return bool(np.linalg.norm(geometry.position(name)[:2] - xy) < OVER)
