"""Renderers that share a context draw what MuJoCo's own, each in its context, draw."""

import mujoco
import numpy as np
import pytest

from apprentice.common.errors import UserError
from apprentice.simulators.contexts import Renderer

SCENE = """<mujoco><visual><global offwidth="64" offheight="48"/></visual>
<asset><texture name="t" type="2d" builtin="checker" width="64" height="64" rgb1="{0}" rgb2="1 1 1"/>
<material name="m" texture="t"/></asset>
<worldbody><light pos="0 0 2"/><geom type="box" size=".2 .2 .2" material="m"/>
<camera name="c" pos="0.5 -1 0.6" xyaxes="1 .5 0 0 .5 1"/></worldbody></mujoco>"""


def drawn(renderer: mujoco.Renderer, model: mujoco.MjModel) -> np.ndarray:
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    renderer.update_scene(data, "c")
    return renderer.render().copy()


@pytest.mark.parametrize("closed", [0, 1])
def test_each_draws_its_own_in_turns_and_after_the_other_is_closed(closed: int) -> None:
    models = [mujoco.MjModel.from_xml_string(SCENE.format(colour)) for colour in ("1 0 0", "0 0 1")]
    wanted = []
    for model in models:
        with mujoco.Renderer(model, 48, 64) as alone:
            wanted.append(drawn(alone, model))
    assert np.abs(wanted[0].astype(int) - wanted[1]).max() > 100
    renderers = [Renderer(model, 48, 64) for model in models]
    for number in (0, 1, 0, 1):
        np.testing.assert_array_equal(drawn(renderers[number], models[number]), wanted[number])
    renderers[closed].close()
    np.testing.assert_array_equal(drawn(renderers[1 - closed], models[1 - closed]), wanted[1 - closed])
    renderers[1 - closed].close()


def test_what_cannot_be_drawn_is_said() -> None:
    model = mujoco.MjModel.from_xml_string(SCENE.format("1 0 0"))
    with pytest.raises(UserError, match=r"expected to draw 128 px through .*, found ValueError: (.|\n)*; fix: "):
        Renderer(model, 48, 128)  # the buffer is 64 wide
