"""The demonstrator solves each task; how an episode failed is told; demonstrations are collected and replayed."""

import json
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


def test_kinds_of_failure() -> None:
    env = TwinEnv("so101_twin_clean", BLOCK)
    actions = Scripted().demonstrate(env, 1).record.actions
    lifted = next(
        number for number in range(len(actions) - 1, 0, -1) if actions[number][5] < 10 and actions[number - 20][5] < 10
    )
    held = actions[: lifted - 25]
    kinds: dict[str, str] = {}

    def watch(chosen: list[np.ndarray], **wanted: int) -> None:
        """Play actions in the scene of seed 1; note how the wanted tasks failed, by name."""
        env.reset(1)
        observers = {name: FailureObserver(env, task) for name, task in wanted.items()}
        for action in chosen:
            env.step(action)
            for observer in observers.values():
                observer.observe(action)
        kinds.update({name: observer.kind() for name, observer in observers.items()})

    watch([actions[0]] * 10, never_moves=BLOCK)
    wide = [np.append(action[:5], 60.0).astype(np.float32) for action in actions[:lifted]]
    watch(wide + wide[-1:] * 30, jaws_stay_open=BLOCK)
    placed = actions + actions[-1:] * 20
    watch(placed, sponge_is_wanted=SPONGE, drawer_is_wanted=DRAWER, on_the_plate_not_on_the_block=BLOCKS)
    watch(held, in_the_hand_at_the_end=BLOCK)
    watch(held + [np.append(held[-1][:5], 60.0).astype(np.float32)] * 40, let_go_in_the_air=BLOCKS)
    assert kinds == {
        "never_moves": NEVER_REACHED,
        "jaws_stay_open": MISSED,
        "sponge_is_wanted": WRONG_OBJECT,
        "drawer_is_wanted": WRONG_OBJECT,
        "on_the_plate_not_on_the_block": ELSEWHERE,
        "in_the_hand_at_the_end": TIMED_OUT,
        "let_go_in_the_air": DROPPED,
    }
    assert set(kinds.values()) == set(MEANINGS)


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


def test_an_interrupted_collection_goes_on_to_the_same_bytes(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / dataset.name
    config = CollectConfig(suite="so101_twin", episodes=2, out=out, tasks=[DRAWER], workers=1, size=64)
    monkeypatch.setattr(episode_jobs, "spread", support.interrupted_here)
    with pytest.raises(KeyboardInterrupt):
        collect(config)
    assert not out.exists() and len(list(out.with_name(f".{out.name}.episodes").glob("*.npz"))) == 1
    monkeypatch.setattr(episode_jobs, "spread", support.spread_here)
    collect(config)
    files = sorted(file.relative_to(dataset) for file in dataset.rglob("*") if file.is_file())
    assert files == sorted(file.relative_to(out) for file in out.rglob("*") if file.is_file())
    assert [file for file in files if (dataset / file).read_bytes() != (out / file).read_bytes()] == []


def test_variants_of_a_task_are_refused() -> None:
    with pytest.raises(UserError, match="leave --variants out"):
        TWIN.task("so101_twin", 0, 1)
