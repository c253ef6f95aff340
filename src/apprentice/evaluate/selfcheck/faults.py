"""What is wrong with a policy: found before hours are spent, from its checkpoint alone; or by its name, when it shows.

A policy with a contract is held to it elsewhere (`inspect_checkpoint`). Of others little can be known, and that much is
compared with the suite's reference: how large their images were, what their statistics say of robot and pictures.
"""

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file

from apprentice.common.adapters import policy_file, preprocessing, rename_map, whole_checkpoint
from apprentice.common.errors import UserError
from apprentice.common.watch import time_limit
from apprentice.data.contract import FILE as CONTRACT
from apprentice.data.contract import Contract, hash_of
from apprentice.simulators.base import Usual

FIRST_PLAN, NEXT_PLAN = 120.0, 30.0  # s: the first of a process may compile
FAR = 6.0  # standard deviations from the mean beyond which a start is not of this robot
CLEARLY = 0.05  # mean levels, 0 to 1, by which exchanged cameras must fit better
OTHER_ROOM = 0.25  # mean level, 0 to 1, by which pictures differ that show something else
BEYOND = 1.5  # times the largest action: statistics of other units exceed it

Statistics = dict[str, dict[str, np.ndarray]]
_planned: set[str] = set()  # policies that have planned in this process


@contextmanager
def watched(policy: str, episode: str, limited: bool = True) -> Iterator[None]:
    """Around one plan: what goes wrong gets the episode's name; if `limited`, taking too long ends the worker.

    Raises UserError instead of any exception.
    """
    seconds = NEXT_PLAN if policy in _planned else FIRST_PLAN
    with time_limit(seconds) if limited else nullcontext():  # who asks a server has a limit of its own
        try:
            yield
        except Exception as error:
            raise UserError(f"{episode}: {_text(error)}") from error
    _planned.add(policy)


def _text(error: Exception) -> str:
    if isinstance(error, UserError):
        return str(error)
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"expected a plan, found {type(error).__name__}: {error} ({frame.filename}:{frame.lineno}); fix: mend the "
        "policy; if it is about shapes, compare --size and the camera names with what it was trained on"
    )


def check_statistics(name: str, folder: Path) -> None:
    """Raise UserError if a student's statistics are not those that its contract was signed with."""
    whole = whole_checkpoint(folder)
    signed = Contract.load(whole).statistics if (whole / CONTRACT).exists() else None
    weights = whole / "model.safetensors"
    if signed is None or not weights.exists():
        return
    with safe_open(weights, "numpy") as stored:
        names = {f"{kind}_{part}" for kind in ("state", "action") for part in ("offset", "scale")}
        if not names <= set(stored.keys()):
            return
        statistics = {
            kind: {part: stored.get_tensor(f"{kind}_{part}") for part in ("offset", "scale")}
            for kind in ("state", "action")
        }
    found = Contract(statistics=hash_of(statistics))
    Contract(statistics=signed).check(found, f"the contract of policy {name}", "its weights (of another dataset?)")


def doubts(folder: Path, environment: Contract, usual: Usual | None) -> list[str]:
    """What speaks against this policy in this environment, in which policies usually look so: expected, found, fix."""
    config = policy_file(folder)
    statistics, renamed = _normaliser(folder)
    images = [statistics.get(renamed.get(camera, camera), {}) for camera in environment.cameras or ()]
    found = [_measured(config, environment.image_size)]
    if usual is not None:
        found.append(_start(statistics.get("observation.state", {}), usual, environment.state or ()))
        found.append(_units(statistics.get("action", {}), usual, environment.action or ()))
        found.append(_cameras(images, usual.colours))
    if not (whole_checkpoint(folder) / CONTRACT).exists():
        found.append(
            "expected a contract.json, found none, so nothing tells which way its images were turned (here by "
            f"{environment.rotation or 0} degrees, as in LeRobot's datasets); fix: write one, or look at a film of its "
            "first episodes"
        )
    return [doubt for doubt in found if doubt]


