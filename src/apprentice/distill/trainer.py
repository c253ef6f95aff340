"""One training loop for both stages: plain PyTorch on Accelerate.

A run is a folder: config.json, log.jsonl, checkpoint/ (a LeRobot policy folder) and, when finished, cost.json. What a
step trains on depends on the seed and the step's number alone, so a run that was killed at any moment and started again
ends with the same weights as one that was not.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.optim import load_optimizer_state, save_optimizer_state
from lerobot.utils.constants import ACTION, OBS_STATE
from torch.optim.lr_scheduler import LambdaLR

from apprentice.data.dataset import action_chunks, column, instructions, neighbours
from apprentice.device import fast_bfloat16
from apprentice.distill.cache import Rows
from apprentice.errors import UserError
from apprentice.experts.base import Batch
from apprentice.files import read_json, replacing, write_json, write_text
from apprentice.policy.configuration_apprentice import ApprenticeConfig
from apprentice.policy.history import ABSENT
from apprentice.policy.modeling_apprentice import ApprenticePolicy
from apprentice.policy.processor_apprentice import make_apprentice_pre_post_processors
from apprentice.progress import Meter

LOG_EVERY = 20  # steps
SAVE_EVERY = 60.0  # s
WARM_UP = 0.1  # of all steps (PAPER, recipe)


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train.

    Attributes:
        steps: optimizer steps.
        batch_size: samples a step, over all processes together.
        seed: decides the order of the data.
    """

    steps: int
    batch_size: int
    seed: int


