"""Trainings in a process that `accelerate launch` has started, or in a fork that has the same environment.

Each job is {"config": ..., "kill": ..., "fsdp": ...}.
"""

import json
import os
import signal
import sys
from itertools import count
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, DistributedType, PartialState

from apprentice.distill import trainer
from apprentice.distill.runs.tracking import Clock
from apprentice.distill.stages import StageConfig, finetune


def die_between_two_renames() -> None:
    """The first process ends when the last checkpoint has made room for the new one."""
    rename = os.replace

    def replace(source: Path | str, target: Path | str) -> None:
        rename(source, target)
        if Path(target).name == "previous":
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = replace


def shard() -> None:
    """Accelerate shards weights between accelerators only; PyTorch does it between CPUs as well, so say that these are
    some.
    """
    os.environ |= {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    }
    AcceleratorState._reset_state()
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def train(jobs: list[dict[str, Any]]) -> None:
    """One after the other, with one thread."""
    torch.set_num_threads(1)
    for job in jobs:
        steps = count(1)
        Clock.due = lambda self, every, steps=steps: next(steps) % 3 == 0  # type: ignore[method-assign]
        trainer.LOG_EVERY = 1
        if job["kill"]:
            die_between_two_renames()
        if job["fsdp"]:
            shard()
        finetune(StageConfig(**job["config"]))


def member(rank: int, port: int, jobs: list[dict[str, Any]]) -> None:
    """One of two processes, without their launcher."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ |= {key: str(value) for key, value in place.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true", "ACCELERATE_MIXED_PRECISION": "no"}
    train(jobs)


if __name__ == "__main__":
    train(json.loads(sys.argv[1]))
