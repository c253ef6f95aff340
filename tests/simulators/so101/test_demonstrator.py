"""The demonstrator solves each task; how an episode failed is told; demonstrations are collected and replayed."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests import support

from apprentice.common.errors import UserError
from apprentice.data.contract import Contract
from apprentice.data.dataset import column, open_dataset
from apprentice.simulators.collection import episode_jobs
from apprentice.simulators.collection.collect import collect
from apprentice.simulators.collection.config import CollectConfig
from apprentice.simulators.collection.doctor import doctor, recorded_in
from apprentice.simulators.so101 import doctor as doctors
from apprentice.simulators.so101.demonstrator.scripted import Scripted
from apprentice.simulators.so101.failures import (
    DROPPED,
    ELSEWHERE,
    MEANINGS,
    MISSED,
    NEVER_REACHED,
    TIMED_OUT,
    WRONG_OBJECT,
    FailureObserver,
)
from apprentice.simulators.so101.interface import TWIN
from apprentice.simulators.so101.simulator.env import TwinEnv
from apprentice.simulators.so101.suites import BLOCK, BLOCKS, DRAWER, SPONGE, TASK_NAMES
from apprentice.simulators.so101.units import CAMERAS, NAMES


@pytest.mark.parametrize("task", range(5), ids=TASK_NAMES)
def test_it_solves_each_task(task: int) -> None:
    env = TwinEnv("so101_twin_clean", task)
    found = Scripted().demonstrate(env, 1)
    assert found.failure is None and not found.retries and env.success_of(task)
    actions = np.array(found.record.actions)
    assert len(actions) < env.max_steps and actions.dtype == np.float32 and actions.shape[1] == 6
    assert np.abs(np.diff(actions[:, :5], axis=0)).max() < 12, "no jumps: degrees a frame"
    assert actions[:, 5].min() >= 0 and actions[:, 5].max() <= 100


@pytest.fixture
def played() -> Callable[[int, int, float], tuple[TwinEnv, list[np.ndarray]]]:
    """Actions of a demonstration of `shown`, up to a part of it, played in a fresh episode."""

    def play(shown: int, seed: int, part: float) -> tuple[TwinEnv, list[np.ndarray]]:
        env = TwinEnv("so101_twin_clean", shown)
        actions = Scripted().demonstrate(env, seed).record.actions
        env.reset(seed)
        return env, actions[: int(part * len(actions))]

    return play


def test_kinds_of_failure(played: Callable[[int, int, float], tuple[TwinEnv, list[np.ndarray]]]) -> None:
    env, actions = played(BLOCK, 1, 1.0)
    kinds: dict[str, set[str]] = {}

    def watch(name: str, task: int, chosen: list[np.ndarray], then: int = 0) -> None:
        env.reset(1)
        observer = FailureObserver(env, task)
        for action in [*chosen, *[chosen[-1]] * then]:
            env.step(action)
            observer.observe(action)
        kinds[name] = {observer.kind()}

    wide = [np.append(action[:5], 60.0).astype(np.float32) for action in actions]
    lifted = next(
        number for number in range(len(actions) - 1, 0, -1) if actions[number][5] < 10 and actions[number - 20][5] < 10
    )
    watch("the arm never moves", BLOCK, [actions[0]] * 10)
    watch("the jaws stay open", BLOCK, wide, then=70)
    watch("another object is wanted", SPONGE, actions)
    watch("the drawer is wanted", DRAWER, actions)
    watch("in the hand at the end", BLOCK, actions[: lifted - 25])
    opened = actions[: lifted - 25] + [np.append(actions[lifted - 26][:5], 60.0).astype(np.float32)] * 40
    watch("let go in the air", BLOCKS, opened)
    watch("on the plate, not on the block", BLOCKS, actions, then=20)
    assert kinds == {
        "the arm never moves": {NEVER_REACHED},
        "the jaws stay open": {MISSED},
        "another object is wanted": {WRONG_OBJECT},
        "the drawer is wanted": {WRONG_OBJECT},
        "in the hand at the end": {TIMED_OUT},
        "let go in the air": {DROPPED},
        "on the plate, not on the block": {ELSEWHERE},
    }
    assert {kind for found in kinds.values() for kind in found} <= set(MEANINGS)


def test_it_takes_over_from_where_a_policy_stopped() -> None:
    env, demonstrator = TwinEnv("so101_twin", BLOCK), Scripted()
    demonstrator.begin(env, 2)
    watcher, noise = demonstrator.watch(env), demonstrator.noise(0.3, np.random.default_rng(0))
    action = env.to_action(env.start)
    for _ in range(15):
        executed = noise.disturbed(action)
        env.step(executed)
        watcher.observe(executed)
    assert watcher.usable and watcher.mistake is None and not np.array_equal(executed, action)
    state = env.capture()
    kept = demonstrator.state({key: np.asarray(value) for key, value in vars(state).items()})
    env.resume(kept)
    found = demonstrator.take_over(env, 2, executed)
    assert found.failure is None and env.success_of(BLOCK)
    np.testing.assert_allclose(found.record.actions[0][:5], executed[:5], atol=4)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two episodes of the drawer, collected here, in small pictures."""
    out = tmp_path_factory.mktemp("collected") / "twin"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(episode_jobs, "spread", support.spread_here)
        collect(CollectConfig(suite="so101_twin", episodes=2, out=out, tasks=[DRAWER], workers=1, size=64))
    return out


def test_collected_episodes_replay_and_the_doctor_finds_what_is_wrong(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctors, "spread", support.spread_here)
    info = open_dataset(dataset).meta
    assert info.fps == 30 and info.features[CAMERAS[0]]["shape"] == (48, 64, 3)
    assert info.features["action"]["names"] == list(NAMES), "as a follower of LeRobot records them"
    assert recorded_in(dataset) is TWIN
    assert Contract.of_dataset(dataset) == TWIN.contract("so101_twin", 64, "fast")
    assert doctor(dataset, 2, 1).good
    collected = dataset / "meta" / "collection.json"
    kept = collected.read_text()
    other = json.loads(kept)
    other["per_task"]["0"]["seeds"] = [123, 124]
    collected.write_text(json.dumps(other))
    failed = {finding.name for finding in doctors.examine(dataset, 2, 1) if not finding.passed}
    collected.write_text(kept)
    assert "replay" in failed or "states" in failed
    collected.unlink()
    with pytest.raises(UserError, match="keeps each episode's seed"):
        doctors.examine(dataset, 1, 1)
    collected.write_text(kept)


def test_an_episode_does_not_depend_on_what_its_process_did_before(dataset: Path) -> None:
    """So it does not matter how many workers there are: here the second episode is made first."""
    seeds = json.loads((dataset / "meta" / "collection.json").read_text())["per_task"]["0"]["seeds"]
    loaded = open_dataset(dataset)
    lengths = loaded.meta.episodes["length"]
    env = TwinEnv("so101_twin", DRAWER)
    for episode in (1, 0):
        begin = int(sum(lengths[:episode]))
        found = Scripted().demonstrate(env, seeds[episode])
        span = slice(begin, begin + int(lengths[episode]))
        np.testing.assert_array_equal(column(loaded, "action")[span], np.array(found.record.actions))
        states = np.array([snapshot.state for snapshot in found.record.snapshots])
        np.testing.assert_array_equal(column(loaded, "observation.state")[span], states)


def test_variants_of_a_task_are_refused() -> None:
    with pytest.raises(UserError, match="leave --variants out"):
        TWIN.task("so101_twin", 0, 1)
