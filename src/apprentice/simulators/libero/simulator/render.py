"""Pictures of the simulator: MuJoCo's own, or the same at 128 pixels in a fraction of the time.

A fast renderer leaves out what its camera cannot see; each camera has its own, with as much `detail` as it can show.
"""

import mujoco
import numpy as np

from apprentice.simulators import contexts
from apprentice.simulators.libero.simulator.level_of_detail import AGENT, WRIST, lighter, put, shrink_textures

CAMERAS = {"image": "agentview", "image2": "robot0_eye_in_hand"}
DETAIL = {"agentview": AGENT, "robot0_eye_in_hand": WRIST}
ROUND = [mujoco.mjtGeom.mjGEOM_SPHERE, mujoco.mjtGeom.mjGEOM_CAPSULE, mujoco.mjtGeom.mjGEOM_ELLIPSOID]
HIDDEN = mujoco.mjNGROUP - 1


def renderers(model: mujoco.MjModel, size: int, *, fast: bool) -> dict[str, "Renderer"]:
    """By the name of its camera, what draws it; fast ones change the model's visual meshes and textures in place."""
    if not fast:
        return dict.fromkeys(CAMERAS.values(), Renderer(model, size))
    shrink_textures(model)
    meshes = {camera: lighter(model, detail) for camera, detail in DETAIL.items()}
    made = {}
    for camera, each in meshes.items():
        put(model, each)
        made[camera] = Renderer(model, size, fast=True)
        made[camera].take_nearest_mipmaps()
    return made


