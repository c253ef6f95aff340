"""One training loop for both stages: plain PyTorch on Accelerate, in one process or in many.

A run is a folder: config.json, log.jsonl, checkpoint/ (a LeRobot policy folder) and, when finished, cost.json. What a
step trains on depends on the seed and the step's number alone, so a run that was killed at any moment and started again
ends with the same weights as one that was not. How many processes share a step, and in how many parts each computes
its own share, changes nothing but the order in which numbers are added up.
"""

import copy
import math
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs, gather_object
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.utils.constants import ACTION, OBS_STATE

from apprentice.data.dataset import action_chunks, column, episode_bounds, instructions, neighbours
from apprentice.device import best_device, fast_bfloat16
from apprentice.distill.checkpoint import Trainee, restore, save, whole
from apprentice.distill.rows import Views
from apprentice.distill.tracking import Clock, Log
from apprentice.errors import UserError
from apprentice.experts.base import ACTIONS, Batch
from apprentice.files import write_json
from apprentice.policy.configuration_apprentice import ApprenticeConfig
from apprentice.policy.history import ABSENT, STEPS, each_step
from apprentice.policy.modeling_apprentice import STATE_NOISE, ApprenticePolicy
from apprentice.progress import Meter, console

LOG_EVERY = 20  # steps
SAVE_EVERY = 60.0  # s
WARM_UP = 0.1  # of all steps (PAPER, recipe)
PATIENCE = timedelta(days=1)  # of processes while one fills the caches; a dead one ends the others at once
NOISE_SEEDS = 1 << 62  # far from those that the rest draws from


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train.

    Attributes:
        steps: optimizer steps.
        batch_size: samples a step, over all processes together.
        seed: decides the order of the data.
        accumulate: parts in which a process computes its share of a step, one after the other.
        ema: decay of the moving average of the weights, which is then what is saved; 0 for none.
    """

    steps: int
    batch_size: int
    seed: int
    accumulate: int = 1
    ema: float = 0.0


class Samples:
    """Batches of every n-th frame of a dataset, whose images are cached; the rest is small and kept in memory.

    With K `views`, there are as many samples of each frame: number `view * frames + frame`, view 0 first. Observations
    are of the student's own steps. Raises UserError if these are not among every n-th frame.
    """

    def __init__(
        self,
        dataset: LeRobotDataset,
        config: ApprenticeConfig,
        rows: dict[str, Views],
        device: torch.device,
        every: int = 1,
    ):
        self.rows, self.device, self.config = rows, device, config
        self.views = max(map(len, rows.values()), default=1)
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
        self.episode = np.unique(episode_bounds(dataset)[0][::every], return_inverse=True)[1]
        self.frames: np.ndarray = np.arange(len(self.task))

    def __len__(self) -> int:
        """How many frames there are."""
        return len(self.frames)

    def __getitem__(self, index: np.ndarray) -> Batch:
        """A raw batch with cached rows, for samples `index` (B,)."""
        view, index = index // len(self), self.frames[index % len(self)]
        tensors = {ACTION: self.actions[index], "action_is_pad": self.pad[index]}
        seen = self.seen[index]
        if seen.shape[1] == 1:
            seen = seen[:, 0]
        else:
            tensors[ABSENT] = self.absent[index]
        tensors[OBS_STATE] = self.state[seen]
        tensors |= {key: rows.at(seen, view) for key, rows in self.rows.items()}
        batch: Batch = {key: value.to(self.device) for key, value in tensors.items()}
        return batch | {"task": [self.task[i] for i in index]}

    def split(self, count: int) -> tuple["Samples", "Samples"]:
        """Those without `count` episodes, taken evenly from the whole dataset, and those of these episodes.

        Raises UserError if nothing would be left to train on.
        """
        episodes = int(self.episode[-1]) + 1
        if count >= episodes:
            raise UserError(f"expected fewer than {episodes} episodes to keep out, found {count}; fix: --validate=1")
        held = np.isin(self.episode, ((np.arange(count) + 0.5) * episodes / count).astype(int))
        rest, kept = copy.copy(self), copy.copy(self)
        rest.frames, kept.frames = self.frames[~held], self.frames[held]
        return rest, kept

    def some(self, count: int) -> Iterator[Batch]:
        """Batches of about `count` samples of view 0, taken evenly."""
        index = np.unique(np.linspace(0, len(self) - 1, count).astype(int))
        return (self[part] for part in np.array_split(index, -(-len(index) // 64)))

    def share(self, index: np.ndarray, part: int, parts: int, seed: int = 0) -> Batch:
        """The `part`-th of `parts` shares of the samples `index` (B,), such that the mean of the shares' losses is the
        loss of all: with its rows of one noise, and with what a loss is the mean of, of all.
        """
        batch = self[index[part::parts]]
        noise = torch.randn(len(index), *batch[OBS_STATE].shape[1:], generator=torch.Generator().manual_seed(seed))
        frames = self.frames[index % len(self)]
        told: Batch = {"task": [""] * len(index), "action_is_pad": self.pad[frames]}
        if self.config.n_obs_steps > 1:
            told = each_step(self.config, told, ~self.absent[frames])
        pad = told["action_is_pad"]
        counts = {STEPS: len(pad) / parts, ACTIONS: max(1, int((~pad).sum())) / parts}
        return batch | counts | {STATE_NOISE: noise[part::parts].to(self.device)}


@dataclass(frozen=True)
class Watch:
    """What is looked at beside the loss.

    Attributes:
        held_out: samples that nothing trains on, whose loss is logged.
        validate_every: steps from one look at them to the next.
        rollout: given a student's checkpoint and a folder to keep what happens in, its success in closed loop.
        rollout_every: steps from one roll-out to the next.
        tell: is given each line of the log.
    """

    held_out: Samples | None = None
    validate_every: int = 200
    rollout: Callable[[Path, Path], float] | None = None
    rollout_every: int = 1000
    tell: Callable[[dict[str, float]], None] = lambda entry: None


def processes(stage: str = "finetune", accumulate: int = 1) -> Accelerator:
    """Meet the other processes of this run, if `accelerate launch` has started any, and silence all but the first.

    Raises UserError if they do not meet, or would shard weights in a way that cannot be saved.
    """
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"  # every process loads the student; caches need it whole
    # In fine-tuning a batch may miss tasks, and with them the decoders of their experts.
    of_ddp = DistributedDataParallelKwargs(find_unused_parameters=stage == "finetune", broadcast_buffers=False)
    accelerator = Accelerator(
        mixed_precision="bf16" if fast_bfloat16(best_device()) else "no",
        gradient_accumulation_steps=accumulate,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE), of_ddp],
    )
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != started:
        raise UserError(
            f"expected {started} processes that share the work, found each on its own, for there is no GPU; "
            "fix: ACCELERATE_USE_CPU=true accelerate launch ..., or start one process"
        )
    if accelerator.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise UserError(
            "expected FSDP of version 2, found version 1; fix: accelerate launch --use_fsdp --fsdp_version 2"
        )
    console.quiet = not accelerator.is_main_process
    return accelerator


def order(step: int, batch_size: int, count: int, seed: int, views: int = 1) -> np.ndarray:
    """Which samples (batch_size,) step number `step` trains on: an endless chain of permutations of `count` frames, cut
    into batches; from one epoch to the next a frame shows its next view, beginning with any.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs = positions // count
    shuffled = {int(e): np.random.default_rng([seed, int(e)]).permutation(count) for e in np.unique(epochs)}
    frames = np.array([shuffled[int(e)][p % count] for e, p in zip(epochs, positions, strict=True)])
    first = np.random.default_rng([seed, count, views]).integers(views, size=count)
    return (first[frames] + epochs) % views * count + frames


