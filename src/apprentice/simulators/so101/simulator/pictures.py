"""The two cameras: what they draw, and what a cheap camera in a room makes of it."""

import io

import mujoco
import numpy as np
from PIL import Image, ImageFilter

from apprentice.simulators import contexts
from apprentice.simulators.so101.simulator.faults import Faults
from apprentice.simulators.so101.simulator.scene import FRONT_AIM, FRONT_CAMERA, FRONT_FOV, LAMP, WRIST_FOV, looking
from apprentice.simulators.so101.units import CAMERAS, image_size

CAMERA_NAMES = dict(zip(CAMERAS, ("front", "wrist_cam"), strict=True))
WIDTH_OF_BLUR = 128  # px
SHADOW_MAP = 1024  # px: four times as many take four times as long


def light(model: mujoco.MjModel, faults: Faults) -> None:
    """Put the lamp and the front camera where the episode has them."""
    model.light_dir[-1] = (LAMP + faults.lamp) / np.linalg.norm(LAMP + faults.lamp)
    model.light_diffuse[-1] = np.clip(0.6 * faults.lamp_colour, 0, 1)
    model.vis.headlight.ambient[:] = faults.ambient
    front = model.camera("front").id
    place = FRONT_CAMERA + faults.camera
    model.cam_pos[front] = place
    model.cam_quat[front] = looking(place, FRONT_AIM + np.append(faults.aim, 0))
    model.cam_fovy[front] = FRONT_FOV * faults.fov
    model.cam_fovy[model.camera("wrist_cam").id] = WRIST_FOV * faults.fov


class Cameras:
    """Draws a model. Holds a GL context, so make it late and close it."""

    def __init__(self, model: mujoco.MjModel, width: int, *, shadows: bool):
        height, width = image_size(width)
        model.vis.global_.offheight, model.vis.global_.offwidth = height, width
        model.vis.quality.shadowsize = SHADOW_MAP
        self._renderer = contexts.Renderer(model, height, width)
        self._option = mujoco.MjvOption()
        self._option.geomgroup[:] = [1, 1, 1, 0, 0, 0]  # no colliding shapes of the arm
        self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = shadows

    def draw(self, data: mujoco.MjData) -> dict[str, np.ndarray]:
        """What each camera sees (H, W, 3) uint8."""
        seen = {}
        for key, camera in CAMERA_NAMES.items():
            self._renderer.update_scene(data, camera, self._option)
            seen[key] = self._renderer.render().copy()
        return seen

    def close(self) -> None:
        self._renderer.close()


def spoilt(image: np.ndarray, faults: Faults, rng: np.random.Generator) -> np.ndarray:
    """A picture (H, W, 3) with the episode's exposure, noise, blur and JPEG; the noise is this frame's own."""
    seen = image
    if faults.noise or (faults.gain != 1).any():
        grey, colour = rng.normal(size=(*image.shape[:2], 1)), rng.normal(size=image.shape)
        seen = np.clip(image * faults.gain + faults.noise * (grey + colour / 2), 0, 255).astype(np.uint8)
    if faults.blur or faults.quality:
        picture = Image.fromarray(seen)
        if faults.blur:
            picture = picture.filter(ImageFilter.GaussianBlur(faults.blur * image.shape[1] / WIDTH_OF_BLUR))
        if faults.quality:
            stream = io.BytesIO()
            picture.save(stream, "JPEG", quality=faults.quality)
            picture = Image.open(stream)
        seen = np.array(picture)
    return seen
