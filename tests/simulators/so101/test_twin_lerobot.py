"""LeRobot's own commands find the twin: as an environment and as a robot; and our evaluation runs a policy in it."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig
from lerobot.envs.factory import make_env, make_env_config
from lerobot.envs.utils import env_to_policy_features
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACTPolicy
from lerobot.policies.factory import make_pre_post_processors
from lerobot.robots import make_robot_from_config
from lerobot.robots.config import RobotConfig
from lerobot.robots.so_follower import SOFollower
from lerobot.scripts import lerobot_eval, lerobot_rollout
from lerobot.utils.import_utils import register_third_party_plugins
from tests import support

from apprentice.closure import closure
from apprentice.common.camera_size import with_camera_sizes
from apprentice.common.errors import UserError
from apprentice.data.dataset import column, open_dataset
from apprentice.data.mixture import open_mixture
from apprentice.evaluate import rollout
from apprentice.evaluate.correct import CorrectConfig, correct
from apprentice.evaluate.during_training import size_of
from apprentice.evaluate.episode.probes import PARAPHRASE, PROBES
from apprentice.evaluate.report.report import write_report
from apprentice.evaluate.results import Evaluation
from apprentice.experts.seer.configuration_seer import SeerConfig
from apprentice.experts.seer.modeling_seer import SeerPolicy
from apprentice.serve.checkpoint import Checkpoint
from apprentice.simulators.collection import episode_jobs
from apprentice.simulators.so101 import doctor as doctors
from apprentice.simulators.so101.failures import MEANINGS
from apprentice.simulators.so101.interface import TWIN
from apprentice.simulators.so101.plugin.twinrobot import TwinRobot
from apprentice.simulators.so101.simulator.env import TwinEnv
from apprentice.simulators.so101.suites import INSTRUCTIONS, JOINTS
from apprentice.simulators.so101.units import CAMERAS, NAMES

PLUGIN = "apprentice.simulators.so101.plugin"


def test_lerobot_finds_environment_and_robot_without_loading_mujoco() -> None:
    register_third_party_plugins()  # what each of its commands begins with
    assert "so101_twin" in EnvConfig.get_known_choices() and "so101_twin" in RobotConfig.get_known_choices()
    at_once = {file.parent.name for file in closure([], front=[f"{PLUGIN}.environment", f"{PLUGIN}.twinrobot"])}
    assert "plugin" in at_once and not at_once & {"simulator", "demonstrator"}


def test_the_environment_is_stepped() -> None:
    config = make_env_config("so101_twin", task="drawer,block", suite="so101_twin_clean", episode_length=3)
    assert isinstance(config, EnvConfig) and config.fps == 30
    features = env_to_policy_features(config)
    assert set(features) == {"action", "observation.state", *CAMERAS}
    envs = make_env(config, n_envs=1)["so101_twin"]
    assert sorted(envs) == [0, 4]
    env = envs[4]
    assert env.call("task_description") == (INSTRUCTIONS[4],)
    seen, _ = env.reset(seed=[3])
    assert seen["pixels"]["front"].shape == (1, 96, 128, 3) and seen["agent_pos"].shape == (1, 6)
    again, _ = env.reset(seed=[3])
    np.testing.assert_array_equal(seen["pixels"]["wrist"], again["pixels"]["wrist"])
    for step in range(3):
        *_, over, _ = env.step(seen["agent_pos"].astype(np.float32))
        assert over[0] == (step == 2)
    for each in envs.values():
        each.close()
    with pytest.raises(UserError, match="expected a task of drawer, cups"):
        make_env(make_env_config("so101_twin", task="kettle"))


def test_the_robot_has_the_features_of_a_real_one() -> None:
    config = RobotConfig.get_choice_class("so101_twin")(scene="blocks", seed=1, width=128)
    robot = make_robot_from_config(config)
    real = object.__new__(SOFollower)  # its making wants a driver, its features do not
    real.bus, real.cameras = SimpleNamespace(motors=dict.fromkeys(JOINTS)), {}
    assert robot.action_features == real.action_features
    assert robot.observation_features == real.observation_features | dict.fromkeys(("front", "wrist"), (96, 128, 3))
    with pytest.raises(ConnectionError):
        robot.get_observation()
    robot.connect()
    seen = robot.get_observation()
    assert set(seen) == set(robot.observation_features) and seen["front"].dtype == np.uint8
    target = {name: seen[name] for name in NAMES} | {"gripper.pos": 60.0}
    for _ in range(50):
        assert robot.send_action(target) == target
    assert robot.get_observation()["gripper.pos"] == pytest.approx(60, abs=6) and not robot.success
    robot.disconnect()
    assert not robot.is_connected


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints with random weights of policies that plan half a second; they learned pictures of 96 x 128 px."""
    root = tmp_path_factory.mktemp("policies")
    features = {key: PolicyFeature(FeatureType.VISUAL, (3, 96, 128)) for key in CAMERAS}
    features["observation.state"] = PolicyFeature(FeatureType.STATE, (6,))
    shared: dict[str, Any] = {"chunk_size": 15, "n_action_steps": 15, "device": "cpu", "input_features": features}
    shared["output_features"] = {"action": PolicyFeature(FeatureType.ACTION, (6,))}
    small = {"dim_model": 32, "n_heads": 2, "dim_feedforward": 32, "n_encoder_layers": 1, "use_vae": False}
    act = ACTConfig(pretrained_backbone_weights=None, **small, **shared)
    seer = SeerConfig(width=48, layers=1, heads=2, gripper="continuous", **shared)
    numbers = {"mean": torch.zeros(6), "std": torch.full((6,), 40.0), "min": torch.full((6,), -60.0)}
    numbers["max"] = torch.full((6,), 60.0)
    statistics = {"observation.state": numbers, "action": numbers}
    statistics |= {key: {"mean": torch.full((3, 1, 1), 0.5), "std": torch.ones(3, 1, 1)} for key in CAMERAS}
    for config, made in ((act, ACTPolicy), (seer, SeerPolicy)):
        torch.manual_seed(0)
        folder = root / config.type
        made(config).save_pretrained(folder)
        before, after = make_pre_post_processors(config, dataset_stats=statistics)
        for processor in (with_camera_sizes(before, features), after):
            processor.save_pretrained(folder)
        TWIN.contract("so101_twin", 128, "fast").having(horizon=15).save(folder)
    return {folder.name: folder for folder in root.iterdir()}


