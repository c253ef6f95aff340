"""What moves on a hinge or a rail: drawers, the stove's knob, the microwave's door."""

import numpy as np

from apprentice.simulators.libero.demonstrator.controller import CLOSE, DOWN, OPEN, UP, Controller, Failure
from apprentice.simulators.libero.demonstrator.grasping import TIP, about_z, leaning, wrapped, yaw_along
from apprentice.simulators.libero.simulator.geometry import Geometry

DRAWER_OPEN, DRAWER_SHUT = -0.150, 0.001  # m, beyond what the goals ask
MOST_COVERED, UNCOVERED = 0.030, 0.018  # m of an object under a drawer: that can still be grasped, and to leave
LOW_HANDLE = 0.09  # m above the table: a level hand would touch it
KNOB_ON, KNOB_OFF = 0.62, -0.001  # rad
DOOR_OPEN, DOOR_AJAR, DOOR_SHUT = -1.40, -0.80, -0.001  # rad


class Part:
    """The drawer of a region, or the door or knob of a fixture: one joint and the body it moves."""

    def __init__(self, geometry: Geometry, name: str):
        self.geometry = geometry
        if geometry.is_site(name):
            self._joint = geometry.model.joint(geometry.domain.object_sites_dict[name].joints[0]).id
        else:
            bodies = geometry.model.jnt_bodyid
            self._joint = next(joint for joint, body in enumerate(bodies) if geometry.owner[body] == name)
        self.body = int(geometry.model.jnt_bodyid[self._joint])
        self.geoms = [geom for geom in geometry.solid if geometry.model.geom_bodyid[geom] == self.body]

    @property
    def value(self) -> float:
        """How far the joint is (m or rad)."""
        return float(self.geometry.data.qpos[self.geometry.model.jnt_qposadr[self._joint]])

    @property
    def axis(self) -> np.ndarray:
        return self.geometry.data.xaxis[self._joint].copy()

    @property
    def anchor(self) -> np.ndarray:
        return self.geometry.data.xanchor[self._joint].copy()

    @property
    def rotation(self) -> np.ndarray:
        return self.geometry.data.xmat[self.body].reshape(3, 3).copy()

    def foremost(self, direction: np.ndarray) -> np.ndarray:
        """Centre (3,) of the geom that sticks out most: the handle."""
        geom = max(self.geoms, key=lambda g: float(self.geometry.data.geom_xpos[g] @ direction))
        return self.geometry.data.geom_xpos[geom].copy()


def drawer_pull(drawer: Part) -> tuple[np.ndarray, np.ndarray]:
    """The direction (3,) in which a drawer opens, and where (3,) its handle is."""
    pull = -drawer.axis
    return pull, drawer.foremost(pull)


def open_drawer(hand: Controller, geometry: Geometry, site: str, until: float = DRAWER_OPEN) -> None:
    """Pull the drawer's handle from in front. Raises Failure."""
    drawer = Part(geometry, site)
    low = drawer_pull(drawer)[1][2] < geometry.table_height() + LOW_HANDLE
    for lean in (60, 55) if low else (90, 70):
        (_hook if low else _grip)(hand, drawer, np.deg2rad(lean), until)
        if drawer.value < until + 0.02:
            return
    raise Failure(f"drawer open by {-drawer.value:.3f} m only")


def _grip(hand: Controller, drawer: Part, lean: float, until: float) -> None:
    """Take the handle with a level hand, one finger above and one below, and pull."""
    pull, handle = drawer_pull(drawer)
    level = leaning(-pull, lean, yaw_along(pull))
    fingers = level[:, 2]
    hand.gripper = OPEN
    before = handle + 0.16 * pull
    before[2] = max(hand.position[2], handle[2] + 0.04)
    hand.go(hand.vary(before), level, near=0.05, turned=0.5)
    hand.go(handle - 0.08 * fingers, level, near=0.015, turned=0.12)
    hand.go(handle + 0.004 * fingers, level, near=0.008, turned=0.15, steps=50)
    hand.close(handle + 0.004 * fingers, level)
    end = handle + (abs(until - drawer.value) + 0.03) * pull
    hand.go(end, level, near=0.004, steps=90, gain=2.5, until=lambda: drawer.value < until)
    hand.release(0.07 * pull)
    hand.go(hand.position + 0.12 * UP, leaning(-pull, 0.5, yaw_along(pull)), near=0.07, steps=30)


