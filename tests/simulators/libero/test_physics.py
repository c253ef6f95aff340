"""Our shorter way through a physics step against robosuite's own, and episodes that do not depend on those before."""

import numpy as np
import pytest

from apprentice.simulators.libero.simulator import env as libero_env
from apprentice.simulators.libero.simulator.env import LiberoEnv
from apprentice.simulators.libero.simulator.suites import tasks

import mujoco  # isort: skip  after apprentice.simulators.libero, which chooses how to draw without a display


@pytest.fixture(scope="module")
def env():
    env = LiberoEnv("libero_goal", 1)
    yield env
    env.close()


def states(env, init_state):
    """Press down on the table and the bowl, at random, gripper included."""
    env.reset(seed=init_state, init_state=init_state)
    actions = np.random.default_rng(0).uniform(-1, 1, (60, 7))
    actions[:40, 2] = -1
    after = []
    for action in actions:
        env.step(action)
        after.append(np.concatenate([env.data.qpos, env.data.qvel, env.proprioception()]))
    return np.array(after)


def test_an_episode_is_the_same_after_any_other(env):
    first = states(env, 0)
    other = states(env, 1)
    assert not np.array_equal(first, other)
    assert np.array_equal(first, states(env, 0))


def test_a_step_equals_robosuites_to_the_bit(env, monkeypatch):
    ours = states(env, 2)
    assert env.data.ncon > 0
    sim = env.control.env.sim
    monkeypatch.setattr(sim, "forward", lambda: mujoco.mj_forward(env.model, env.data))
    monkeypatch.setattr(sim, "step", lambda: mujoco.mj_step(env.model, env.data))
    monkeypatch.delattr(env.control.env, "_pre_action")
    assert np.array_equal(ours, states(env, 2))


def test_things_lie_where_a_model_loaded_anew_has_them(monkeypatch):
    """LIBERO's default, `hard_reset=True`, takes seconds and draws other places from the same seed each time: compare
    how things lie on what carries them. One bowl lies in a drawer and moves with its cabinet.
    """
    from libero.libero.envs.env_wrapper import ControlEnv

    monkeypatch.setattr(libero_env, "SETTLE_STEPS", 0)
    ours = LiberoEnv("libero_spatial", 4)
    options = dict(has_offscreen_renderer=False, use_camera_obs=False, ignore_done=True, hard_reset=True)
    anew = ControlEnv(str(tasks("libero_spatial")[4].bddl), **options)
    anew.seed(1)
    anew.reset()
    bodies = ours.control.env.obj_body_id

    def inside(position):
        return position[bodies["akita_black_bowl_1"]] - position[bodies["wooden_cabinet_1"]]

    positions = []
    for seed in (1, 3, 1):
        ours.reset(seed=seed)
        positions.append(ours.data.xpos[list(bodies.values())].copy())
        theirs = anew.env.sim.data._data.xpos
        np.testing.assert_allclose(positions[-1][:, 2], theirs[list(bodies.values())][:, 2], atol=1e-3)
        np.testing.assert_allclose(inside(ours.data.xpos), inside(theirs), atol=0.03)
    np.testing.assert_array_equal(positions[0], positions[2])
    ours.close()
    anew.close()


def test_fixtures_stand_where_lerobots_episode_of_this_number_has_them():
    """A drawer that begins open: each time it loads the model, LIBERO draws one number more before it places things."""
    from libero.libero.envs.env_wrapper import ControlEnv

    ours = LiberoEnv("libero_spatial", 4)
    options = dict(has_offscreen_renderer=False, use_camera_obs=False, ignore_done=True, hard_reset=True)
    anew = ControlEnv(str(tasks("libero_spatial")[4].bddl), **options)
    anew.reset()  # as LeRobot does once
    for episode in range(2):
        anew.seed(episode)
        anew.reset()
        ours.reset(seed=episode, init_state=episode)
        np.testing.assert_array_equal(ours.model.body_pos, anew.env.sim.model._model.body_pos)
    ours.close()
    anew.close()
