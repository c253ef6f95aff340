"""Corrections: when the demonstrator takes over, how it goes on; the dataset replays, however it came about."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests import support

from apprentice.common.errors import UserError
from apprentice.data.dataset import column, open_dataset
from apprentice.evaluate.correct import CorrectConfig, correct
from apprentice.evaluate.episode.handover import BEFORE, DRAWN, EARLIER, SOLVED, Handover, hand_over
from apprentice.simulators.base import Record
from apprentice.simulators.collection import episode_jobs
from apprentice.simulators.libero.dataset import doctor as doctors
from apprentice.simulators.libero.demonstrator.controller import SLEW, Style
from apprentice.simulators.libero.demonstrator.demonstrator import demonstrate, solve
from apprentice.simulators.libero.demonstrator.scripted import Scripted
from apprentice.simulators.libero.simulator import env as libero_env
from apprentice.simulators.libero.simulator.env import LiberoEnv

POLICY, TASK, BOWL = "assets/seer", 8, "akita_black_bowl_1"  # put the bowl on the plate


@pytest.fixture(scope="module")
def env() -> Iterator[LiberoEnv]:
    env = LiberoEnv("libero_goal", TASK)
    yield env
    env.close()


@pytest.fixture(scope="module")
def shown(env: LiberoEnv) -> Record:
    """A demonstration, as what a policy does."""
    episode = demonstrate(env, 0)
    assert episode.failure is None
    return episode.record


@pytest.fixture
def roll(env: LiberoEnv, shown: Record) -> Callable[..., Handover]:
    """Lets a policy that does what was shown act for a number of steps; in place of its own actions, `then`."""

    def act(least: int, most: int, then: tuple[int, np.ndarray] | None = None) -> Handover:
        env.reset(seed=0, start_noise=0.04)
        actions = np.array(shown.executed)
        if then is not None:
            actions = np.concatenate([actions[: then[0]], np.tile(then[1], (300, 1))])
        plans = iter(actions[:, None])
        found = hand_over(env, Scripted(), lambda: next(plans), np.random.default_rng(0), (least, most), noise=0.0)
        assert isinstance(found, Handover)
        return found

    return act


def closing(record: Record) -> int:
    """The first step that closes the fingers."""
    return int(np.argmax(np.array(record.executed)[:, 6] > 0))


def test_what_is_in_the_hand_is_carried_on(env: LiberoEnv, shown: Record, roll: Callable[..., Handover]) -> None:
    """Asked for a step of closing, the policy acts on until the object is in the air: then no finger opens before the
    place, nothing jumps, and it takes fewer steps than to begin again with open fingers."""
    first = closing(shown)
    found = roll(first + 2, first + 2)
    assert found.kind == DRAWN and found.held and first + 4 < found.step < first + 30 and found.action[6] > 0
    geometry = env.geometry()
    env.resume(found.state)
    assert BOWL in geometry.grasped() and not geometry.rests(BOWL)
    anew = solve(env, Style(), np.random.default_rng(0))
    env.reset(seed=5)
    env.resume(found.state)
    height = geometry.position(BOWL)[2]
    resumed = solve(env, Style(), np.random.default_rng(0), found.action)
    assert resumed.failure is None and len(resumed.record.actions) < len(anew.record.actions)
    actions = np.array(resumed.record.actions)
    released = int(np.argmax(actions[:, 6] < 0))
    assert anew.record.actions[0][6] < 0 < actions[0, 6] and released > 10
    assert np.abs(actions[0, :6] - found.action[:6]).max() <= SLEW + 1e-6
    env.resume(found.state)
    for action, snapshot in zip(resumed.record.executed[:released], resumed.record.snapshots, strict=False):
        np.testing.assert_array_equal(env.proprioception(), snapshot.state)
        assert geometry.held(BOWL)
        env.step(action)
    to_plate = geometry.position(BOWL)[:2] - geometry.position("plate_1")[:2]
    assert np.linalg.norm(to_plate) < 0.03 and height > geometry.table_height()


def test_from_above_the_object_the_hand_goes_straight_down(
    env: LiberoEnv, shown: Record, roll: Callable[..., Handover]
) -> None:
    first = closing(shown)
    above = np.array([snapshot.state[2] for snapshot in shown.snapshots[: first + 1]])
    step = int(np.flatnonzero(above > above[-1] + 0.015)[-1])  # 15 mm over the grasp
    found = roll(step, step)
    assert found.kind == DRAWN and found.step == step and not found.held and found.action[6] < 0
    env.resume(found.state)
    record = solve(env, Style(), np.random.default_rng(0), found.action).record
    heights = np.array([snapshot.state[2] for snapshot in record.snapshots])[: closing(record) + 1]
    assert len(heights) < 40 and heights.max() < heights[0] + 0.005 and heights[-1] < heights[0] - 0.01


def test_the_demonstrator_takes_over_before_a_mistake(
    env: LiberoEnv, shown: Record, roll: Callable[..., Handover], monkeypatch: pytest.MonkeyPatch
) -> None:
    shut = np.array([0, 0, 0.3, 0, 0, 0, 1.0])
    missed = roll(100, 120, then=(15, shut))  # closes in the air, after 15 steps
    assert missed.kind == EARLIER and 15 - BEFORE <= missed.step <= 15 and missed.action[6] < 0 and not missed.held
    problem = env.control.env.parsed_problem
    monkeypatch.setitem(problem, "goal_state", [list(goal) for goal in env.goals_of(5)])  # drags the plate
    assert roll(60, 70, then=(15, shut)).kind == DRAWN
    monkeypatch.setitem(problem, "goal_state", [list(goal) for goal in env.goals_of(2)])  # the wine bottle
    wrong = roll(100, 120)
    assert wrong.kind == EARLIER and wrong.step <= closing(shown) and wrong.action[6] < 0


def test_what_the_policy_solves_is_handed_over_before(shown: Record, roll: Callable[..., Handover]) -> None:
    solved = shown.successes.index(True)
    found = roll(solved + 20, solved + 40)
    assert found.kind == SOLVED and found.step <= solved


def test_corrections_go_on_after_an_interruption_to_the_same_bytes_and_replay(
    tmp_path: Path, env: LiberoEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    setting = CorrectConfig(
        policy=POLICY, suite="libero_goal", out=stopped, tasks=[TASK], episodes=2, steps=[5, 60], noise=0.2
    )
    monkeypatch.setattr(libero_env, "_kept", [env])
    monkeypatch.setattr(episode_jobs, "spread", support.interrupted_here)
    with pytest.raises(KeyboardInterrupt):
        correct(setting)
    assert not stopped.exists() and len(list(stopped.with_name(".stopped.episodes").glob("*.npz"))) == 1

    for module in (episode_jobs, doctors):
        monkeypatch.setattr(module, "spread", support.spread_here)
    with pytest.raises(UserError, match="policy_noise"):
        correct(replace(setting, noise=0.1))
    summary = correct(setting)
    assert correct(replace(setting, out=whole)) == summary
    files = sorted(file.relative_to(whole) for file in whole.rglob("*") if file.is_file())
    assert Path("meta/starts.npz") in files
    assert [file for file in files if (whole / file).read_bytes() != (stopped / file).read_bytes()] == []
    assert all(check.passed for check in doctors.examine(stopped, 2, 1))

    dataset, kept = open_dataset(stopped), episode_jobs.scenes(stopped)
    begin = np.cumsum([0, *dataset.meta.episodes["length"]])[:2]
    np.testing.assert_array_equal(column(dataset, "observation.state")[begin], [s.start.state for s in kept])
    assert all(1_000_000_000 <= scene.seed < 2_000_000_000 for scene in kept)
    for scene in kept:  # a reset alone does not bring the policy's state about
        env.reset(seed=scene.seed, start_noise=scene.start_noise)
        assert np.abs(env.proprioception()[:3] - scene.start.state[:3]).max() > 0.01


@pytest.mark.parametrize("steps", [[5], [9, 5], [0, 5], [5, 1000]])
def test_a_range_of_steps_that_is_none_is_refused(steps: list[int], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="steps"):
        correct(CorrectConfig(policy=POLICY, suite="libero_goal", episodes=1, out=tmp_path / "out", steps=steps))
