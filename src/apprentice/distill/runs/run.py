"""Folders of runs: a run belongs to one configuration, and goes on from its checkpoint."""

import json
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from apprentice.common.errors import UserError
from apprentice.common.files import only_one, read_json, write_json
from apprentice.common.progress import console
from apprentice.distill.runs.checkpoint import Position, check_whole, recover

WATCHING = ("validate_every", "rollouts", "rollout_every", "keep", "patience", "track")  # trains nothing
PACE = ("steps", "batch_size", "accumulate", "learning_rate", "language_rate_factor")  # may change: it is recorded
PLACES = ("dataset", "vlm", "expert", "student", "init")  # the same from another folder, however they are written
RATES = ("optimizer_", "scheduler_")  # how settings of an expert's policy begin that are its pace
HISTORY = "before"  # in config.json: what was different until which step


def carry_out(
    stage: str, accelerator: Accelerator, run: Path, config: dict[str, Any], train: Callable[[Position], None]
) -> Path:
    """Hold the folder for this configuration and `train` from the position of its checkpoint on, unless it is finished;
    return the checkpoint.

    A run may go on with more steps, another batch size or other learning rates; its config.json says since when.
    Raises UserError if the folder belongs to another run, or another process is at work in it.
    """
    with only_one(run) if accelerator.is_main_process else nullcontext():
        position: list[Any] = [None]
        if accelerator.is_main_process:
            position = [_begun(run, {"stage": stage, **config})]
        if broadcast_object_list(position)[0] is None:
            console.print(f"{stage}: {run} is finished already", soft_wrap=True)
        else:
            train(position[0])
    return run / "checkpoint"


def checkpoint_of(path: str) -> Path:
    """A run's checkpoint, or the checkpoint itself. Raises UserError if it is damaged."""
    inside = Path(path) / "checkpoint"
    folder = inside if inside.exists() else Path(path)
    check_whole(folder)
    return folder


def same_place(one: Any, other: Any, cwd: str = ".") -> bool:
    """Whether two paths, or lists of them, name the same; the one was written in the working directory `cwd`.

    What is not there any more, or was never a path, is the same if it is written alike.
    """
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(same_place(a, b, cwd) for a, b in zip(one, other, strict=True))
    if not (isinstance(one, str) and isinstance(other, str)) or not (one and other):
        return bool(one == other)
    was = Path(cwd, one).resolve()
    return was == Path(other).resolve() or (one == other and not was.exists())


def _begun(run: Path, config: dict[str, Any]) -> Position | None:
    """Where to go on; None if there is nothing to do. Records what changed."""
    config = {**json.loads(json.dumps(config)), "cwd": os.getcwd()}
    known = _known(run, config["stage"]) if (run / "config.json").exists() else None
    if known is None or (isinstance(known.get("stage"), str) and _never_began(run)):  # else it is not ours
        write_json(run / "config.json", config)
        return recover(run)
    changed = _changed(known, config)
    if other := {k: v for k, v in changed.items() if not _is_pace(k, *v)}:
        difference = ", ".join(f"{k} was {old} and is {new}" for k, (old, new) in other.items())
        raise UserError(
            f"expected the run of {run} again, found another: {difference}; fix: another --out, or remove {run}"
        )
    finished = (run / "cost.json").exists()
    if finished and not changed:
        return None
    position, steps = recover(run), config["steps"]
    took = position.finished or (known["steps"] if finished else 0)
    if changed and took == steps == known["steps"]:
        raise UserError(
            f"expected more steps for {run}, which is finished, to go on with another {', '.join(changed)}, found "
            f"--steps={steps}; fix: more --steps, or another --out"
        )
    if steps != known["steps"] and steps <= position.step:
        raise UserError(
            f"expected more than the {position.step} steps that {run} has taken, found --steps={steps}; "
            "fix: more --steps, or another --out"
        )
    if took and took != steps:
        position = replace(position, begun=position.step, finished=0, worse=0)
        (run / "cost.json").unlink(missing_ok=True)
    config |= {HISTORY: known[HISTORY]} if HISTORY in known else {}
    if changed:
        before = [{**each, "until": min(each["until"], position.step)} for each in known.get(HISTORY, [])]
        old = {"until": position.step, **{k: was for k, (was, _) in changed.items()}}
        config[HISTORY] = [*before, old]
        for key, (was, now) in changed.items():
            console.print(f"{run}: {key} was {was} until step {position.step}, and is {now}", soft_wrap=True)
    if config != known:
        write_json(run / "config.json", config)
    return position


def _never_began(run: Path) -> bool:
    """Did a run end, for a fault in what it was given, before it had anything but its settings?"""
    return {path.name for path in run.iterdir()} <= {"config.json", ".lock"}


class Before(TypedDict):
    """What was different, until how many steps had been taken."""

    until: int


class RunFile(TypedDict):
    """What is read of a run's config.json; all its settings stand there, too."""

    stage: str
    steps: int
    cwd: NotRequired[str]
    before: NotRequired[list[Before]]


def _known(run: Path, stage: str) -> dict[str, Any]:
    """The config.json of a run, or of what else lies there. Raises FileError if it is damaged."""
    what = "the settings of a run"
    known: dict[str, Any] = read_json(run / "config.json", dict[str, Any], what)
    if known.get("stage") == stage:
        known = read_json(run / "config.json", RunFile, what, more=True)
    return known


def _changed(known: dict[str, Any], config: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What differs, before and now, of what decides how a run ends."""
    changed = {}
    for key, value in config.items():
        before = known.get(key)
        same = same_place(before, value, known.get("cwd", ".")) if key in PLACES else before == value
        if key not in (*WATCHING, "out", "cwd") and not same:
            changed[key] = before, value
    return changed


def _is_pace(key: str, before: Any, now: Any) -> bool:
    """Whether that may change while a run goes on."""
    if key != "set":
        return key in PACE
    before, now = before or {}, now or {}
    differ = [name for name in before | now if before.get(name) != now.get(name)]
    return all(name.startswith(RATES) for name in differ)