def test_lerobot_eval_runs_it_with_larger_pictures(policies: dict[str, Path], tmp_path: Path) -> None:
    flags = ["--env.type=so101_twin", "--env.task=block", "--env.episode_length=3", "--env.width=256"]
    flags += ["--eval.batch_size=1", "--eval.n_episodes=1", "--eval.use_async_envs=false", "--policy.device=cpu"]
    support.call(lerobot_eval.main, f"--policy.path={policies['act']}", f"--output_dir={tmp_path}", *flags)
    assert json.loads((tmp_path / "eval_info.json").read_text())["overall"]["n_episodes"] == 1
    assert len(list(tmp_path.rglob("*.mp4"))) == 1


@pytest.mark.parametrize(
    ("kind", "more"),
    [("act", ["--duration=1"]), ("seer", ["--inference.type=rtc", "--fps=10", "--duration=3", "--robot.width=128"])],
)
def test_lerobot_rollout_drives_it(
    kind: str, more: list[str], policies: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In step with pictures of 480 x 640 px, as a real arm sends them, for a policy that learned 96 x 128."""
    sent: list[np.ndarray] = []
    send = TwinRobot.send_action
    monkeypatch.setattr(
        TwinRobot,
        "send_action",
        lambda self, action: sent.append(np.array(list(action.values()))) or send(self, action),
    )
    flags = ["--robot.type=so101_twin", "--robot.scene=block", "--robot.seed=4", "--device=cpu"]
    flags += [f"--robot.calibration_dir={tmp_path}", "--return_to_initial_position=false", "--play_sounds=false"]
    flags += [f"--policy.path={policies[kind]}", f"--task={INSTRUCTIONS[4]}"]
    support.call(lerobot_rollout.main, *flags, *more)
    assert sent and np.isfinite(sent).all()
    if kind == "seer":  # RTC leaves out what passed while it planned, and mixes plans
        assert np.abs(sent).max() <= 60, "the range of the policy's actions"
    else:
        env = TwinEnv("so101_twin", 4, size=640)
        env.reset(4)
        alone = Checkpoint(kind, policies[kind], torch.device("cpu"))
        alone.reset(0)
        planned = alone.plan(env.observe(), INSTRUCTIONS[4])
        env.close()
        np.testing.assert_allclose(sent[:2], planned[: len(sent[:2])], atol=1e-3)


def test_policies_are_evaluated_probed_and_reported(
    policies: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout, "spread", support.spread_here)
    monkeypatch.setattr(rollout, "before_hours", lambda *_: None)
    chosen: dict[str, Any] = {"tasks": [4], "episodes": 1, "max_steps": 12, "workers": 1}
    places = {"expert": str(policies["act"])}
    rollout.evaluate(places, "so101_twin", tmp_path / "run", **chosen, probes=list(PROBES))
    evaluation = Evaluation.load(tmp_path / "run")
    assert sorted(episode.probe for episode in evaluation.episodes) == sorted(PROBES)
    assert {episode.failure for episode in evaluation.episodes} <= set(MEANINGS)
    assert evaluation.protocol.versions == TWIN.versions()
    words = {episode.instruction for episode in evaluation.episodes if episode.probe == PARAPHRASE}
    assert words and not words & set(INSTRUCTIONS)
    write_report(tmp_path / "page.html", tmp_path / "run")
    page = (tmp_path / "page.html").read_text()
    assert (
        "<dt>so101-twin</dt>" in page and "at 30 Hz" in page and "96 \u00d7 128 px" in page and INSTRUCTIONS[4] in page
    )


def test_a_policy_is_corrected_and_the_corrections_replay(
    policies: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (episode_jobs, doctors):
        monkeypatch.setattr(module, "spread", support.spread_here)
    out = tmp_path / "corrections"
    chosen: dict[str, Any] = {"tasks": [0], "episodes": 1, "workers": 1, "size": 64, "steps": [3, 8], "noise": 0.1}
    policy = str(shutil.copytree(policies["act"], tmp_path / "act"))
    TWIN.contract("so101_twin", 64, "fast").having(horizon=15).save(policy)
    correct(CorrectConfig(policy=policy, suite="so101_twin_clean", out=out, **chosen))
    (scene,) = episode_jobs.scenes(out)
    np.testing.assert_array_equal(column(open_dataset(out), "observation.state")[0], scene.start.state)
    assert all(check.passed for check in doctors.examine(out, 1, 1))


def test_a_student_in_training_rolls_out_in_pictures_of_its_dataset(small_dataset: Path) -> None:
    square = open_mixture(str(small_dataset))
    assert size_of(square, "libero_goal") == square.features["observation.images.image"].shape[1]
    with pytest.raises(UserError, match="expected pictures in a size that SO-101 twin draws"):
        size_of(square, "so101_twin")
