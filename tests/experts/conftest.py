"""A short real `lerobot-train` run, shared by the tests of the experts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def run(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of two steps of `lerobot-train --policy.type=seer`, a checkpoint after each."""
    output = tmp_path_factory.mktemp("runs") / "seer"
    arguments = [
        "--policy.type=seer",
        "--policy.push_to_hub=false",
        "--policy.device=cpu",
        "--dataset.repo_id=local/small",
        f"--dataset.root={small_dataset}",
        "--dataset.video_backend=pyav",
        f"--output_dir={output}",
        "--batch_size=4",
        "--steps=2",
        "--save_freq=1",
        "--num_workers=0",
        "--wandb.enable=false",
    ]
    command = [str(Path(sys.executable).with_name("lerobot-train")), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]
    return output


@pytest.fixture(scope="session")
def checkpoint(run: Path) -> Path:
    return run / "checkpoints" / "last" / "pretrained_model"
