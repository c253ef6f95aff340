"""Our shorter way through a physics step against robosuite's own, and episodes that do not depend on those before."""

import numpy as np
import pytest

from apprentice.libero import env as libero_env
from apprentice.libero.env import LiberoEnv
from apprentice.libero.suites import tasks

import mujoco  # isort: skip  after apprentice.libero, which chooses how to draw without a display


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
    assert np.array_equal(ours, states(env, 2))


def test_a_reset_equals_one_that_loads_the_model_anew(monkeypatch):
    """LIBERO's default, `hard_reset=True`, takes seconds. The bowl lies in a drawer, so it moves with a fixture."""
    from libero.libero.envs.env_wrapper import ControlEnv

    monkeypatch.setattr(libero_env, "SETTLE_STEPS", 0)
    ours = LiberoEnv("libero_spatial", 4)
    options = dict(has_offscreen_renderer=False, use_camera_obs=False, ignore_done=True, hard_reset=True)
    anew = ControlEnv(str(tasks("libero_spatial")[4].bddl), **options)
    for seed in (3, 1):
        ours.reset(seed=seed)
    anew.seed(1)
    anew.reset()
    model, data = anew.env.sim.model._model, anew.env.sim.data._data
    for name in ("qpos", "qvel"):
        np.testing.assert_array_equal(getattr(ours.data, name), getattr(data, name))
    for name in ("body_pos", "body_quat", "site_rgba"):
        np.testing.assert_array_equal(getattr(ours.model, name), getattr(model, name))
    ours.close()
    anew.close()
