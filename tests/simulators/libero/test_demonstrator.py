"""Demonstrations: they replay, they vary, and the dataset is the same however it came about."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from apprentice.common.errors import UserError
from apprentice.common.files import read_json
from apprentice.data.contract import Contract
from apprentice.data.dataset import open_dataset
from apprentice.data.images import images as stored
from apprentice.simulators.base import Demonstration, Demonstrator, Record
from apprentice.simulators.collection import collect as collecting
from apprentice.simulators.collection import episode_jobs
from apprentice.simulators.collection.config import CollectConfig
from apprentice.simulators.libero.convention import contract as libero_contract
from apprentice.simulators.libero.demonstrator import skills
from apprentice.simulators.libero.demonstrator.controller import Controller
from apprentice.simulators.libero.demonstrator.demonstrator import (
    AFTER_SUCCESS,
    PATIENCE,
    START_NOISE,
    demonstrate,
    in_order,
)
from apprentice.simulators.libero.simulator.env import LiberoEnv


def test_executed_actions_replay_to_success(fast: LiberoEnv) -> None:
    noisy = 0
    for seed in (0, 1):
        episode = demonstrate(fast, seed)
        assert episode.failure is None
        record = episode.record
        actions, executed = np.array(record.actions), np.array(record.executed)
        assert np.abs(actions).max() <= 1 and np.abs(executed).max() <= 1
        np.testing.assert_array_equal(actions[:, 6], executed[:, 6])
        assert set(np.unique(actions[:, 6])) == {-1.0, 1.0}
        assert np.abs(np.diff(actions[:, :6], axis=0)).max() < 0.41
        noisy += int((actions != executed).any(axis=1).sum())
        fast.reset(seed=seed, start_noise=START_NOISE)
        for snapshot, action, success in zip(record.snapshots, executed, record.successes, strict=True):
            np.testing.assert_array_equal(fast.proprioception(), snapshot.state)
            assert fast.step(action) == success
        assert success and not all(record.successes[-AFTER_SUCCESS - 1 :])
        assert fast.success_of(1) and not fast.success_of(8)
    assert noisy > 10


def test_an_episode_goes_on_from_a_captured_state(fast: LiberoEnv) -> None:
    """Anywhere, in contact too: to the bit, though another episode was begun meanwhile."""
    record = demonstrate(fast, 0).record
    fast.reset(seed=0, start_noise=START_NOISE)
    captured = []
    for step, action in enumerate(record.executed):
        if step % 30 == 25:
            captured.append((step, fast.capture()))
        fast.step(action)
    assert len(captured) > 2
    for step, state in captured:
        fast.reset(seed=1)
        fast.resume(state)
        for index in range(step, min(step + 12, len(record.executed))):
            np.testing.assert_array_equal(fast.proprioception(), record.snapshots[index].state)
            np.testing.assert_array_equal(fast.snapshot().qpos, record.snapshots[index].qpos)
            assert fast.step(record.executed[index]) == record.successes[index]
    state.physics = state.physics[:-1]
    with pytest.raises(UserError, match="task 1"):
        fast.resume(state)


@pytest.mark.parametrize(
    ("suite", "task"),
    [
        ("libero_goal", 3),  # opens a drawer and fills it
        ("libero_goal", 5),  # drags a plate
        ("libero_goal", 7),  # turns a knob
        ("libero_10", 9),  # inserts a mug and closes the door behind it
        ("libero_90", 6),  # opens a drawer too low to grip
        ("libero_90", 86),  # leans a book into a shelf
    ],
)
def test_each_skill_reaches_its_goal_and_lets_go(suite: str, task: int) -> None:
    """In one of two seeds: how often, benchmarks/demonstrator.py tells."""
    env = LiberoEnv(suite, task)
    episode = demonstrate(env, seed=0)
    if episode.failure is not None:
        episode = demonstrate(env, seed=1)
    assert episode.failure is None
    assert len(episode.record.actions) <= PATIENCE * env.max_steps
    assert episode.record.successes[-1]
    assert not any(env.geometry().held(name) for name in env.control.env.objects_dict)
    env.close()


def test_goals_are_put_in_an_order_that_works() -> None:
    drawer, oven = "cabinet_1_bottom_region", "microwave_1_heating_region"
    close, fill = ("close", drawer), ("in", "bowl_1", drawer)
    assert in_order([close, fill]) == [fill, close]
    assert in_order([("close", "microwave_1"), ("in", "mug_1", oven)])[-1] == ("close", "microwave_1")
    assert in_order([("on", "bowl_1", "cabinet_1_top_side"), close])[0] == close
    assert in_order([fill, ("open", drawer)]) == [("open", drawer), fill]
    assert in_order([("on", "bowl_1", "bowl_2"), ("in", "bowl_2", "tray_1")])[0] == ("in", "bowl_2", "tray_1")


def test_collecting_survives_a_kill_and_any_number_of_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted: Callable[..., tuple[Path, dict]]
) -> None:
    out = tmp_path / "demonstrations"
    scratch, before = interrupted("libero_goal", 8, out, workers=2)
    config = CollectConfig(suite="libero_goal", episodes=2, out=out, tasks=[8])
    with pytest.raises(UserError, match="seed"):
        collecting.collect(replace(config, seed=1))
    first, second = scratch / "08_0000.npz", scratch / "08_0001.npz"
    kept, checked = first.stat().st_mtime_ns, []

    def assemble(
        episodes: list[tuple[Path, str]],
        root: Path,
        contract: Contract,
        robot: Demonstrator,
        images: bool,
        longest: int,
    ) -> None:
        after = np.load(second)
        assert first.stat().st_mtime_ns == kept
        for key, values in before.items():
            np.testing.assert_array_equal(values, after[key])
        checked.append(True)
        original(episodes, tmp_path / "as images", contract, robot, True, longest)
        original(episodes, root, contract, robot, images, longest)

    original = episode_jobs.assemble
    monkeypatch.setattr(episode_jobs, "assemble", assemble)
    summary = collecting.collect(config)
    assert checked and not scratch.exists() and summary["per_task"]["8"]["kept"] > 0
    seeds = [episode_jobs.CollectJob("libero_goal", 8, n, 0, "fast", 128).first_seed for n in (0, 1)]
    assert episode_jobs.scenes(out) == [
        episode_jobs.Setting("libero_goal", 8, None, seed, START_NOISE) for seed in seeds
    ]
    check_dataset(out, before)
    exact = open_dataset(tmp_path / "as images")
    for key in ("observation.images.image", "observation.images.image2"):
        np.testing.assert_array_equal(stored(exact, key)[np.array([len(exact) - 1])][0], before[key][-1])


def test_a_task_that_fails_ends_nothing_but_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Task 4 of this suite finds no success in episode 1; what the others gave is there when it is left out."""
    out, asked = tmp_path / "demonstrations", []
    config = CollectConfig(suite="libero_goal", episodes=2, out=out)

    def attempt(job: episode_jobs.CollectJob) -> episode_jobs.Collected:
        asked.append((job.task, job.episode))
        rejected = [episode_jobs.Rejected(job.task, job.episode, job.first_seed, "out of steps")]
        if (job.task, job.episode) == (4, 1):
            return episode_jobs.Collected(job, None, rejected * episode_jobs.ATTEMPTS)
        one = np.zeros((3, 7), dtype=np.float32)
        frame = {"observation.images.image": np.zeros((128, 128, 3), np.uint8), "observation.state": np.zeros(8)}
        episode = Demonstration(Record(actions=list(one), executed=list(one)), None)
        return episode_jobs.packed(job, job.first_seed + 1, rejected, episode, [frame] * 3)

    monkeypatch.setattr(collecting, "_collect_one", attempt)
    monkeypatch.setattr(episode_jobs, "spread", lambda run, jobs, workers, ray: map(run, jobs))
    monkeypatch.setattr(episode_jobs, "assemble", lambda episodes, root, *what: root.mkdir())
    with pytest.raises(UserError, match="task 4, 'put the bowl on top of the cabinet': 10 x out of steps"):
        collecting.collect(config)
    assert len(asked) == 20 and not out.exists()
    collecting.collect(replace(config, tasks=[1, 8]))
    assert len(asked) == 20 and episode_jobs.scenes(out)[0].seed == 10001
    assert read_json(out / "meta" / "collection.json")["per_task"]["8"]["kept"] == 0.5
    assert "50%" in capsys.readouterr().out


