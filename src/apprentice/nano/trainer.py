"""Training on packed questions, of the nano VLM or of a projector: one loop, and a checkpoint that resumes exactly."""

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from apprentice.common.device import best_device, mixed_precision
from apprentice.common.errors import FileError, UserError
from apprentice.common.files import replacing
from apprentice.common.progress import Meter
from apprentice.nano.batches import Corpus

COOL_DOWN = 0.4
CHECKPOINT = "checkpoint.safetensors"


class Settings(Protocol):
    """What the loop reads of a configuration; see `PretrainConfig`."""

    steps: int
    batch: int
    questions: int
    lr: float
    warmup: float
    seed: int
    checkpoint_every: float


class Trainer(ABC):
    """Named parameters and their optimizer. Groups of parameters have a `scale`, of the learning rate."""

    check_every = 0  # steps; 0: never

    def __init__(
        self, config: Settings, named: dict[str, nn.Parameter], groups: list[dict[str, Any]], ema: float = 0.0
    ):
        """`ema`: of the moving average of the weights, how much of it is kept at a step; 0 for none."""
        self.config, self.named, self.device, self.step, self.ema = config, named, best_device(), 0, ema
        self.average = {name: p.detach().clone() for name, p in named.items()} if ema else {}
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98), fused=True)

    @abstractmethod
    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """What is minimised, in parts (scalars)."""

    def questions_at(self, step: int) -> int:
        """How many questions are drawn for a layout at a step."""
        return self.config.questions

    def rate(self) -> float:
        """Learning rate: up linearly, level, and down to nothing over the last COOL_DOWN of the steps."""
        config = self.config
        up = (self.step + 1) / max(1.0, config.warmup * config.steps)
        return config.lr * min(1.0, up, (config.steps - self.step) / (COOL_DOWN * config.steps))

    def update(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """One optimizer step; returns the losses."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["scale"] * self.rate()
        with mixed_precision(self.device):
            losses = self.losses({key: value.to(self.device) for key, value in batch.items()})
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        nn.utils.clip_grad_norm_(list(self.named.values()), 1.0)
        self.optimizer.step()
        self.step += 1
        if self.average:  # at first it keeps less, so that it forgets where it began
            share = 1 - min(self.ema, self.step / (self.step + 10))
            with torch.no_grad():
                torch._foreach_lerp_(list(self.average.values()), [p.data for p in self.named.values()], share)
        return {name: float(loss.detach()) for name, loss in losses.items()}

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The parameters are their moving averages meanwhile, if there are any."""
        kept = {name: p.detach().clone() for name, p in self.named.items() if self.average}
        with torch.no_grad():
            for name in kept:
                self.named[name].copy_(self.average[name])
            try:
                yield
            finally:
                for name, value in kept.items():
                    self.named[name].copy_(value)

    def check(self) -> dict[str, float]:
        """What is measured on layouts that are not trained on, every `check_every` steps; nothing here."""
        return {}

    def save(self, path: Path) -> None:
        """Write weights, optimizer state and the step into one safetensors file, atomically.

        Raises UserError if they are no numbers; what was saved before is kept.
        """
        tensors = {name: p.detach().cpu().contiguous() for name, p in self.named.items()}
        tensors |= {f"average/{name}": value.detach().cpu().contiguous() for name, value in self.average.items()}
        for name, parameter in self.named.items():
            state = self.optimizer.state.get(parameter, {})
            tensors |= {f"{key}/{name}": value.detach().cpu().contiguous() for key, value in state.items()}
        if not all(bool(value.isfinite().all()) for value in tensors.values()):
            raise UserError(
                f"expected finite weights after step {self.step}, found some that are not; they are not saved, and "
                f"{path} is as it was before; fix: a smaller --lr and another output folder"
            )
        with replacing(path) as fresh:
            save_file(tensors, fresh, metadata={"step": str(self.step)})

    def resume(self, path: Path) -> None:
        """Continue from a checkpoint, if there is one. Raises FileError if it is damaged."""
        if path.exists():
            with _named(path, "remove that file, then the training begins again"):
                self._read(path)

    def begin_with(self, path: Path) -> None:
        """Take the averaged weights of another training's checkpoint. Raises FileError if they do not fit."""
        fix = "give the output folder of a training of the same sizes"
        with _named(path, fix), safe_open(path, "pt") as stored, torch.no_grad():
            for name, parameter in self.named.items():
                parameter.copy_(stored.get_tensor(f"average/{name}"))
                self.average[name].copy_(parameter)

    def _read(self, path: Path) -> None:
        with safe_open(path, "pt") as stored, torch.no_grad():
            self.step = int(stored.metadata()["step"])
            keys = set(stored.keys())
            for name, parameter in self.named.items():
                parameter.copy_(stored.get_tensor(name))
                if self.average:
                    self.average[name].copy_(stored.get_tensor(f"average/{name}"))
                states = [s for key in keys if key.endswith("/" + name) and (s := key.split("/")[0]) != "average"]
                self.optimizer.state[parameter] = {
                    s: stored.get_tensor(f"{s}/{name}").to("cpu" if s == "step" else self.device) for s in states
                }


@contextmanager
def _named(path: Path, fix: str) -> Iterator[None]:
    """Raise FileError with `fix` if what is read in the context is no such checkpoint."""
    try:
        yield
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise FileError(
            f"expected the state of a training in {path}, found: {type(error).__name__} {str(error).splitlines()[0]}; "
            f"fix: {fix}"
        ) from error


def rows_of(step: int, config: Settings, size: int) -> np.ndarray:
    """Rows of the batch of a step: a new permutation every epoch."""
    index = np.arange(step * config.batch, (step + 1) * config.batch)
    epochs = {int(e): np.random.default_rng([config.seed, int(e)]).permutation(size) for e in set(index // size)}
    return np.array([epochs[int(i // size)][i % size] for i in index])


def batches(corpus: Corpus, trainer: Trainer) -> Iterator[dict[str, Tensor]]:
    """Batches from the trainer's step on, the next one made while the last one is used."""
    config, first = trainer.config, trainer.step

    def make(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([config.seed, step, 7])
        return corpus.batch(rows_of(step, config, len(corpus)), rng, trainer.questions_at(step), augment=True)

    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(make, first)
        for step in range(first, config.steps):
            ready, following = following.result(), pool.submit(make, step + 1)
            yield ready


def train(trainer: Trainer, corpus: Corpus, output: Path, what: str) -> None:
    """Train `what` to the end, going on from `output`'s checkpoint if there is one; log to log.jsonl there.

    Killed at any moment and called again, it ends with the same weights. "cpu" in the log is in seconds, since the
    process began to train.
    """
    config = trainer.config
    trainer.resume(output / CHECKPOINT)
    saved, computed = time.monotonic(), time.process_time()
    with Meter(what, config.steps, trainer.step) as meter, (output / "log.jsonl").open("a") as log:
        for batch in batches(corpus, trainer):
            losses = trainer.update(batch)
            meter.advance(note=" ".join(f"{name} {loss:.3f}" for name, loss in losses.items()))
            now = time.monotonic()
            if trainer.step % 20 == 0:
                line = {
                    "step": trainer.step,
                    "cpu": round(time.process_time() - computed, 1),
                    "loss": sum(losses.values()),
                }
                log.write(json.dumps(line | losses | {"samples": trainer.step * config.batch}) + "\n")
                log.flush()
            if trainer.check_every and trainer.step % trainer.check_every == 0:
                log.write(json.dumps({"step": trainer.step, "unseen": trainer.check()}) + "\n")
                log.flush()
            if now - saved > config.checkpoint_every:
                trainer.save(output / CHECKPOINT)
                saved = now
    trainer.save(output / CHECKPOINT)