def decay(steps: int) -> Callable[[int], float]:
    """Warm up over a tenth of the steps, then fall linearly to zero at the last (PAPER, recipe)."""
    warm = max(1, round(WARM_UP * steps))
    return lambda step: min((step + 1) / warm, (steps - step) / max(1, steps - warm))


def train(
    policy: ApprenticePolicy,
    samples: Samples,
    schedule: Schedule,
    run: Path,
    done: int = 0,
    watch: Watch | None = None,
    accelerator: Accelerator | None = None,
) -> None:
    """Train `policy` in place to the end of `schedule`, after the `done` steps of `run`'s checkpoint, if they are any.

    Raises UserError if the processes cannot share a batch evenly, and if loss or gradients are not finite; the last
    good checkpoint is then kept.
    """
    watch, accelerator = watch or Watch(), accelerator or processes(policy.config.stage, schedule.accumulate)
    _check_shares(schedule, accelerator.num_processes)
    _ = policy.vlm.splits  # found by trying, which FSDP's shards would not stand
    optimizer = torch.optim.AdamW(policy.get_optim_params(), weight_decay=policy.config.weight_decay)
    peaks, rate = [group["lr"] for group in optimizer.param_groups], decay(schedule.steps)
    model, optimizer = accelerator.prepare(policy, optimizer)
    trainee = Trainee(policy, model, optimizer, accelerator, schedule.ema)
    clock = Clock(restore(trainee, run) if done else 0.0)
    model.train()
    with Log(run, done, watch.tell, trainee.main) as log, Meter(policy.config.stage, schedule.steps, done) as meter:
        for step in range(done, schedule.steps):
            last = step + 1 == schedule.steps
            loss, parts, due = gradients(trainee, samples, schedule, step, clock.due(SAVE_EVERY))
            norm = float(whole(accelerator.clip_grad_norm_(model.parameters(), 1.0)))
            _check_finite(loss, norm, step, run)
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * rate(step)
            optimizer.step()
            optimizer.zero_grad()
            trainee.follow(step)

            entry = {"step": step, "seconds": clock.seconds(), "samples": (step + 1) * schedule.batch_size}
            with clock.stopped():
                seen = look(trainee, watch, schedule, step, run)
            if seen or last or step % LOG_EVERY == 0:
                log.write(entry | {"loss": loss} | _means(parts) | seen)
            meter.advance(note=log.note)
            if due or last:
                with clock.saving():
                    save(trainee, run, step + 1, clock.seconds(), last)
    if trainee.main:
        write_json(run / "cost.json", _cost(policy, log.last))


