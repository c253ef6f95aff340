"""The scene: an SO-101 at a table with a drawer, two cups, two blocks, a sponge and a plate. Metres, radians.

Everything that a task handles lies within reach: angle and distance are about the axis of the first joint. The drawer
opens towards that axis. Cups of 5 cm are as high as the jaws can lift over one another.
"""

from pathlib import Path

import mujoco
import numpy as np

from apprentice.simulators.so101.simulator.faults import Faults

ARM = Path(__file__).parent / "arm" / "so101.xml"
SUBSTEPS = 10  # physics steps of 1/300 s in a frame of 1/30 s
PAN = np.array([0.0388, 0.0])  # m, where the first joint's axis meets the table
OBJECTS = ("cup_red", "cup_blue", "block_red", "block_green", "sponge")
EXTRA = ("extra_can", "extra_bar")  # distractors: they stand where nothing is handled
PLATE_RADIUS, CUP_RADIUS, BLOCK_HALF, CUP_HEIGHT = 0.05, 0.030, 0.015, 0.050
SPONGE_HALF = np.array([0.036, 0.020, 0.012])
CABINET_ANGLE, CABINET_FRONT = np.deg2rad(52), 0.275  # where the closed drawer's front is
CABINET_HALF = np.array([0.055, 0.055, 0.033])  # length, width, height
FULLY_OPEN = 0.09
HIDDEN = (-0.25, 0.3)  # where distractors wait that are not there, under the table
FRONT_CAMERA, FRONT_AIM, FRONT_FOV = np.array([0.40, -0.652, 0.424]), np.array([0.13, -0.03, 0.0]), 19.4
WRIST_FOV = 60.0
LAMP = np.array([-0.15, 0.25, -1.0])
GRIP_TORQUE = 0.75  # N m: LeRobot sets the gripper's overload torque at 25 %

_BOX, _CYLINDER = mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_CYLINDER
_SOLID = {"condim": 4}
_WOOD, _LIGHT_WOOD = [0.72, 0.53, 0.35, 1], [0.85, 0.68, 0.48, 1]


def compiled(faults: Faults) -> mujoco.MjModel:
    """The model of an episode: sizes, masses and friction of objects are its own."""
    cups, red, green, sponge = faults.size
    spec = mujoco.MjSpec.from_file(str(ARM))
    spec.option.timestep = 1 / (30 * SUBSTEPS)
    _furnish(spec)
    _cabinet(spec)
    _plate(spec)
    _cup(spec, "cup_red", [0.8, 0.15, 0.12, 1], faults, cups)
    _cup(spec, "cup_blue", [0.12, 0.3, 0.75, 1], faults, cups)
    _block(spec, "block_red", [0.8, 0.1, 0.1, 1], faults, red)
    _block(spec, "block_green", [0.1, 0.6, 0.2, 1], faults, green)
    _sponge(spec, faults, sponge)
    _extras(spec)
    model = spec.compile()
    model.actuator_gainprm[:6, 0], model.actuator_biasprm[:6, 1] = faults.stiffness, -faults.stiffness
    model.actuator_forcerange[5] = [-GRIP_TORQUE, GRIP_TORQUE]
    return model