def test_what_took_a_second_try_is_not_kept(monkeypatch: pytest.MonkeyPatch, fast: LiberoEnv) -> None:
    """The first lift slips: the hand opens, takes the bowl again and succeeds; the next seed's episode is kept."""
    original, lifts = skills.lift_off, []

    def slips_once(hand: Controller, position: np.ndarray, rotation: np.ndarray) -> None:
        lifts.append(position)
        if len(lifts) > 1:
            original(hand, position, rotation)

    monkeypatch.setattr(skills, "lift_off", slips_once)
    job = episode_jobs.CollectJob("libero_goal", 1, 0, 0, "fast", 128)
    monkeypatch.setattr("apprentice.simulators.libero.simulator.env.environment", lambda *job, **drawn: fast)
    outcome = episode_jobs.attempt(job, demonstrate)
    assert len(lifts) == 3 and outcome.episode
    assert outcome.rejected == [episode_jobs.Rejected(1, 0, job.first_seed, "succeeded at a second try")]


def check_dataset(root: Path, last_episode: dict[str, np.ndarray]) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    dataset = LeRobotDataset("local/demonstrations", root=root, video_backend="pyav", return_uint8=True)
    assert dataset.meta.total_episodes == 2 and dataset.fps == 20
    libero_contract(128, "fast").check(Contract.of_dataset(root), "simulator", "dataset")
    assert read_json(root / "meta" / "collection.json")["episodes"] == 2
    assert list(statistics := read_json(root / "meta" / "stats.json")) == sorted(statistics)  # in any process
    frame, steps = dataset[len(dataset) - 1], len(last_episode["action"])
    assert frame["task"] == "put the bowl on the plate" and frame["frame_index"] == steps - 1
    np.testing.assert_array_equal(frame["action"].numpy(), last_episode["action"][-1])
    np.testing.assert_array_equal(frame["observation.state"].numpy(), last_episode["observation.state"][-1])
    for key in ("observation.images.image", "observation.images.image2"):
        image = frame[key].permute(1, 2, 0).numpy().astype(float)
        assert 10 * np.log10(255**2 / np.mean((image - last_episode[key][-1]) ** 2)) > 30
    video_bytes = sum(path.stat().st_size for path in root.rglob("*.mp4"))
    assert video_bytes / (2 * len(dataset)) < 1500  # a frame and camera
