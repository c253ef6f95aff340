"""Our shorter way through a physics step against robosuite's own, and episodes that do not depend on those before."""

import numpy as np
import pytest

from apprentice.libero.env import LiberoEnv

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


def test_what_stands_on_a_fixture_stands_there_after_every_reset():
    env = LiberoEnv("libero_spatial", 7)  # a bowl on the stove
    scenes = []
    for seed in (0, 1, 0):
        env.reset(seed=seed)
        scenes.append(env.data.qpos.copy())
        bodies = env.control.env.obj_body_id
        bowl, stove = (env.data.xpos[bodies[name]] for name in ("akita_black_bowl_1", "flat_stove_1"))
        assert bowl[2] > stove[2] and np.abs(bowl - stove)[:2].max() < 0.25
    assert np.array_equal(scenes[0], scenes[2]) and not np.array_equal(scenes[0], scenes[1])
    env.close()