class Renderer:
    """Draws cameras of one model. Holds a GL context, so make it late and close it."""

    def __init__(self, model: mujoco.MjModel, size: int, *, fast: bool = False):
        """`fast` leaves out what no ray of the camera meets; the images are the same to the bit."""
        model.vis.global_.offwidth = model.vis.global_.offheight = size  # a larger buffer costs time to clear
        stacks = model.vis.quality.numstacks
        if fast and not np.isin(model.geom_type[model.geom_group == 1], ROUND).any():
            model.vis.quality.numstacks = 4  # rings of faces along a cylinder: it looks the same without
        self._renderer = contexts.Renderer(model, size, size)
        model.vis.quality.numstacks = stacks
        self._option = mujoco.MjvOption()
        self._option.geomgroup[0] = 0  # collision shapes
        self._option.geomgroup[HIDDEN] = self._option.sitegroup[HIDDEN] = 0
        self._model, self._fast = model, fast
        self._group, self._site_group = model.geom_group.copy(), model.site_group.copy()
        box, plane = (model.geom_type == kind for kind in (mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_PLANE))
        shiny = (model.geom_matid >= 0) & (model.mat_reflectance[model.geom_matid] > 0)
        self._mirror = (box | plane) & shiny & (self._option.geomgroup[self._group] == 1)
        self._lift = np.where(box, model.geom_size[:, 2], 0)  # m, from the centre to the face that mirrors

    def draw(self, data: mujoco.MjData, camera: str) -> np.ndarray:
        """The camera's view (H, W, 3) uint8, rotated by 180 degrees as in the published LIBERO datasets.

        Robosuite hands images out bottom-up and the datasets flip them in both directions, so what we see
        is upright and mirrored.
        """
        self._update(data, camera)
        return np.ascontiguousarray(self._renderer.render()[:, ::-1])

    def draw_all(self, data: mujoco.MjData, camera: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`draw`, and for each of its pixels (H, W) how far (m, along the camera's axis) what it shows is, and the
        geom that it shows, -1 for none.
        """
        self._update(data, camera)
        renderer, size = self._renderer, (self._renderer.height, self._renderer.width)
        image, depth = np.empty((*size, 3), np.uint8), np.empty(size, np.float32)
        renderer._gl_context.make_current()
        mujoco.mjr_render(renderer._rect, renderer.scene, self.context)
        mujoco.mjr_readPixels(image, depth, renderer._rect, self.context)
        near, far = np.array([self._model.vis.map.znear, self._model.vis.map.zfar]) * self._model.stat.extent
        metres = near * far / (depth * (far - near) + near)  # the depth buffer is reversed: 1 near, 0 far
        renderer.enable_segmentation_rendering()
        rendered = renderer.render()
        renderer.disable_segmentation_rendering()
        geom = np.where(rendered[..., 1] == int(mujoco.mjtObj.mjOBJ_GEOM), rendered[..., 0], -1)
        return image[::-1, ::-1].copy(), metres[::-1, ::-1].copy(), geom[:, ::-1].copy()

    @property
    def context(self) -> mujoco.MjrContext:
        """What MuJoCo has put on the graphics card: its `mat_texid` says which texture a material wears."""
        return self._renderer._mjr_context

    def _update(self, data: mujoco.MjData, camera: str) -> None:
        if self._fast:
            self._leave_out(data, camera)
        self._renderer.update_scene(data, camera, self._option)
        self._model.geom_group[:], self._model.site_group[:] = self._group, self._site_group

    def take_nearest_mipmaps(self) -> None:
        """Sample textures in one size, in place of a mixture of two: a tenth faster, and 50 dB alike."""
        from OpenGL import GL  # MuJoCo has chosen by now how it is found

        context = self._renderer._mjr_context
        self._renderer._gl_context.make_current()
        for index in range(context.ntexture):
            flat = context.textureType[index] == mujoco.mjtTexture.mjTEXTURE_2D
            target = GL.GL_TEXTURE_2D if flat else GL.GL_TEXTURE_CUBE_MAP
            GL.glBindTexture(target, int(context.texture[index]))
            GL.glTexParameteri(target, GL.GL_TEXTURE_MIN_FILTER, GL.GL_LINEAR_MIPMAP_NEAREST)

    def _leave_out(self, data: mujoco.MjData, camera: str) -> None:
        """Hide the geoms out of view; draw no reflections without a mirror in view, and no sky below the horizon."""
        model, index, flags = self._model, self._model.camera(camera).id, self._renderer.scene.flags
        axes, half = data.cam_xmat[index].reshape(3, 3), np.deg2rad(self._model.cam_fovy[index] / 2)
        eye = data.cam_xpos[index]

        def in_view(centres: np.ndarray) -> np.ndarray:
            right, up, back = ((centres - eye) @ axes).T
            outside = np.maximum(np.abs(right), np.abs(up)) * np.cos(half) + back * np.sin(half)  # m, of one side
            return (outside < model.geom_rbound) | (model.geom_rbound == 0)  # planes have no end

        def behind(mirror: int, centres: np.ndarray) -> np.ndarray:
            """Does a ray that meets the mirror's sphere meet that of a geom at one of the centres?"""
            ways = np.vstack([data.geom_xpos[mirror], centres]) - eye
            far = np.linalg.norm(ways, axis=1)
            radius = np.r_[model.geom_rbound[mirror], model.geom_rbound] / far
            wide = np.arcsin(np.clip(radius, 0, 1))  # rad, half of what the eye sees of a sphere
            between = np.arccos(np.clip(ways[1:] @ ways[0] / (far[1:] * far[0]), -1, 1))
            return (between < wide[0] + wide[1:]) | (radius[0] == 0) | (radius[1:] == 0) | (radius[1:] > 1)

        seen = in_view(data.geom_xpos)
        mirrors = np.flatnonzero(seen & self._mirror)
        for mirror in mirrors:  # MuJoCo draws the scene once more for each: what would be in view if it were behind?
            normal = data.geom_xmat[mirror].reshape(3, 3)[:, 2]
            height = (data.geom_xpos - data.geom_xpos[mirror]) @ normal - self._lift[mirror]
            images = data.geom_xpos - 2 * height[:, None] * normal
            seen |= in_view(images) & behind(mirror, images)
        model.geom_group[~seen] = HIDDEN
        model.site_group[model.site_rgba[:, 3] <= 0] = HIDDEN  # MuJoCo would draw them, in no colour
        steepest = np.tan(half) * (abs(axes[2, 0]) + abs(axes[2, 1])) - axes[2, 2]  # of all rays, in metres per metre
        flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = len(mirrors) > 0
        flags[mujoco.mjtRndFlag.mjRND_SKYBOX] = steepest > 0

    def close(self) -> None:
        self._renderer.close()
