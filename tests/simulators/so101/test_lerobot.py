"""LeRobot's own commands find the twin: as an environment and as a robot; and our evaluation runs a policy in it."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

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
from tests import support

from apprentice.common.errors import UserError
from apprentice.evaluate import rollout
from apprentice.evaluate.results import Evaluation
from apprentice.simulators.so101.failures import MEANINGS
from apprentice.simulators.so101.interface import TWIN
from apprentice.simulators.so101.suites import INSTRUCTIONS, JOINTS
from apprentice.simulators.so101.units import CAMERAS, NAMES


def test_lerobot_finds_environment_and_robot() -> None:
    """In a fresh process, the way its commands do."""
    code = (
        "from lerobot.utils.import_utils import register_third_party_plugins as register; register()\n"
        "from lerobot.envs.configs import EnvConfig; from lerobot.robots.config import RobotConfig; import sys\n"
        "assert 'so101_twin' in EnvConfig.get_known_choices() and 'so101_twin' in RobotConfig.get_known_choices()\n"
        "assert 'mujoco' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_environment_is_stepped() -> None:
    import lerobot_policy_apprentice  # noqa: F401

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
    import lerobot_policy_apprentice  # noqa: F401

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


def write_act(folder: Path) -> Path:
    """A small ACT with random weights."""
    torch.manual_seed(0)
    act = ACTConfig(
        chunk_size=15,
        n_action_steps=15,
        dim_model=32,
        n_heads=2,
        dim_feedforward=32,
        n_encoder_layers=1,
        use_vae=False,
        pretrained_backbone_weights=None,
        device="cpu",
        input_features={key: PolicyFeature(FeatureType.VISUAL, (3, 96, 128)) for key in CAMERAS}
        | {"observation.state": PolicyFeature(FeatureType.STATE, (6,))},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (6,))},
    )
    statistics = {
        key: {"mean": torch.zeros(6), "std": torch.full((6,), 40.0)} for key in ("observation.state", "action")
    }
    statistics |= {key: {"mean": torch.full((3, 1, 1), 0.5), "std": torch.ones(3, 1, 1)} for key in CAMERAS}
    ACTPolicy(act).save_pretrained(folder)
    for processor in make_pre_post_processors(act, dataset_stats=statistics):
        processor.save_pretrained(folder)
    TWIN.contract("so101_twin", 128, "fast").save(folder)
    return folder


def test_a_random_policy_is_evaluated_and_probed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout, "spread", support.spread_here)
    monkeypatch.setattr(rollout, "before_hours", lambda *_: None)
    policy = write_act(tmp_path / "act")
    rollout.evaluate(
        {"random": str(policy)},
        "so101_twin",
        tmp_path / "run",
        tasks=[0, 4],
        episodes=1,
        max_steps=20,
        workers=1,
        probes=["plain", "paraphrase", "moved"],
    )
    evaluation = Evaluation.load(tmp_path / "run")
    assert len(evaluation.episodes) == 5, "nothing is carried to the drawer"
    assert {episode.failure for episode in evaluation.episodes} <= set(MEANINGS)
    assert evaluation.protocol.versions == TWIN.versions()
