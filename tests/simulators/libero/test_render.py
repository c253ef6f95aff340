"""The fast renderer against the exact one on the same model, where they must agree to the bit."""

import numpy as np

from apprentice.simulators.libero.simulator.env import LiberoEnv
from apprentice.simulators.libero.simulator.level_of_detail import LARGEST, lighter, shrink_textures
from apprentice.simulators.libero.simulator.render import CAMERAS, DETAIL, Renderer

import mujoco  # isort: skip  after apprentice.simulators.libero, which chooses how to draw without a display


def test_what_is_left_out_cannot_be_seen(exact: LiberoEnv) -> None:
    """The hand looks down, sideways to the stove's mirror, and over the walls into the sky."""
    exact.reset(seed=1)
    model, data = exact.model, mujoco.MjData(exact.model)
    renderers = [Renderer(model, 64, fast=fast) for fast in (False, True)]
    geoms, group = [], model.geom_group.copy()
    for tilt in (0.0, 0.5, 1.6, 2.6):
        data.qpos[:] = exact.data.qpos
        data.qpos[5] += tilt
        mujoco.mj_kinematics(model, data)
        mujoco.mj_camlight(model, data)
        for camera in CAMERAS.values():
            plain, fast = (renderer.draw(data, camera) for renderer in renderers)
            np.testing.assert_array_equal(fast, plain)
            geoms.append(renderers[1]._renderer.scene.ngeom)
    for renderer in renderers:
        renderer.close()
    assert min(geoms) < max(geoms) / 2
    np.testing.assert_array_equal(model.geom_group, group)


def test_large_textures_are_averaged_and_small_ones_left() -> None:
    textures = [(2 * LARGEST, LARGEST // 4), (LARGEST, 64)]
    model = mujoco.MjModel.from_xml_string(
        "<mujoco><asset>"
        + "".join(
            f'<texture name="{i}" type="2d" builtin="gradient" rgb1="0 1 0" rgb2="1 0 0" mark="random" '
            f'random="0.1" markrgb="1 1 1" width="{width}" height="{height}"/>'
            for i, (width, height) in enumerate(textures)
        )
        + "</asset><worldbody/></mujoco>"
    )
    before = [model.texture(str(i)).data.reshape(height, width, 3).copy() for i, (width, height) in enumerate(textures)]
    shrink_textures(model)
    wide, narrow = before
    corners = np.stack([wide[y::2, x::2] for y in (0, 1) for x in (0, 1)]).astype(float)
    assert model.tex_width.tolist() == [LARGEST, LARGEST] and model.tex_height.tolist() == [LARGEST // 8, 64]
    seen = model.tex_data[: corners[0].size].reshape(corners[0].shape)
    assert np.abs(seen - corners.mean(axis=0)).max() <= 0.5 < np.ptp(corners, axis=0).max()
    start = model.tex_adr[1]
    np.testing.assert_array_equal(model.tex_data[start : start + narrow.size].reshape(narrow.shape), narrow)


def test_cameras_have_meshes_as_fine_as_they_can_show(exact: LiberoEnv) -> None:
    """The arm is near to the agent's camera and hardly in the wrist's view, the mount never; its hand is closest."""
    faces = {}
    for camera, detail in DETAIL.items():
        found = lighter(exact.model, detail)
        for part in ("robot0", "gripper0", "mount0"):
            meshes = [mesh for index, mesh in found.items() if exact.model.mesh(index).name.startswith(part)]
            faces[camera, part] = sum(len(mesh.faces) for mesh in meshes)
    agent, wrist = DETAIL
    assert faces[wrist, "robot0"] < faces[agent, "robot0"] / 3 and faces[wrist, "mount0"] < faces[agent, "mount0"]
    assert faces[wrist, "gripper0"] > faces[agent, "gripper0"]