def _hook(hand: Controller, drawer: Part, lean: float, until: float) -> None:
    """Where a level hand would touch the table: put closed finger tips behind the handle's bar from above, and pull."""
    pull, handle = drawer_pull(drawer)
    leant = leaning(-pull, lean, yaw_along(np.cross(pull, UP)))
    behind = handle - 0.014 * pull + 0.012 * UP - TIP * leant[:, 2]
    hand.gripper = CLOSE
    before = behind + 0.10 * pull
    before[2] = max(hand.position[2] - 0.05, behind[2] + 0.10)
    hand.go(hand.vary(before), leant, near=0.03, turned=0.3, steps=100)
    hand.go(behind + 0.03 * pull + 0.03 * UP, leant, near=0.012, turned=0.1, steps=60)
    hand.go(behind + 0.015 * UP, leant, near=0.005, turned=0.08, steps=30)
    hand.go(behind - 0.010 * UP, leant, near=0.004, steps=12)
    start, value = hand.position, drawer.value
    for _ in range(90):
        if drawer.value < until:
            break
        target = start + (value - drawer.value + 0.05) * pull - 0.025 * UP
        hand.guide(target, leant)
    hand.go(hand.position + 0.06 * UP - 0.01 * pull, leant, near=0.02, steps=20)
    hand.go(hand.position + 0.08 * UP + 0.05 * pull, leant, near=0.05, steps=20)


def way_aside(geometry: Geometry, site: str, name: str) -> np.ndarray:
    """How far (3,) m an object must move sideways so that the open drawer will not hide it; zeros if it need not."""
    drawer = Part(geometry, site)
    pull, handle = drawer_pull(drawer)
    side = np.cross(pull, UP)
    thing, box = geometry.points(name, 0.01), geometry.fill(drawer.geoms, 0.01)
    if (thing @ pull).min() > handle @ pull - DRAWER_OPEN:
        return np.zeros(3)
    inside = float((thing @ side).max() - (box @ side).min())  # what the drawer would cover, seen from one side
    across = float((box @ side).max() - (thing @ side).min())  # and from the other
    covered, direction = min((inside, -side), (across, side), key=lambda pair: pair[0])
    return direction * (covered - UNCOVERED) if covered > MOST_COVERED else np.zeros(3)


def close_drawer(hand: Controller, geometry: Geometry, site: str) -> None:
    """Push the handle with closed fingers. Raises Failure."""
    drawer = Part(geometry, site)
    pull, handle = drawer_pull(drawer)
    handle[2] = max(handle[2] + 0.006, geometry.table_height() + 0.03)
    leant = leaning(-pull, np.deg2rad(50), yaw_along(np.cross(pull, UP)))
    hand.gripper = CLOSE
    before = handle + 0.12 * pull
    over = hand.vary(np.array([*before[:2], max(hand.position[2], handle[2] + 0.12)]))
    hand.go(over, leant, near=0.03, turned=0.3, steps=100)
    hand.go(handle + 0.05 * pull, leant, near=0.012, turned=0.2, steps=70)
    inside = handle - (abs(drawer.value) + 0.06) * pull
    hand.go(inside, leant, near=0.004, steps=120, gain=2.0, until=lambda: drawer.value > DRAWER_SHUT)
    hand.go(hand.position + 0.02 * pull, leant, near=0.005, steps=12, speed=0.3)  # or the drawer springs back
    hand.go(hand.position + 0.04 * pull, leant, near=0.02, steps=30)
    hand.go(hand.position + 0.12 * UP, leant, near=0.03, steps=30)
    if drawer.value < 0:
        raise Failure(f"drawer still open by {-drawer.value:.3f} m")


def turn_knob(hand: Controller, geometry: Geometry, stove: str, on: bool) -> None:
    """Grasp the knob's raised bar near its far end and lead it along its arc; its inertia makes it slow.

    Raises Failure.
    """
    knob = Part(geometry, stove)
    centre, start = knob.anchor, knob.value
    points = geometry.fill(knob.geoms, 0.003)
    top = points[:, 2].max()
    bar = points[points[:, 2] > centre[2] + 0.03][:, :2] - centre[:2]
    farthest = bar[np.linalg.norm(bar, axis=1).argmax()]
    along = np.linalg.eigh(np.cov(bar.T))[1][:, 1]
    along = along * np.sign(along @ farthest)
    radius, aside = (bar @ along).max() - 0.014, np.median(bar @ [-along[1], along[0]])
    distance = np.linalg.norm((centre - geometry.base())[:2])
    lean = np.deg2rad(np.clip((0.5 - distance) / 0.2 * 35, 0, 35))  # a knob close to the base is out of reach upright
    first = wrapped(np.arctan2(along[1], along[0]))

    def pose(value: float) -> tuple[np.ndarray, np.ndarray]:
        turned = about_z(value - start)
        offset = turned @ np.array([*along, 0]) * radius + turned @ np.array([-along[1], along[0], 0]) * aside
        position = np.array([*(centre + offset)[:2], top - 0.014])
        return position, about_z(first + value - start) @ leaning(np.array([-1.0, 0, 0]), lean, 0.0)

    position, rotation = pose(start)
    hand.gripper = OPEN
    over = np.array([*position[:2], max(hand.position[2] - 0.05, top + 0.10)])
    hand.go(hand.vary(over), rotation, near=0.03, turned=0.3, steps=100)
    hand.go(position - 0.05 * rotation[:, 2], rotation, near=0.01, turned=0.1, steps=50)
    hand.go(position, rotation, near=0.005, turned=0.08, steps=40)
    hand.close(position, rotation)
    for _ in range(160):
        if knob.value > KNOB_ON if on else knob.value < KNOB_OFF:
            break
        hand.guide(*pose(knob.value + (0.7 if on else -0.7)))
    hand.release(-0.08 * hand.rotation[:, 2])
    if not geometry.holds(("turnon" if on else "turnoff", stove)):
        raise Failure(f"knob at {knob.value:.2f} rad")


