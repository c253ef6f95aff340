"""Trainings in a process that `accelerate launch` has started: [{"config": ..., "kill": ..., "fsdp": ...}, ...]."""

import json
import os
import signal
import sys
from itertools import count
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, DistributedType, PartialState

from apprentice.distill import trainer
from apprentice.distill.runs.tracking import Clock
from apprentice.distill.stages import StageConfig, finetune

torch.set_num_threads(1)


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


for job in json.loads(sys.argv[1]):
    steps = count(1)
    Clock.due = lambda self, every, steps=steps: next(steps) % 3 == 0  # type: ignore[method-assign]
    trainer.LOG_EVERY = 1
    if job["kill"]:
        die_between_two_renames()
    if job["fsdp"]:
        shard()
    finetune(StageConfig(**job["config"]))
