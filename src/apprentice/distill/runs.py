"""Folders of runs: a run belongs to one configuration, and goes on from its checkpoint."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator

from apprentice.distill.checkpoint import check_whole, recover
from apprentice.errors import UserError
from apprentice.files import only_one, read_json, write_json
from apprentice.progress import console

WATCHING = ("validate_every", "rollouts", "rollout_every", "track")  # what may change when a run goes on


def carry_out(
    stage: str, accelerator: Accelerator, run: Path, config: dict[str, object], train: Callable[[int], None]
) -> Path:
    """Hold the folder for this configuration and `train` from the steps of its checkpoint on, unless it is finished;
    return the checkpoint. Raises UserError if the folder belongs to another, or another run is at work in it.
    """
    done = 0
    with only_one(run) if accelerator.is_main_process else nullcontext():
        if accelerator.is_main_process:
            _same_run(run, {"stage": stage, **config})
            done = 0 if (run / "cost.json").exists() else recover(run)
        done = int(accelerator.reduce(torch.tensor(done, device=accelerator.device), "sum"))
        if (run / "cost.json").exists():
            console.print(f"{stage}: {run} is finished already")
        else:
            train(done)
    return run / "checkpoint"


def checkpoint_of(path: str) -> Path:
    """A run's checkpoint, or the checkpoint itself. Raises UserError if it is damaged."""
    inside = Path(path) / "checkpoint"
    folder = inside if inside.exists() else Path(path)
    check_whole(folder)
    return folder


def _same_run(run: Path, config: dict[str, object]) -> None:
    config = json.loads(json.dumps(config))
    if not (run / "config.json").exists():
        write_json(run / "config.json", config)
        return
    known = read_json(run / "config.json")
    changed = {k: (known.get(k), v) for k, v in config.items() if k not in WATCHING and known.get(k, v) != v}
    if changed:
        difference = ", ".join(f"{k} was {old} and is {new}" for k, (old, new) in changed.items())
        raise UserError(
            f"expected the run of {run} again, found another: {difference}; fix: another --out, or remove {run}"
        )
