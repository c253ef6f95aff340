"""The best checkpoint so far, by what is measured while a policy trains."""

import math
import shutil
from pathlib import Path

import torch

from apprentice.common.files import replacing
from apprentice.distill.runs.checkpoint import BEST, NEWEST, Position, Trainee, damage, seal

LOSS, SUCCESS = "validation_loss", "success"


class Best:
    """What was the best at its time, and with `keeps` its weights in `run/best`; all processes know the same.

    Attributes:
        keeps: whether its weights are kept.
        value, step, worse: the best, after how many steps it was, and how often it was measured since then.
    """

    def __init__(self, run: Path, position: Position, rolls_out: bool, keeps: bool, trainee: Trainee):
        self.folder, self.keeps, self.trainee = run / BEST, keeps, trainee
        self.measure = SUCCESS if rolls_out else LOSS
        self.value, self.step, self.worse = position.best, position.best_step, position.worse
        extended = 0 < position.step == position.begun
        if keeps and trainee.main and extended and position.weights == position.best_step:
            with replacing(self.folder) as fresh:
                shutil.copytree(run / NEWEST, fresh)
        trainee.accelerator.wait_for_everyone()
        if keeps and not position.finished and not self._is_there():
            self.value = None

    @property
    def found(self) -> tuple[float | None, int, int]:
        """What a `Position` says of it."""
        return self.value, self.step, self.worse

    @property
    def title(self) -> str:
        """The best, for a person."""
        what = "a success of" if self.measure == SUCCESS else "a held-out loss of"
        return f"{what} {self.value or 0.0:.4g}"

    def judge(self, seen: dict[str, float], step: int) -> bool:
        """Whether what was `seen` after `step` steps is better than all before. All processes take part."""
        if self.measure not in seen:
            return False
        measured = seen[self.measure] if self.trainee.main else 0.0
        device = self.trainee.accelerator.device
        value = float(self.trainee.accelerator.reduce(torch.tensor(measured, device=device), "sum"))
        sign = 1 if self.measure == SUCCESS else -1
        if math.isfinite(value) and (self.value is None or sign * value > sign * self.value):
            self.value, self.step, self.worse = value, step, 0
            return True
        self.worse += 1
        return False

    def save(self, position: Position) -> None:
        """Keep the weights as they are. All processes take part."""
        if not self.keeps:
            return
        if not self.trainee.main:
            self.trainee.write(None)
            return
        with replacing(self.folder) as fresh:
            self.trainee.write(fresh)
            seal(fresh, position)

    def _is_there(self) -> bool:
        """Whether `run/best` holds the best that the run's position speaks of."""
        return self.folder.exists() and not damage(self.folder) and Position.of(self.folder).best_step == self.step
