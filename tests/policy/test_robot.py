"""`lerobot-rollout` drives a robot, the plugin in tests/robot, by the student and by its expert."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.policies.utils import prepare_observation_for_inference
from lerobot.scripts import lerobot_rollout
from lerobot.utils.feature_utils import build_dataset_frame, hw_to_dataset_features
from tests.support import TASKS, call, make_student

from apprentice.data.dataset import column, instructions, open_dataset

PLUGIN = Path(__file__).parents[1] / "robot"


@pytest.fixture(scope="module", autouse=True)
def plugin() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(PLUGIN)
        yield


@pytest.fixture(scope="module")
def checkpoints(
    small_dataset: Path, small_expert: Path, small_vlm: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("student")
    student = make_student(small_dataset, small_expert, small_vlm)
    student.save_pretrained(folder)
    for processor in make_pre_post_processors(student.config):
        processor.save_pretrained(folder)
    return {"apprentice": folder, "seer": small_expert}


def flags(checkpoint: Path, folder: Path, *more: str) -> list[str]:
    return [
        f"--policy.path={checkpoint}",
        "--device=cpu",
        "--robot.type=point",
        f"--robot.log={folder / 'log.jsonl'}",
        f"--robot.calibration_dir={folder}",
        "--return_to_initial_position=false",
        "--play_sounds=false",
        *more,
    ]


def done(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The actions (N, 7) that reached the robot, and the states (N, 8) that they led to."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return np.array([line["action"] for line in lines]), np.array([line["state"] for line in lines])


def planned(checkpoint: Path, task: str, count: int) -> np.ndarray:
    """The actions (N, 7) of the policy alone, on a robot that does them."""
    from lerobot_robot_point import ACTIONS, Point, PointConfig

    config = PreTrainedConfig.from_pretrained(checkpoint)
    policy = get_policy_class(config.type).from_pretrained(checkpoint)
    before, after = make_pre_post_processors(config, str(checkpoint))
    robot = Point(PointConfig(calibration_dir=checkpoint))
    features = hw_to_dataset_features(robot.observation_features, "observation")
    actions = []
    for _ in range(count):
        frame = build_dataset_frame(features, robot.get_observation(), "observation")
        observation = before(prepare_observation_for_inference(frame, torch.device("cpu"), task))
        actions.append(after(policy.select_action(observation))[0].numpy())
        robot.send_action(dict(zip(ACTIONS, actions[-1], strict=True)))
    return np.array(actions)


@pytest.mark.parametrize("kind", ["apprentice", "seer"])
def test_in_step_with_the_robot(kind: str, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    call(lerobot_rollout.main, *flags(checkpoints[kind], tmp_path, "--fps=20", "--duration=1", f"--task={TASKS[1]}"))
    actions, states = done(tmp_path)
    assert len(actions) > 4  # more than a chunk
    np.testing.assert_allclose(actions, planned(checkpoints[kind], TASKS[1], len(actions)), atol=1e-5)
    assert np.abs(actions - planned(checkpoints[kind], TASKS[0], len(actions))).max() > 1e-4
    assert np.abs(states[-1] - states[0]).max() > 1e-3


def test_what_a_student_does_becomes_a_dataset(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    root = tmp_path / "rollout_point"
    recording = ["repo_id=local/rollout_point", f"root={root}", f"single_task={TASKS[0]}", "fps=20", "no_stamp=true"]
    recording += ["num_episodes=1", "episode_time_s=1", "push_to_hub=false", "video=false"]
    more = [f"--dataset.{setting}" for setting in recording]
    call(
        lerobot_rollout.main, *flags(checkpoints["apprentice"], tmp_path, "--fps=20", "--strategy.type=episodic", *more)
    )
    actions, _ = done(tmp_path)
    dataset = open_dataset(root)
    np.testing.assert_allclose(column(dataset, "action"), actions, atol=1e-6)
    assert set(instructions(dataset)) == {TASKS[0]}
    np.testing.assert_allclose(actions, planned(checkpoints["apprentice"], TASKS[0], len(actions)), atol=1e-5)


def test_while_the_robot_moves(checkpoints: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rtc = ["--fps=10", "--inference.type=rtc", "--duration=3", f"--task={TASKS[0]}"]
    for kind, checkpoint in checkpoints.items():
        folder = tmp_path / kind
        folder.mkdir()
        call(lerobot_rollout.main, *flags(checkpoint, folder, *rtc))
        printed = "".join(capfd.readouterr())
        assert "RTC inference thread started" in printed and "RTC inference error" not in printed
        actions, states = done(folder)
        assert len(actions) >= 5 and np.isfinite(actions).all()
        assert set(np.sign(actions[:, 6])) <= {-1, 1} and np.allclose(np.abs(actions[:, 6]), 1)
        assert np.abs(states[-1] - states[0]).max() > 1e-3
