"""Pictures of the simulator: MuJoCo's own renderer, and lighter visual meshes that look the same at 128 pixels."""

import mujoco
import numpy as np

CAMERAS = {"image": "agentview", "image2": "robot0_eye_in_hand"}


class Renderer:
    """Draws cameras of one model. Holds a GL context, so make it late and close it."""

    def __init__(self, model: mujoco.MjModel, size: int):
        self._renderer = mujoco.Renderer(model, size, size)
        self._option = mujoco.MjvOption()
        self._option.geomgroup[0] = 0  # collision shapes

    def draw(self, data: mujoco.MjData, camera: str) -> np.ndarray:
        """The camera's view (H, W, 3) uint8, rotated by 180 degrees as in the published LIBERO datasets.

        Robosuite hands images out bottom-up and the datasets flip them in both directions, so what we see
        is upright and mirrored.
        """
        self._renderer.update_scene(data, camera, self._option)
        return np.ascontiguousarray(self._renderer.render()[:, ::-1])

    def close(self) -> None:
        self._renderer.close()


def simplify(model: mujoco.MjModel) -> None:
    """Decimate the visual meshes of a compiled model in place."""
