"""Each way in which a simulator can be another one is planted, and named alone; the healthy one passes."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from apprentice.common.errors import UserError
from apprentice.evaluate.selfcheck.selfcheck import require
from apprentice.simulators.base import DIFFERS, INVALID, PASSED, Check
from apprentice.simulators.libero.evaluation import examination
from apprentice.simulators.libero.evaluation.examination import compare
from apprentice.simulators.libero.evaluation.references import (
    TASKS,
    Take,
    content_of,
    play,
    reference,
    small_images,
    standard,
)
from apprentice.simulators.libero.simulator.env import LiberoEnv
from apprentice.simulators.libero.simulator.render import Renderer

SUITE = "libero_goal"


@pytest.fixture(scope="module")
def env() -> Iterator[LiberoEnv]:
    env = LiberoEnv(SUITE, TASKS[SUITE])
    yield env
    env.close()


@pytest.fixture(scope="module")
def take(env: LiberoEnv) -> Take:
    return play(env, reference(SUITE).actions)


def failing(take: Take) -> dict[str, Check]:
    return {check.name: check for check in compare(reference(SUITE), take, "fast") if check.verdict != PASSED}


def test_this_simulator_is_the_one(take: Take) -> None:
    assert failing(take) == {}
    assert reference(SUITE).content == content_of(SUITE)
    assert standard("libero_10_object") == "libero_10" and standard("libero_object_lan") == "libero_object"
    with pytest.raises(UserError, match="expected a suite of libero_goal"):
        reference("libero_1")


def drawn(change):
    return lambda self, data, camera: np.ascontiguousarray(change(Renderer_draw(self, data, camera)))


Renderer_draw = Renderer.draw
OTHER = {"agentview": "robot0_eye_in_hand", "robot0_eye_in_hand": "agentview"}


@pytest.mark.parametrize(
    ("fault", "draw", "named"),
    [
        ("orientation", drawn(lambda image: image[::-1, ::-1]), "the scene's camera is turned by 180 degrees"),
        ("orientation", drawn(lambda image: image[::-1]), "the wrist's camera is upside down"),
        (
            "cameras",
            lambda self, data, camera: Renderer_draw(self, data, OTHER[camera]),
            "the wrist's camera, the scene",
        ),
        ("cameras", drawn(lambda image: 0 * image), "correlation"),
        ("picture", drawn(lambda image: image // 2), "off in the mean"),
    ],
)
def test_another_picture_is_named(fault, draw, named, env, take, monkeypatch) -> None:
    env.reset(seed=0, init_state=0)
    monkeypatch.setattr(Renderer, "draw", draw)
    found = failing(replace(take, images=small_images(env)))
    assert list(found) == [fault] and found[fault].verdict == INVALID, found
    assert named in found[fault].found


def test_other_physics_is_named(env: LiberoEnv, take: Take) -> None:
    friction = env.model.geom_friction.copy()
    try:
        env.model.geom_friction[:, 0] = 0.02
        slippery = play(env, reference(SUITE).actions)
    finally:
        env.model.geom_friction[:] = friction
    found = failing(replace(slippery, qpos=take.qpos))
    assert list(found) == ["replay"] and "it fails" in found["replay"].found
    assert failing(replace(take, states=take.states + 0.002))["replay"].verdict == DIFFERS
    assert failing(replace(take, qpos=take.qpos + 0.02))["first state"].verdict == INVALID


def test_it_is_asked_once_and_says_what_differs(monkeypatch, tmp_path, capsys, take) -> None:
    monkeypatch.setenv("APPRENTICE_CACHE", str(tmp_path))
    installed = reference(SUITE).versions
    asked, takes = [], [take]

    def spread(run, jobs, workers):
        asked.append(jobs)
        return takes

    monkeypatch.setattr(examination, "spread", spread)
    monkeypatch.setattr(examination, "versions", lambda: installed | {"mujoco": "3.3.1"})
    for _ in range(2):
        require(SUITE, "fast")
        said = " ".join(capsys.readouterr().out.split())
        assert f"versions: expected mujoco {installed['mujoco']}, found mujoco 3.3.1; fix: pip install mujoco==" in said
    assert len(asked) == 1
    takes[0] = replace(take, success=False)
    require(SUITE, "fast")
    for _ in range(2):
        with pytest.raises(UserError, match=r"replay: expected the reference's demonstration succeeds.* it fails"):
            require(SUITE, "exact")
    assert len(asked) == 3
