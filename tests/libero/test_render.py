"""The fast renderer against the exact one on the same model, where they must agree to the bit."""

import numpy as np

from apprentice.libero.env import LiberoEnv
from apprentice.libero.render import CAMERAS, Renderer

import mujoco  # isort: skip  after apprentice.libero, which chooses how to draw without a display


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