def looking(place: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Orientation (4,) of a camera at `place` that looks at a point, upright."""
    back = (place - at) / np.linalg.norm(place - at)
    right = np.cross([0, 0, 1.0], back)
    right /= np.linalg.norm(right)
    turn = np.zeros(4)
    mujoco.mju_mat2Quat(turn, np.column_stack([right, np.cross(back, right), back]).ravel())
    return turn


def polar(distance: float, angle: float) -> np.ndarray:
    """The point (2,) at that distance (m) and angle (rad) from the first joint's axis."""
    return PAN + distance * np.array([np.cos(angle), np.sin(angle)])


def _friction(faults: Faults, sliding: float = 1.0) -> list[float]:
    return [sliding * faults.friction, 0.01, 0.0005]


def _furnish(spec: mujoco.MjSpec) -> None:
    """Table, wall, lamp and cameras."""
    spec.visual.headlight.ambient = [0.35] * 3
    spec.visual.headlight.diffuse = [0.35] * 3
    spec.visual.headlight.specular = [0.0] * 3
    spec.add_texture(
        name="table",
        type=mujoco.mjtTexture.mjTEXTURE_2D,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_FLAT,
        mark=mujoco.mjtMark.mjMARK_RANDOM,
        random=0.2,
        rgb1=[0.62, 0.6, 0.57],
        markrgb=[0.55, 0.53, 0.5],
        width=256,
        height=256,
    )
    table = spec.add_material(name="table", texrepeat=[3, 3])
    table.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = "table"
    world = spec.worldbody
    world.add_geom(
        name="table", type=_BOX, size=[0.5, 0.5, 0.02], pos=[0.2, 0, -0.02], material="table", friction=[1, 0.01, 5e-4]
    )
    wall = {"contype": 0, "conaffinity": 0, "rgba": [0.75, 0.77, 0.8, 1], "type": _BOX}
    world.add_geom(size=[0.02, 1.5, 0.8], pos=[-0.6, 0, 0.3], **wall)
    world.add_geom(size=[1.5, 0.02, 0.8], pos=[0, 0.8, 0.3], **wall)
    world.add_light(
        name="lamp",
        type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
        pos=[0.3, -0.3, 1.2],
        dir=LAMP,
        diffuse=[0.6] * 3,
        castshadow=True,
    )
    world.add_camera(name="front", pos=FRONT_CAMERA, quat=looking(FRONT_CAMERA, FRONT_AIM), fovy=FRONT_FOV)


def _free(spec: mujoco.MjSpec, name: str) -> mujoco.MjsBody:
    body = spec.worldbody.add_body(name=name, pos=[0.2, 0, 0.1])
    body.add_freejoint(name=name)
    return body


def _block(spec: mujoco.MjSpec, name: str, rgba: list[float], faults: Faults, scale: float) -> None:
    _free(spec, name).add_geom(
        name=name,
        type=_BOX,
        size=[BLOCK_HALF * scale] * 3,
        rgba=rgba,
        mass=0.02 * faults.mass,
        friction=_friction(faults),
        **_SOLID,
    )


def _cup(spec: mujoco.MjSpec, name: str, rgba: list[float], faults: Faults, scale: float, slats: int = 14) -> None:
    """Hollow and tapered, of slats; nested cups rest floor on floor, for the floor is thick: else they would wedge."""
    low, high, height = 0.021 * scale, CUP_RADIUS * scale, CUP_HEIGHT * scale
    wall, floor = 0.0012, 0.018 * scale
    body = _free(spec, name)
    shared = {"rgba": rgba, "friction": _friction(faults), **_SOLID}
    body.add_geom(
        name=name,
        type=_CYLINDER,
        size=[low - wall, floor / 2, 0],
        pos=[0, 0, floor / 2],
        mass=0.008 * faults.mass,
        **shared,
    )
    taper = np.arctan2(high - low, height)
    for slat in range(slats):
        around = 2 * np.pi * slat / slats
        turn, lean, both = np.zeros(4), np.zeros(4), np.zeros(4)
        mujoco.mju_axisAngle2Quat(turn, np.array([0, 0, 1.0]), around)
        mujoco.mju_axisAngle2Quat(lean, np.array([0, 1.0, 0]), taper)
        mujoco.mju_mulQuat(both, turn, lean)
        middle = (low + high) / 2
        body.add_geom(
            type=_BOX,
            size=[wall, high * np.tan(np.pi / slats) * 1.02, height / 2 / np.cos(taper)],
            pos=[middle * np.cos(around), middle * np.sin(around), height / 2],
            quat=both,
            mass=0.0008 * faults.mass,
            **shared,
        )


def _sponge(spec: mujoco.MjSpec, faults: Faults, scale: float) -> None:
    """Two soft layers, yellow under green."""
    length, width, height = SPONGE_HALF * scale
    soft = {"solref": [0.03, 1.0], "solimp": [0.5, 0.95, 0.006, 0.5, 2], "friction": _friction(faults, 1.2), **_SOLID}
    body = _free(spec, "sponge")
    yellow, green = [0.95, 0.8, 0.2, 1], [0.1, 0.45, 0.2, 1]
    for share, middle, rgba, mass in ((0.75, -0.25, yellow, 0.006), (0.25, 0.75, green, 0.002)):
        body.add_geom(
            type=_BOX,
            size=[length, width, share * height],
            pos=[0, 0, middle * height],
            rgba=rgba,
            mass=mass * faults.mass,
            **soft,
        )


def _cabinet(spec: mujoco.MjSpec) -> None:
    """A cabinet of boxes with a drawer on a slide, which opens along the body's x axis: towards the arm."""
    length, width, half = CABINET_HALF
    wall = 0.004
    place = polar(CABINET_FRONT + 0.006 + length, CABINET_ANGLE)
    yaw = CABINET_ANGLE + np.pi
    cabinet = spec.worldbody.add_body(name="cabinet", pos=[*place, 0.0], quat=[np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)])
    for size, pos in (
        ([length, width, wall / 2], [0, 0, wall / 2]),
        ([length, width, wall / 2], [0, 0, 2 * half - wall / 2]),
        ([length, wall / 2, half], [0, width, half]),
        ([length, wall / 2, half], [0, -width, half]),
        ([wall / 2, width, half], [-length, 0, half]),
    ):
        cabinet.add_geom(type=_BOX, size=size, pos=pos, rgba=_WOOD)
    drawer = cabinet.add_body(name="drawer")
    drawer.add_joint(
        name="drawer",
        type=mujoco.mjtJoint.mjJNT_SLIDE,
        axis=[1, 0, 0],
        range=[0, FULLY_OPEN],
        damping=1.0,
        frictionloss=0.4,
        armature=0.02,
    )
    inner, across, high, floor = length - 0.004, width - wall - 0.0025, 0.022, wall + 0.003
    for size, pos in (
        ([inner, across, 0.002], [0, 0, floor + 0.002]),
        ([inner, 0.002, high], [0, across, floor + high]),
        ([inner, 0.002, high], [0, -across, floor + high]),
        ([0.003, width, half - 0.004], [length + 0.003, 0, half]),
        ([0.002, across, high], [-inner, 0, floor + high]),
    ):
        drawer.add_geom(
            type=_BOX, size=size, pos=pos, rgba=_LIGHT_WOOD, mass=0.02, friction=[0.4, 0.01, 5e-4], **_SOLID
        )
    drawer.add_geom(
        type=_BOX, size=[0.006, 0.018, 0.004], pos=[length + 0.012, 0, half], rgba=[0.2, 0.2, 0.22, 1], mass=0.01
    )


def _plate(spec: mujoco.MjSpec) -> None:
    """Seen, not felt: a plate of 3 mm would sink into blocks."""
    plate = spec.worldbody.add_body(name="plate", mocap=True, pos=[0.2, 0, 0])
    plate.add_geom(
        name="plate",
        type=_CYLINDER,
        size=[PLATE_RADIUS, 0.0006, 0],
        pos=[0, 0, 0.0002],
        rgba=[0.92, 0.92, 0.95, 1],
        contype=0,
        conaffinity=0,
    )


def _extras(spec: mujoco.MjSpec) -> None:
    """Distractors. They do not move, so that they can be anywhere at once."""
    can = spec.worldbody.add_body(name=EXTRA[0], mocap=True, pos=[*HIDDEN, -0.3])
    can.add_geom(type=_CYLINDER, size=[0.018, 0.03, 0], pos=[0, 0, 0.03], rgba=[0.85, 0.5, 0.1, 1])
    bar = spec.worldbody.add_body(name=EXTRA[1], mocap=True, pos=[*HIDDEN, -0.3])
    bar.add_geom(type=_BOX, size=[0.03, 0.012, 0.012], pos=[0, 0, 0.012], rgba=[0.45, 0.2, 0.55, 1])