def close_door(hand: Controller, geometry: Geometry, name: str) -> None:
    """Sweep a hinged door shut from outside. Raises Failure."""
    door = Part(geometry, name)
    _sweep(hand, geometry, door, name, DOOR_SHUT, 0.0)
    if not geometry.holds(("close", name)):
        raise Failure(f"door still open by {-door.value:.2f} rad")


def open_door(hand: Controller, geometry: Geometry, name: str) -> None:
    """Pull a hinged door by its handle until the hand fits behind it, and sweep it open from inside. Raises Failure."""
    door = Part(geometry, name)
    yaw = yaw_along(geometry.rotation(name)[:, 0])
    if door.value > DOOR_AJAR + 0.05:
        _pull_ajar(hand, door, yaw)
    _sweep(hand, geometry, door, name, DOOR_OPEN, yaw)
    if not geometry.holds(("open", name)):
        raise Failure(f"door open by {-door.value:.2f} rad only")


def _sweep(hand: Controller, geometry: Geometry, door: Part, name: str, until: float, yaw: float) -> None:
    """Move a door with closed fingers that point down beside it."""
    hinge, start, frame = door.anchor, door.value, door.rotation
    sign = -1 if until > start else 1  # pushed from outside to shut it, from inside to open it
    panel = max(door.geoms, key=lambda geom: float(np.prod(geometry.model.geom_aabb[geom][3:])))
    local = (geometry.fill([panel], 0.01) - hinge) @ frame
    reach, face = local[:, 0].max() - 0.055, sign * (sign * local[:, 1]).max()
    height = geometry.bounds(name)[1][2] - 0.02

    def beside(value: float, gap: float) -> np.ndarray:
        offset = frame @ about_z(value - start) @ np.array([reach, face + sign * gap, 0])
        return np.array([*(hinge + offset)[:2], height])

    down = about_z(yaw) @ DOWN
    before = beside(start, 0.06 if sign < 0 else 0.04)
    hand.gripper = CLOSE
    over = np.array([*hand.position[:2], max(hand.position[2], height + 0.12)])
    hand.go(over, down, near=0.03, turned=0.6, steps=60)
    hand.go(hand.vary(np.array([*before[:2], height + 0.10])), down, near=0.03, turned=0.3, steps=120)
    hand.go(before, down, near=0.015, turned=0.2, steps=60)
    for _ in range(200):
        if sign * door.value < sign * until:
            break
        ahead = min(max(door.value - sign * 0.35, until - 0.05), 0.05)
        hand.guide(beside(ahead, -0.02 if door.value > -0.2 else 0.0), down)
    hand.go(beside(door.value, 0.06), down, near=0.03, steps=20)
    hand.go(hand.position + 0.10 * UP, down, near=0.03, steps=30)


def _pull_ajar(hand: Controller, door: Part, yaw: float) -> None:
    """Take a door's handle with a level hand and lead it along the first part of its arc."""
    hinge, start, frame = door.anchor, door.value, door.rotation
    inward = frame[:, 1]
    radius = door.foremost(-inward) - hinge
    level = leaning(inward, np.deg2rad(80), yaw)
    handle, fingers = hinge + radius, level[:, 2]
    hand.gripper = OPEN
    before = handle - 0.16 * inward
    before[2] = max(hand.position[2], handle[2] + 0.04)
    hand.go(hand.vary(before), level, near=0.03, turned=0.4)
    hand.go(handle - 0.08 * fingers, level, near=0.012, turned=0.12)
    hand.go(handle, level, near=0.008, turned=0.15, steps=50)
    hand.close(handle, level)
    for _ in range(100):
        if door.value < DOOR_AJAR:
            break
        ahead = about_z(door.value - 0.25 - start)
        hand.guide(hinge + ahead @ radius, about_z(0.5 * (door.value - start)) @ level)
    hand.release(-0.07 * hand.rotation[:, 2])
