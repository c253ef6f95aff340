"""Where an object is put: on a thing, in a drawer, a basket or a compartment, beside another that goes there too."""

from dataclasses import dataclass, field

import numpy as np

from apprentice.simulators.libero.demonstrator.articulated import Part, drawer_pull
from apprentice.simulators.libero.demonstrator.controller import UP
from apprentice.simulators.libero.demonstrator.grasping import wrapped, yaw_along
from apprentice.simulators.libero.simulator.geometry import Geometry

IN_BASKET, ON_STOVE = 0.06, 0.10  # m between two objects that go to the same place
SLACK = 0.010  # m below a region that still counts as inside; what stands on a caddy's floor may be lower yet
DRAWER_FRONT = 0.035  # m from the handle to the inside of a drawer's front


@dataclass
class Spot:
    """A goal for the object's origin."""

    xy: np.ndarray  # (2,) m
    height: float  # m
    turn: float = 0.0  # rad, about the vertical
    tilt: np.ndarray = field(default_factory=lambda: np.zeros(3))  # rad, rotation vector
    yaw: float | None = None  # rad, how the hand must stand when it takes the object
    deep: bool = False  # walls all around: the hand stays above them and lets the object drop


def on_object(geometry: Geometry, name: str, other: str) -> Spot:
    xy = geometry.position(other)[:2]
    return Spot(xy, geometry.support_height(xy, (name,), 0.012) + _hang(geometry, name) + 0.004)


def on_region(geometry: Geometry, name: str, site: str, slot: float) -> Spot:
    """`slot` is the object's place among those that go there: 0 alone, else -0.5, 0.5."""
    xy = geometry.site(site)[0][:2] - np.array([slot * ON_STOVE, 0])
    return Spot(xy, geometry.support_height(xy, (name,), 0.03) + _hang(geometry, name) + 0.003)


def on_rack(geometry: Geometry, name: str, rack: str) -> Spot:
    """On the rack's slope beside its post, leant so that a bottle, let go, lies back with its neck upwards."""
    frame, origin = geometry.rotation(rack), geometry.position(rack)
    sides = [(origin + frame @ [x, -0.043, 0])[:2] for x in (-0.05, 0.05)]
    xy = max(sides, key=lambda side: float(np.linalg.norm(side - geometry.base()[:2])))
    tilt = np.deg2rad(40) * np.cross(UP, frame[:, 1])
    return Spot(xy, geometry.support_height(xy, (name,), 0.010), yaw=yaw_along(frame[:, 0]), tilt=tilt)


def in_region(geometry: Geometry, name: str, site: str, slot: float) -> Spot:
    """A basket, tray or compartment."""
    (centre, half), hang = geometry.site(site), _hang(geometry, name)
    axis = int(half[1] > half[0])
    xy = centre[:2] + slot * IN_BASKET * np.eye(2)[axis]
    turn = _turn_into(geometry, name, half) if "caddy" in site else 0.0
    height = geometry.support_height(xy, (name,), 0.01) + hang
    if "caddy" in site and height < centre[2] - half[2] - SLACK:
        return _wedged(Spot(xy, height, turn), half)
    height += 0.004
    basket = "basket" in site
    if basket:
        height = max(height, centre[2] - half[2] + hang + 0.01)
    return Spot(xy, height, turn, deep=basket)


def in_drawer(geometry: Geometry, name: str, site: str) -> Spot:
    """Just behind the drawer's front, where the hand has most room; what is too tall is leant, and falls over."""
    low, high = geometry.bounds(name)
    (pull, handle), (centre, half) = drawer_pull(Part(geometry, site)), geometry.site(site)
    front = (handle - centre) @ pull - DRAWER_FRONT
    xy = (centre + pull * (front - (high - low)[:2].max() / 2 - 0.008))[:2]
    floor = geometry.support_height(xy, (name,), 0.01)
    upright = floor + _hang(geometry, name)
    if upright > centre[2] + half[2] - 0.005:
        return Spot(xy, floor, tilt=np.deg2rad(40) * pull)
    return Spot(xy, upright + 0.019)


def _hang(geometry: Geometry, name: str) -> float:
    """From the object's lowest point up to its origin (m)."""
    return float(geometry.position(name)[2] - geometry.bounds(name)[0][2])


def _wedged(spot: Spot, half: np.ndarray) -> Spot:
    """Leant along a compartment, so that the walls at its ends hold the object up."""
    along = np.eye(3)[int(half[1] > half[0])]
    return Spot(spot.xy - 0.012 * along[:2], spot.height, spot.turn, tilt=np.deg2rad(25) * np.cross(UP, along))


def _turn_into(geometry: Geometry, name: str, half: np.ndarray) -> float:
    """The least turn (rad) that lays the object's long side along that of a compartment, or along any of a square."""
    points = geometry.points(name, 0.008)[:, :2]
    values, vectors = np.linalg.eigh(np.cov(points.T))
    if values[1] < 1.5**2 * values[0]:
        return 0.0
    sides = [axis for axis in (0, 1) if half[axis] > 0.7 * half[1 - axis]]
    turns = [wrapped(axis * np.pi / 2 - np.arctan2(vectors[1, 1], vectors[0, 1])) for axis in sides]
    return min(turns, key=abs)
