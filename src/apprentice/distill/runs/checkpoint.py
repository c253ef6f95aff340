"""What a run leaves behind while it trains, so that it can be killed at any moment and go on as if it had not been.

`run/checkpoint` is the newest checkpoint: the policy, as LeRobot loads it, and in `training_state/` what it takes to
go on. `run/previous` is the one before, `run/best` the best one while a run that keeps it trains. Each lists its own
files with their sizes and SHA-256, so that damage is found when a checkpoint is read and not a thousand steps later.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypedDict

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from apprentice.common.errors import FileError, UserError
from apprentice.common.files import disk_full_at, move, read_json, write_json
from apprentice.common.progress import console
from apprentice.distill.learner import Learner

MANIFEST = "manifest.json"
NEWEST, BEFORE, FRESH, BEST = "checkpoint", "previous", ".checkpoint", "best"
STATE = Path("training_state", "state.safetensors")


class Manifest(TypedDict):
    """manifest.json: a checkpoint's `Position`, and of each of its files the size (bytes) and the SHA-256."""

    step: int
    samples: int
    begun: int
    finished: int
    best: float | None
    best_step: int
    worse: int
    weights: int
    files: dict[str, tuple[int, str]]


class Progress(TypedDict):
    """progress.json: what a run took until its checkpoint."""

    seconds: float


@dataclass(frozen=True)
class Position:
    """Where a run stands after its checkpoint.

    Attributes:
        step: optimizer steps taken.
        samples: samples that they trained on.
        begun: step at which the present schedule of the learning rate began: 0, or the end of a finished run that now
            takes more steps.
        finished: how many steps the run was to take when it finished with this checkpoint; 0 before that.
        best: the best that was measured so far, and `best_step` the steps taken by then; None before the first.
        worse: how often it was measured since then.
        weights: after how many steps the checkpoint's weights are: `step`, or `best_step` when a run that keeps the
            best is finished.
    """

    step: int = 0
    samples: int = 0
    begun: int = 0
    finished: int = 0
    best: float | None = None
    best_step: int = 0
    worse: int = 0
    weights: int = 0

    @classmethod
    def of(cls, folder: Path) -> "Position":
        """The position that a checkpoint's manifest names. Raises FileNotFoundError and FileError if it has none."""
        known: Any = _manifest(folder)
        return cls(**{field.name: known[field.name] for field in fields(cls)})


class Trainee:
    """A policy and what trains it. With FSDP a process holds a part of each tensor.

    Attributes:
        learner: the policy and how it learns.
        policy: the policy.
        model: the policy, wrapped for many processes if there are many.
        optimizer: what steps it.
        accelerator: the processes; the `main` one writes.
        trained: the parameters that train, by name.
        average: the moving average of each of them, as it lies on this process; empty without one.
        repeats: whether gradients are computed such that they come out the same each time.
    """

    def __init__(
        self,
        learner: Learner,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        accelerator: Accelerator,
        ema: float,
    ):
        self.learner, self.policy, self.model, self.optimizer = learner, learner.policy, model, optimizer
        self.accelerator, self.ema, self.main = accelerator, ema, accelerator.is_main_process
        self.trained = {name: p for name, p in self.policy.named_parameters() if p.requires_grad}
        self.average = [_local(p).clone() for p in self.trained.values()] if ema else []
        self.repeats = True

    def autocast(self) -> torch.autocast:
        """Inside, losses are computed as precisely as the learner wants."""
        return torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.learner.bfloat16)

    def follow(self, step: int) -> None:
        """Let the average follow after step number `step`; early steps are forgotten faster."""
        if self.average:
            decay = min(self.ema, (1 + step) / (10 + step))
            get_ema_multi_avg_fn(decay)(self.average, [_local(p) for p in self.trained.values()], None)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the policy's weights are the average, if there is one."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        if self.accelerator.is_fsdp2:
            self.model.reshard()  # type: ignore[operator]  # after a pass without gradients it holds all of them
        for p, average in zip(self.trained.values(), self.average, strict=bool(self.average)):
            weights = _local(p).clone()
            _local(p).copy_(average)
            average.copy_(weights)

    def state(self) -> dict[str, Tensor]:
        """What the policy's checkpoint does not hold: the optimizer's state, and weights that are not the average."""
        state = {f"trained/{name}": whole(p) for name, p in self.trained.items()} if self.average else {}
        for name, p in self.trained.items():
            state |= {f"{key}/{name}": whole(value) for key, value in self.optimizer.state.get(p, {}).items()}
        return state

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor]) -> None:
        """Go back to a `state`, with the weights that were saved with it."""
        for name, value in state.items():
            key, _, parameter = name.partition("/")
            p = self.trained[parameter]
            if key == "trained":
                p.copy_(_cut_like(value, p))
            else:
                self.optimizer.state[p][key] = _cut_like(value, p) if value.ndim else value.to(self._counts_on(p))

    def _counts_on(self, parameter: Tensor) -> torch.device:
        """Where the optimizer wants its counts of steps: beside the parameters if it is fused."""
        fused = any(group.get("fused") for group in self.optimizer.param_groups)
        return parameter.device if fused else torch.device("cpu")

    def finite(self) -> bool:
        """Whether all weights that train, and their average, are numbers. All processes take part."""
        local = [_local(p) for p in self.trained.values()] + self.average
        lost = torch.zeros((), device=self.accelerator.device)
        for each in local:
            lost += (~each.isfinite()).any().float()
        return not float(self.accelerator.reduce(lost, "sum"))

    def write(self, folder: Path | None) -> None:
        """Write the policy, with averaged weights, into `folder`; None on the processes that only hand theirs in."""
        with self.averaged():
            tensors = self.policy.state_dict(keep_vars=True)
            sharded = any(isinstance(each, DTensor) for each in tensors.values())
            known = {id(each): whole(each) for each in tensors.values()} if sharded else {}
            if folder is None:
                return
            gathered = {name: known[id(each)] for name, each in tensors.items()} if sharded else None
            self.policy.save_pretrained(folder, state_dict=gathered)
        self.learner.contract.save(folder)
        for processor in self.learner.processors:
            processor.save_pretrained(folder)


