"""Each success predicate, true and false by construction."""

from collections.abc import Callable

import mujoco
import numpy as np
import pytest

from apprentice.simulators.so101.simulator.env import TwinEnv
from apprentice.simulators.so101.suites import BLOCK, BLOCKS, CUPS, DRAWER, SPONGE


def put(env: TwinEnv, name: str, place: np.ndarray, lean: float = 0.0) -> None:
    env.data.joint(name).qpos[:] = [*place, np.cos(lean / 2), np.sin(lean / 2), 0, 0]
    env.data.joint(name).qvel[:] = 0


def held(env: TwinEnv, task: int) -> bool:
    mujoco.mj_forward(env.model, env.data)
    return env.success_of(task)


CASES: list[tuple[int, str, str, list[tuple[np.ndarray, bool]]]] = [
    (
        CUPS,
        "cup_red",
        "cup_blue",
        [([0, 0, 0.019], True), ([0.013, 0, 0.019], False), ([0, 0, 0.005], False), ([0, 0, 0.04], False)],
    ),
    (
        BLOCKS,
        "block_red",
        "block_green",
        [([0.014, 0, 0.03], True), ([0.016, 0, 0.03], False), ([0, 0, 0.035], False), ([0.04, 0, 0], False)],
    ),
    (SPONGE, "sponge", "plate", [([0.044, 0, 0.013], True), ([0.046, 0, 0.013], False), ([0, 0, 0.03], False)]),
    (BLOCK, "block_red", "plate", [([0.034, 0, 0.015], True), ([0.036, 0, 0.015], False), ([0, 0, 0.03], False)]),
]


@pytest.mark.parametrize(("task", "name", "onto", "ways"), CASES)
def test_placing(clean: TwinEnv, task: int, name: str, onto: str, ways: list[tuple[list[float], bool]]) -> None:
    clean.reset(2)
    mujoco.mj_forward(clean.model, clean.data)
    base = clean.data.body(onto).xpos.copy()
    for way, expected in ways:
        put(clean, name, base + way)
        assert held(clean, task) is expected, way
    put(clean, name, base + ways[0][0])
    clean.data.qpos[5] = -0.1745
    assert not held(clean, task), "the gripper is closed"
    clean.data.qpos[5] = 0.05
    clean.data.joint(name).qvel[0] = 0.03
    assert not held(clean, task), "it moves"
    clean.data.joint(name).qvel[0] = 0
    clean.data.site_xpos[clean.model.site("gripperframe").id] = clean.data.body(name).xpos
    assert not clean.success_of(task), "the hand is there"
    assert held(clean, task)


def test_a_cup_must_stand_upright(clean: TwinEnv) -> None:
    clean.reset(2)
    mujoco.mj_forward(clean.model, clean.data)
    put(clean, "cup_red", clean.data.body("cup_blue").xpos + np.array([0, 0, 0.02]), lean=0.4)
    assert not held(clean, CUPS)


@pytest.mark.parametrize(("opened", "expected"), [(0.007, True), (0.009, False), (0.06, False)])
def test_the_drawer(clean: TwinEnv, opened: float, expected: bool) -> None:
    clean.reset(2)
    clean.data.joint("drawer").qpos[0] = opened
    assert held(clean, DRAWER) is expected
    clean.data.joint("drawer").qvel[0] = -0.05
    assert not held(clean, DRAWER), "it moves"


def test_all_tasks_are_possible_in_every_scene(clean: TwinEnv) -> None:
    clean.reset(4)
    done: Callable[[], list[int]] = lambda: [task for task in range(5) if held(clean, task)]  # noqa: E731
    assert done() == []
    clean.data.joint("drawer").qpos[0] = 0.0
    assert done() == [DRAWER]
