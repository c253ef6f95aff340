"""The environment against LeRobot's own, and its promises about physics, start poses and snapshots."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lerobot.envs.libero import LiberoEnv as LeRobotEnv
from lerobot.processor.env_processor import LiberoProcessorStep
from libero.libero import benchmark, get_libero_path

from apprentice.common.errors import UserError
from apprentice.simulators.libero.simulator import suites
from apprentice.simulators.libero.simulator.env import LiberoEnv

IMAGES = ("observation.images.image", "observation.images.image2")


def lerobots_observations(
    actions: np.ndarray, seed: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> list[dict[str, np.ndarray]]:
    """What `lerobot-eval` would feed a policy on task 1, initial state 0."""
    states = folder / "init_files" / "libero_goal"
    states.mkdir(parents=True)
    name = suites.tasks("libero_goal")[1].bddl.stem + ".pruned_init"
    torch.save(suites.initial_states("libero_goal", 1), states / name)
    shutil.copy(Path(get_libero_path("init_states")) / "libero_goal" / f"{name}.npz", states)
    (folder / "config.yaml").write_text(yaml.safe_dump({"init_states": str(states.parent)}))
    monkeypatch.setenv("LIBERO_CONFIG_PATH", str(folder))
    suite = benchmark.get_benchmark_dict()["libero_goal"]()
    env = LeRobotEnv(
        suite, 1, "libero_goal", obs_type="pixels_agent_pos", observation_width=128, observation_height=128
    )
    raw = [env.reset(seed=seed)[0], *(env.step(action)[0] for action in actions)]
    env.close()
    return [processed(observation) for observation in raw]


def processed(raw: dict[str, Any]) -> dict[str, np.ndarray]:
    batch: dict[str, Any] = {
        f"observation.images.{key}": torch.from_numpy(image).permute(2, 0, 1)[None]
        for key, image in raw["pixels"].items()
    }
    batch["observation.robot_state"] = {
        part: {key: torch.as_tensor(value)[None] for key, value in raw["robot_state"][part].items()}
        for part in ("eef", "gripper")
    }
    result = LiberoProcessorStep().observation(batch)
    images = {key: result[key][0].permute(1, 2, 0).numpy() for key in IMAGES}
    return {**images, "observation.state": result["observation.state"][0].numpy()}


def test_observations_are_lerobots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exact: LiberoEnv) -> None:
    actions = np.random.default_rng(0).uniform(-0.8, 0.8, (5, 7)).astype(np.float32)
    expected = lerobots_observations(actions, 7, tmp_path, monkeypatch)
    exact.reset(seed=7, init_state=0)
    found = [exact.observe()]
    for action in actions:
        exact.step(action)
        found.append(exact.observe())
    for ours, theirs in zip(found, expected, strict=True):
        for key in IMAGES:
            np.testing.assert_array_equal(ours[key], theirs[key])
        np.testing.assert_array_equal(ours["observation.state"], theirs["observation.state"])


def test_fast_rendering_leaves_the_physics_alone_and_looks_the_same(fast: LiberoEnv, exact: LiberoEnv) -> None:
    rng, quality = np.random.default_rng(1), []
    for env in (fast, exact):
        env.reset(seed=3, init_state=2)
    for step in range(30):
        action = np.clip(rng.normal([0.2, 0, -0.4, 0, 0, 0, 0], 0.4), -1, 1)
        fast.step(action)
        exact.step(action)
        if step % 6 == 0:
            ours, theirs = fast.observe(), exact.observe()
            error = [np.mean((ours[key].astype(float) - theirs[key]) ** 2) for key in IMAGES]
            quality.append(10 * np.log10(255**2 / np.array(error)))
    np.testing.assert_array_equal(fast.data.qpos, exact.data.qpos)
    np.testing.assert_array_equal(fast.data.qvel, exact.data.qvel)
    assert (np.mean(quality, axis=0) > 30).all(), f"PSNR of the two cameras {np.mean(quality, axis=0)} dB"


def test_a_snapshot_is_drawn_as_it_was_seen(fast: LiberoEnv) -> None:
    fast.reset(seed=5)
    snapshot, before = fast.snapshot(), fast.observe()
    fast.reset(seed=6)
    assert (fast.observe()[IMAGES[0]] != before[IMAGES[0]]).any()
    fast.restore(snapshot)
    after = fast.observe()
    for key in before:
        np.testing.assert_array_equal(after[key], before[key])


def test_start_noise_moves_and_turns_the_hand_and_the_seed_decides(fast: LiberoEnv) -> None:
    def starts(noise: float, seeds: range) -> np.ndarray:
        poses = []
        for seed in seeds:
            fast.reset(seed=seed, start_noise=noise)
            poses.append(fast.proprioception()[:6])
        return np.array(poses)

    home, moved = starts(0.0, range(2)), starts(0.04, range(10))
    assert np.ptp(home[:, :3], axis=0).max() < 1e-3
    offset = moved - home[0]
    assert (np.ptp(offset[:, :3], axis=0) > 0.04).all() and np.abs(offset[:, :3]).max() < 0.06
    assert (np.ptp(offset[:, 3:], axis=0) > 0.1).all()
    np.testing.assert_array_equal(starts(0.04, range(3)), moved[:3])


def test_goals_of_other_tasks_can_be_asked_for(fast: LiberoEnv) -> None:
    fast.reset(seed=0)
    assert not any(fast.success_of(task) for task in (1, 4, 8))


def test_a_wrong_simulator_or_suite_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="libero_gaol"):
        suites.tasks("libero_gaol")
    with pytest.raises(UserError, match="fast"):
        LiberoEnv("libero_goal", 1, render="slow")
    monkeypatch.setattr(suites, "version", lambda name: "3.4.1")
    with pytest.raises(UserError, match=r"mujoco>=3\.3,<3\.4"):
        suites.check_simulator()


def test_initial_states_are_the_published_fifty() -> None:
    assert [len(suites.tasks(suite)) for suite in suites.SUITES] == [10, 10, 10, 10, 90]
    states = suites.initial_states("libero_goal", 8)
    assert states.shape[0] == 50 and np.isfinite(states).all() and len(np.unique(states, axis=0)) == 50