def save(trainee: Trainee, run: Path, position: Position, seconds: float, keep_best: bool = False) -> None:
    """Write `run/checkpoint` at `position`, after `seconds`. What was there is the one before, until the run is
    finished: then the checkpoint is all that stays, the best one to `keep_best`, and holds the policy alone.

    All processes take part.
    """
    with disk_full_at(run / FRESH, run / NEWEST):
        _save(trainee, run, position, seconds, keep_best)


def _save(trainee: Trainee, run: Path, position: Position, seconds: float, keep_best: bool) -> None:
    fresh, last = run / FRESH, bool(position.finished)
    if trainee.main:
        shutil.rmtree(fresh, ignore_errors=True)
    kept = position.best_step if keep_best and last and position.best is not None else position.step
    if kept == position.step:
        trainee.write(fresh if trainee.main else None)
    elif trainee.main:
        shutil.copytree(run / BEST, fresh)
    state = {} if last else trainee.state()
    if not trainee.main:
        return
    if not last:
        (fresh / STATE).parent.mkdir()
        save_file(state, fresh / STATE, {"format": "pt"})
        write_json((fresh / STATE).with_name("progress.json"), {"seconds": seconds})
    seal(fresh, replace(position, weights=kept))
    move(fresh, run / NEWEST)
    shutil.rmtree(run / BEFORE, ignore_errors=True)
    if fresh.exists() and not last:  # what was there
        os.replace(fresh, run / BEFORE)
    shutil.rmtree(fresh, ignore_errors=True)
    if last:
        shutil.rmtree(run / BEST, ignore_errors=True)


def seal(folder: Path, position: Position) -> None:
    """List the files of a checkpoint, and where it stands."""
    (folder / MANIFEST).unlink(missing_ok=True)
    write_json(folder / MANIFEST, {**asdict(position), "files": _listed(folder)})


def recover(run: Path) -> Position:
    """Make the newest whole checkpoint `run/checkpoint`, and return where it stands: at the beginning if there is none.

    A damaged one is named, and moved aside. One that was whole, but not yet in its place, is put there.
    """
    if not (run / NEWEST).exists() and (run / FRESH).exists() and not damage(run / FRESH):
        os.replace(run / FRESH, run / NEWEST)
    shutil.rmtree(run / FRESH, ignore_errors=True)
    for name in (NEWEST, BEFORE):
        folder = run / name
        if not folder.exists():
            continue
        fault = damage(folder)
        if not fault:
            if name == BEFORE:
                os.replace(folder, run / NEWEST)
            position = Position.of(run / NEWEST)
            for rest in (BEFORE, BEST) if position.finished else ():
                shutil.rmtree(run / rest, ignore_errors=True)
            return position
        aside = run / f"{name}.damaged"
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(folder, aside)
        then = (
            "continuing from the checkpoint before it"
            if name == NEWEST and (run / BEFORE).exists()
            else "starting over"
        )
        console.print(f"{folder}: {fault}; {then}", highlight=False, soft_wrap=True)
    return Position()


def restore(trainee: Trainee, run: Path) -> float:
    """Put a trainee whose weights are those of `run/checkpoint` back to where that was written; its seconds, or 0 if it
    was the last.
    """
    file = run / NEWEST / STATE
    if not file.exists():
        return 0.0
    trainee.restore(load_file(file))
    progress: Progress = read_json(file.with_name("progress.json"), Progress, "what a run took so far")
    return progress["seconds"]


def check_whole(folder: Path) -> None:
    """Raise UserError if a checkpoint that lists its files is damaged."""
    fault = damage(folder) if (folder / MANIFEST).exists() else ""
    if fault:
        raise UserError(f"expected a whole checkpoint in {folder}, found {fault}; fix: copy or train it again")


def damage(folder: Path) -> str:
    """What is wrong with a checkpoint: a file that is missing, cut off or altered; nothing if it is whole."""
    try:
        listed = _manifest(folder)["files"]
    except (OSError, FileError):
        return f"no readable {MANIFEST}"
    for name, (size, digest) in listed.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
        if _digest(file) != digest:
            return f"{name} is not what was written"
    return ""


def _manifest(folder: Path) -> Manifest:
    found: Manifest = read_json(folder / MANIFEST, Manifest, "a checkpoint's list of files")
    return found


def whole(tensor: Tensor) -> Tensor:
    """A tensor on the CPU, put together from all processes, which all must ask, if FSDP has cut it up."""
    if isinstance(tensor, DTensor):
        return tensor.full_tensor().detach().cpu().clone()  # without the padding behind it
    return tensor.detach().cpu()


def _local(tensor: Tensor) -> Tensor:
    """What lies on this process of a tensor that FSDP may have cut up."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def _cut_like(value: Tensor, tensor: Tensor) -> Tensor:
    """A whole tensor cut up, and placed, as another is."""
    value = value.to(tensor.device)
    if isinstance(tensor, DTensor):
        return distribute_tensor(value, tensor.device_mesh, tensor.placements)
    return value


def _listed(folder: Path) -> dict[str, tuple[int, str]]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): (file.stat().st_size, _digest(file)) for file in files}


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
