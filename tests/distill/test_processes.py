"""Many processes train as one does, and go on after a kill as if there had been none."""

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.distill import launched
from tests.starting import start

from apprentice.distill import trainer
from apprentice.distill.runs.checkpoint import damage
from apprentice.distill.stages import StageConfig, finetune


def pair(*jobs: dict[str, Any]) -> list[int | None]:
    """Two processes on the CPU, as `accelerate launch` sets them up, without its imports; their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [start(launched.member, rank, port, list(jobs)) for rank in (0, 1)]
    for process in processes:
        process.join(300)
    return [process.exitcode for process in processes]


def launch(*jobs: dict[str, Any]) -> int:
    """Two processes on the CPU, as `accelerate launch` starts them; what the launcher returns."""
    command = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --main_process_port 0"
    command += " --mixed_precision no --dynamo_backend no tests/distill/launched.py"
    done = subprocess.run(
        [sys.executable, *command.split(), json.dumps(jobs)],
        env={
            **os.environ,
            "ACCELERATE_USE_CPU": "true",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
        capture_output=True,
        text=True,
        timeout=600,
    )
    print(done.stdout[-3000:], done.stderr[-6000:])
    return done.returncode


def log(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def losses(run: Path) -> list[float]:
    return [entry[key] for entry in log(run) for key in ("loss", "action_loss", "validation_loss") if key in entry]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoint" / "model.safetensors")


def test_two_processes_train_as_one_killed_or_sharded(
    small_dataset: Path, small_expert: Path, small_vlm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APPRENTICE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(trainer, "LOG_EVERY", 1)
    paths = {"dataset": str(small_dataset), "expert": str(small_expert), "vlm": str(small_vlm)}
    settings = {"steps": 8, "batch_size": 8, "latent_weight": 1.0, "ema": 0.9, "validate": 1, "track": "none"}
    alone, two, killed, sharded = (tmp_path / name for name in ("alone", "two", "killed", "sharded"))
    config = StageConfig(**paths, **settings, out=str(alone))
    finetune(config)

    def job(run: Path, **how: bool) -> dict[str, Any]:
        return {"config": asdict(replace(config, out=str(run))), "kill": False, "fsdp": False, **how}

    assert pair(job(killed, kill=True))[0] == -signal.SIGKILL
    assert not damage(killed / "checkpoint") and not damage(killed / "previous")  # they changed places in one step
    assert launch(job(killed), job(two), job(sharded, fsdp=True)) == 0
    assert log(killed)[2]["seconds"] < log(killed)[3]["seconds"]

    assert losses(killed) == losses(two)
    assert all(torch.equal(weights(killed)[key], value) for key, value in weights(two).items())
    for run in (two, sharded):
        assert losses(run) == pytest.approx(losses(alone), abs=1e-5)
        assert weights(run).keys() == weights(alone).keys()
        assert all(torch.allclose(weights(run)[key], value, atol=1e-4) for key, value in weights(alone).items())