class Samples:
    """Batches of every n-th frame of a dataset, whose images are cached; the rest is small and kept in memory.

    Observations are of the student's own steps. Raises UserError if these are not among every n-th frame.
    """

    def __init__(
        self,
        dataset: LeRobotDataset,
        config: ApprenticeConfig,
        rows: dict[str, Rows],
        device: torch.device,
        every: int = 1,
    ):
        self.rows, self.device = rows, device
        if config.n_obs_steps > 1 and config.history_spacing % every:
            raise UserError(
                f"expected --every to divide the {config.history_spacing} frames between steps of a history, "
                f"found {every}; fix: --every=1"
            )
        self.state = torch.from_numpy(column(dataset, OBS_STATE)[::every])
        self.task = instructions(dataset)[::every]
        actions, pad = action_chunks(dataset, config.action_delta_indices)
        self.actions, self.pad = torch.from_numpy(actions[::every]), torch.from_numpy(pad[::every])
        seen, absent = (each[::every] for each in neighbours(dataset, config.history))
        # What lies before an episode is not read; its first frame need not be among every n-th.
        self.seen = np.where(absent, np.arange(len(seen))[:, None], seen // every)
        self.absent = torch.from_numpy(absent)

    def __len__(self) -> int:
        return len(self.task)

    def __getitem__(self, index: np.ndarray) -> Batch:
        """A raw batch with cached rows, for frames `index` (B,)."""
        tensors = {ACTION: self.actions[index], "action_is_pad": self.pad[index]}
        seen = self.seen[index]
        if seen.shape[1] == 1:
            seen = seen[:, 0]
        else:
            tensors[ABSENT] = self.absent[index]
        tensors[OBS_STATE] = self.state[seen]
        tensors |= {key: rows[seen] for key, rows in self.rows.items()}
        batch: Batch = {key: value.to(self.device) for key, value in tensors.items()}
        return batch | {"task": [self.task[i] for i in index]}


def order(step: int, batch_size: int, count: int, seed: int) -> np.ndarray:
    """Which samples (batch_size,) step number `step` trains on: an endless chain of permutations, cut into batches."""
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs = positions // count
    shuffled = {int(e): np.random.default_rng([seed, int(e)]).permutation(count) for e in np.unique(epochs)}
    return np.array([shuffled[int(e)][p % count] for e, p in zip(epochs, positions, strict=True)])


def decay(steps: int) -> Callable[[int], float]:
    """Warm up over a tenth of the steps, then fall linearly to zero at the last (PAPER, recipe)."""
    warm = max(1, round(WARM_UP * steps))
    return lambda step: min((step + 1) / warm, (steps - step) / max(1, steps - warm))


def train(policy: ApprenticePolicy, samples: Samples, schedule: Schedule, run: Path) -> None:
    """Train `policy` in place to the end of `schedule`, going on from `run`'s checkpoint if there is one.

    Raises FloatingPointError if the loss is not finite; the last good checkpoint is then kept.
    """
    accelerator = Accelerator(mixed_precision="bf16" if fast_bfloat16(policy.vlm.device) else "no")
    optimizer = torch.optim.AdamW(policy.get_optim_params(), weight_decay=policy.config.weight_decay)
    scheduler = LambdaLR(optimizer, decay(schedule.steps))
    first, spent = _resume(run, optimizer, scheduler)
    model, optimizer = accelerator.prepare(policy, optimizer)
    trained = [p for p in policy.parameters() if p.requires_grad]
    rank, world = accelerator.process_index, accelerator.num_processes
    start = saved = time.monotonic()
    policy.train()
    note = ""
    with (run / "log.jsonl").open("a") as log, Meter(policy.config.stage, schedule.steps, first) as meter:
        for step in range(first, schedule.steps):
            index = order(step, schedule.batch_size, len(samples), schedule.seed)[rank::world]
            torch.manual_seed((schedule.seed << 32) + step * world + rank)
            with accelerator.autocast():
                loss, parts = model(samples[index])
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            now = time.monotonic()
            seconds = spent + now - start
            if step % LOG_EVERY == 0 or step + 1 == schedule.steps:
                value = float(accelerator.reduce(loss.detach(), "mean"))
                if not math.isfinite(value):
                    raise FloatingPointError(
                        f"loss is {value} at step {step}; the checkpoint before it is kept in {run}"
                    )
                entry = {
                    "step": step,
                    "seconds": seconds,
                    "samples": (step + 1) * schedule.batch_size,
                    "loss": value,
                }
                log.write(json.dumps(entry | parts) + "\n")
                log.flush()
                note = f"loss {value:.4f}"
            meter.advance(note=note)
            if accelerator.is_main_process and (now - saved > SAVE_EVERY or step + 1 == schedule.steps):
                save(policy, run, optimizer, step + 1, seconds, schedule)
                saved = time.monotonic()


def save(
    policy: ApprenticePolicy,
    run: Path,
    optimizer: torch.optim.Optimizer,
    step: int,
    seconds: float,
    schedule: Schedule,
) -> None:
    """Write `run/checkpoint` atomically; the optimizer's state goes with it until the run is finished."""
    last = step == schedule.steps
    before, after = make_apprentice_pre_post_processors(policy.config)
    with replacing(run / "checkpoint") as folder:
        policy.save_pretrained(folder)
        before.save_pretrained(folder)
        after.save_pretrained(folder)
        if not last:
            state = folder / "training_state"
            state.mkdir()
            save_optimizer_state(optimizer, state)
            write_json(state / "progress.json", {"step": step, "seconds": seconds})
    if last:
        trainable = sum(p.numel() for p in policy.parameters() if p.requires_grad)
        write_json(
            run / "cost.json",
            {
                "stage": policy.config.stage,
                "seconds": seconds,
                "samples": step * schedule.batch_size,
                "trainable_parameters": trainable,
                "total_parameters": sum(p.numel() for p in policy.parameters()),
            },
        )


def _resume(run: Path, optimizer: torch.optim.Optimizer, scheduler: LambdaLR) -> tuple[int, float]:
    """Put optimizer, schedule and log back to where `run`'s checkpoint was written; return its step and seconds."""
    state, log = run / "checkpoint" / "training_state", run / "log.jsonl"
    if not state.exists():
        write_text(log, "")
        return 0, 0.0
    progress = read_json(state / "progress.json")
    load_optimizer_state(optimizer, state)
    scheduler.last_epoch = progress["step"]
    lines = [line for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]
    write_text(log, "".join(line for line in lines if json.loads(line)["step"] < progress["step"]))
    return progress["step"], progress["seconds"]
