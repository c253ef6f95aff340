"""LeRobot's units and ours: degrees of the five joints and the gripper from 0 (closed) to 100; MuJoCo has radians.

Zero is where MuJoCo's model has it: the middle of a joint's range, as in LeRobot's calibration (`MotorNormMode.DEGREES`
counts from the middle of what was recorded; the gripper is `RANGE_0_100`).
"""

import numpy as np

from apprentice.data.contract import Contract, installed
from apprentice.simulators.so101 import VERSION
from apprentice.simulators.so101.suites import FPS, JOINTS

CAMERAS = ("observation.images.front", "observation.images.wrist")
NAMES = tuple(f"{joint}.pos" for joint in JOINTS)  # LeRobot's, of states and actions
UNITS = (*(f"{joint} deg" for joint in JOINTS[:5]), "gripper %")
CLOSED, OPEN = -0.174533, 1.745329  # rad of the gripper's joint


def to_radians(values: np.ndarray) -> np.ndarray:
    """(6,) in LeRobot's units -> rad; a gripper beyond 0 to 100 is held there, as LeRobot does."""
    grip = CLOSED + (OPEN - CLOSED) * np.clip(values[5], 0, 100) / 100
    return np.append(np.deg2rad(values[:5]), grip)


def to_lerobot(joints: np.ndarray) -> np.ndarray:
    """(6,) rad -> LeRobot's units."""
    return np.append(np.rad2deg(joints[:5]), 100 * (joints[5] - CLOSED) / (OPEN - CLOSED))


def image_size(width: int) -> tuple[int, int]:
    """Height and width (px): 4 to 3, as the cameras that people mount have it."""
    return max(1, width * 3 // 4), width


def versions() -> dict[str, str]:
    """Of what decides physics, pictures and tasks."""
    return {**installed("mujoco"), "so101-twin": VERSION}


def contract(width: int, render: str) -> Contract:
    """The conventions of the twin, which are those of a real SO-101 in LeRobot."""
    return Contract(
        cameras=CAMERAS,
        image_size=image_size(width),
        rotation=0,
        state=UNITS,
        action=UNITS,
        gripper="opens",
        fps=FPS,
        render=render,
        versions=versions(),
    )