def gradients(
    trainee: Trainee, samples: Samples, schedule: Schedule, step: int, due: bool
) -> tuple[float, list[dict[str, float]], bool]:
    """Compute the gradients of a step. Return its loss, over all processes; the parts of the loss in this one's shares;
    and whether something is `due` by the first process's clock.
    """
    accelerator = trainee.accelerator
    index = order(step, schedule.batch_size, len(samples), schedule.seed, samples.views)
    shares, seed = accelerator.num_processes * schedule.accumulate, schedule.seed << 32
    losses, parts = [], []
    for number in range(accelerator.process_index, shares, accelerator.num_processes):
        torch.manual_seed(seed + step * shares + number)
        with accelerator.accumulate(trainee.model):
            batch = samples.share(index, number, shares, NOISE_SEEDS + seed + step)
            with accelerator.autocast():
                loss, found = trainee.model(batch)
            accelerator.backward(loss)
        losses.append(loss.detach())
        parts.append(found)
    told = torch.stack([torch.stack(losses).mean().float(), losses[0].new_tensor(float(due and trainee.main))])
    value, is_due = accelerator.reduce(told, "mean").tolist()
    return value, parts, is_due > 0


def look(trainee: Trainee, watch: Watch, schedule: Schedule, step: int, run: Path) -> dict[str, float]:
    """What there is to see after step number `step`: something in each interval, and at the end."""
    seen: dict[str, float] = {}
    last = step + 1 == schedule.steps
    if watch.held_out is not None and (last or (step + 1) % watch.validate_every == 0):
        seen |= validation(trainee, watch.held_out, schedule)
    if watch.rollout is not None and (last or (step + 1) % watch.rollout_every == 0):
        folder = run / "rollouts" / f"{step + 1:06}"
        student = folder / "student"
        trainee.student(student if trainee.main else None)
        seen["success"] = watch.rollout(student, folder) if trainee.main else math.nan
        shutil.rmtree(student, ignore_errors=True)
        trainee.accelerator.wait_for_everyone()
    return seen


@torch.no_grad()
def validation(trainee: Trainee, held_out: Samples, schedule: Schedule) -> dict[str, float]:
    """The losses of held-out samples, with the weights that a checkpoint would hold and without noise."""
    accelerator, world = trainee.accelerator, trainee.accelerator.num_processes
    index = np.resize(np.arange(len(held_out)), max(world, len(held_out)))
    shares = world * max(1, len(index) * schedule.accumulate // schedule.batch_size)
    losses: list[dict[str, float]] = []
    trainee.model.eval()
    with trainee.averaged():
        for number in range(accelerator.process_index, shares, world):
            torch.manual_seed(schedule.seed)
            with accelerator.autocast():
                loss, parts = trainee.model(held_out.share(index, number, shares))
            losses.append({"loss": float(loss), **parts})
    trainee.model.train()
    return {f"validation_{name}": value for name, value in _means(losses).items()}


def _check_shares(schedule: Schedule, world: int) -> None:
    shares = world * schedule.accumulate
    if schedule.batch_size % shares:
        raise UserError(
            f"expected a batch that {world} processes can share in {schedule.accumulate} equal parts each, found "
            f"{schedule.batch_size} samples; fix: --batch-size={schedule.batch_size // shares * shares or shares}"
        )


def _check_finite(loss: float, norm: float, step: int, run: Path) -> None:
    """All processes see the same two numbers, so all stop together."""
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise UserError(
            f"expected finite numbers at step {step}, found a loss of {loss} and gradients of norm {norm}; the last "
            f"checkpoint before is kept in {run}, but would come here again; fix: a smaller --learning-rate and "
            f"another --out (--student={run} to go on from there), and see that the data is finite"
        )


def _means(parts: list[dict[str, float]]) -> dict[str, float]:
    """The parts of the loss, over the shares of all processes; what a share does not have counts as nothing."""
    everywhere = gather_object(parts)
    names = dict.fromkeys(name for each in everywhere for name in each)
    return {name: sum(each.get(name, 0.0) for each in everywhere) / len(everywhere) for name in names}


def _cost(policy: ApprenticePolicy, last: dict[str, float]) -> dict[str, float | str]:
    return {
        "stage": policy.config.stage,
        "seconds": last["seconds"],
        "samples": last["samples"],
        "trainable_parameters": sum(p.numel() for p in policy.parameters() if p.requires_grad),
        "total_parameters": sum(p.numel() for p in policy.parameters()),
    }