def _normaliser(folder: Path) -> tuple[Statistics, dict[str, str]]:
    """The statistics that a checkpoint normalises with, and how it renames observations."""
    statistics: Statistics = {}
    for step in preprocessing(folder):
        if step.get("registry_name") == "normalizer_processor" and "state_file" in step:
            for key, values in load_file(folder / step["state_file"]).items():
                feature, _, kind = key.rpartition(".")
                statistics.setdefault(feature, {})[kind] = values.astype(np.float64).reshape(-1)
    return statistics, rename_map(folder)


def _measured(config: dict[str, Any], size: tuple[int, int] | None) -> str | None:
    """Image sizes."""
    features = config["input_features"].items()
    sizes = {key: tuple(f["shape"][-2:]) for key, f in features if f["type"] == "VISUAL"}
    other = {key: shape for key, shape in sizes.items() if shape != size}
    if not other or size is None:
        return None
    said = ", ".join(f"{key} of {height} x {width} px" for key, (height, width) in other.items())
    (height, _), *_ = other.values()
    return (
        f"expected images of {size[0]} x {size[1]} px, as they are drawn here, found that it was trained on {said}; "
        f"fix: --size {height} (resizing afterwards changes what it sees)"
    )


def _start(state: dict[str, np.ndarray], usual: Usual, names: Sequence[str]) -> str | None:
    """Is the robot's start where the policy's data have seen it?"""
    start = usual.start.astype(np.float64)
    if not {"mean", "std"} <= state.keys() or len(state["mean"]) != len(start):
        return None
    away = np.abs(start - state["mean"]) / np.maximum(state["std"], 1e-3)
    column = int(away.argmax())
    if away[column] <= FAR:
        return None
    return (
        f"expected statistics of this robot, which starts this suite at {names[column]} = {start[column]:.3g}, "
        f"found a mean of {state['mean'][column]:.3g} and a deviation of {state['std'][column]:.2g}; "
        "fix: use the statistics of the dataset that it was trained on, or evaluate it in the suite of that dataset"
    )


def _units(action: dict[str, np.ndarray], usual: Usual, names: Sequence[str]) -> str | None:
    """Are actions as large as they usually are?"""
    if {"min", "max"} <= action.keys():
        most = np.maximum(np.abs(action["min"]), np.abs(action["max"]))
    elif {"mean", "std"} <= action.keys():
        most = np.abs(action["mean"]) + action["std"]
    else:
        return None
    largest, moving = BEYOND * usual.limit, most[: usual.moving]
    if len(most) != len(names) or (most.max() < largest and moving.max() > usual.least):
        return None
    column = int(most.argmax() if most.max() >= largest else moving.argmax())
    return (
        f"expected statistics of actions between {-usual.limit:g} and {usual.limit:g} ({', '.join(names)}), found "
        f"{names[column]} up to {most[column]:.3g}; fix: use the statistics of the dataset that it was trained on, and "
        "actions in these units"
    )


def _cameras(images: list[dict[str, np.ndarray]], colours: np.ndarray) -> str | None:
    """Do the mean colours of its images fit these cameras, or the other way round? ImageNet's tell nothing."""
    means = [statistics["mean"] for statistics in images if len(statistics.get("mean", ())) == 3]
    if len(means) < len(colours) or np.ptp(means, axis=0).max() < 1e-4:
        return None
    off = np.array([[np.abs(mean - seen).mean() for seen in colours] for mean in means])
    said = " and ".join(f"{', '.join(f'{level:.2f}' for level in mean)}" for mean in means)
    levels = " and ".join(f"{', '.join(f'{level:.2f}' for level in seen)}" for seen in colours)
    expectation = f"expected images whose mean colours are near those of the scene's and the wrist's camera ({levels})"
    if off[0, 1] + off[1, 0] < off[0, 0] + off[1, 1] - CLEARLY:
        return f"{expectation}, found {said}: cameras swapped? fix: exchange them where it was trained, or rename them"
    if np.diag(off).mean() > OTHER_ROOM:
        return f"{expectation}, found {said}; fix: use the statistics of the dataset that it was trained on"
    return None
