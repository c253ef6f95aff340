"""One training loop for experts and for both stages of a student: PyTorch on Accelerate, in one process or in many.

A run is a folder: config.json, log.jsonl, checkpoint/ (a LeRobot policy folder) and, when finished, cost.json. What a
step trains on depends on the seed and the step's number alone, so a run that was killed at any moment and started again
ends with the same weights as one that was not. How many processes share a step, and in how many parts each computes
its own share, changes nothing but the order in which numbers are added up; an expert's own noise is another, though.
"""

import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs, gather_object

from apprentice.common.device import best_device, fast_bfloat16, same_bits
from apprentice.common.errors import UserError
from apprentice.common.files import write_json
from apprentice.common.progress import Meter, console
from apprentice.distill.config import TrainingConfig
from apprentice.distill.learner import Learner
from apprentice.distill.runs.best import Best
from apprentice.distill.runs.checkpoint import Position, Trainee, restore, save, whole
from apprentice.distill.runs.tracking import Clock, Log
from apprentice.distill.samples import Samples

LOG_EVERY = 20  # steps
SAVE_EVERY = 60.0  # s
PATIENCE = timedelta(days=1)  # of processes while one fills the caches; a dead one ends the others at once
NOISE_SEEDS = 1 << 62  # far from those that the rest draws from


@dataclass(frozen=True)
class Watch:
    """What is measured beside the loss, and who hears of it.

    Attributes:
        held_out: samples that nothing trains on, whose loss is logged.
        rollout: given a policy's checkpoint and a folder to keep what happens in, its success in closed loop.
        rollout_every: roll out every N steps.
        tell: is given each line of the log.
    """

    held_out: Samples | None = None
    rollout: Callable[[Path, Path], float] | None = None
    rollout_every: int = 1000
    tell: Callable[[dict[str, float]], None] = lambda entry: None


def processes(stage: str = "finetune", accumulate: int = 1) -> Accelerator:
    """Meet the other processes of this run, if `accelerate launch` has started any, and silence all but the first.
    The policy of stage "train-expert" chooses its precision by itself.

    Raises UserError if they do not meet, or would shard weights in a way that cannot be saved.
    """
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"  # every process loads the student; caches need it whole
    # In fine-tuning a batch may miss tasks, and with them the decoders of their experts; a VQ-BeT trains in phases.
    of_ddp = DistributedDataParallelKwargs(find_unused_parameters=stage != "align", broadcast_buffers=False)
    accelerator = Accelerator(
        mixed_precision="bf16" if stage != "train-expert" and fast_bfloat16(best_device()) else "no",
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


def train(
    learner: Learner,
    samples: Samples,
    config: TrainingConfig,
    position: Position | None = None,
    watch: Watch | None = None,
    accelerator: Accelerator | None = None,
) -> None:
    """Train a policy in place for `config.steps`, or until patience ends, from the `position` of the checkpoint in
    `config.out` on, if there is one.

    Raises UserError if the processes cannot share a batch evenly, and if loss, gradients or weights are not finite; the
    last good checkpoint is then kept.
    """
    run, position = Path(config.out), position or Position()
    done = position.step
    watch, accelerator = watch or Watch(), accelerator or processes(learner.stage, config.accumulate)
    _check_shares(config, accelerator.num_processes)
    peaks = [group["lr"] for group in learner.optimizer.param_groups]
    model, optimizer = accelerator.prepare(learner.policy, learner.optimizer)
    trainee = Trainee(learner, model, optimizer, accelerator, config.ema)
    # Samples that were taken before beyond `batch_size` a step, when steps had another size.
    moved = position.samples - done * config.batch_size if position.samples else 0
    best = Best(run, position, watch.rollout is not None, config.keep == "best", trainee)
    log = Log(run, done, watch.tell, trainee.main)
    clock = Clock((restore(trainee, run) if done else 0.0) or log.last.get("seconds", 0.0))
    with log, Meter(learner.stage, config.steps, done) as meter:
        for step in range(done, done if position.finished else config.steps):
            last = step + 1 == config.steps
            model.train()
            index = samples.order(step, config.batch_size, config.seed, moved)
            loss, parts, due = same_gradients(trainee, samples, index, config, step, clock.due(SAVE_EVERY))
            norm = float(whole(accelerator.clip_grad_norm_(model.parameters(), learner.clip)))
            _check_finite(loss, norm, step, run)
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * learner.rate(step)
            optimizer.step()
            optimizer.zero_grad()
            trainee.follow(step)

            samples_seen = moved + (step + 1) * config.batch_size
            entry = {"step": step, "seconds": clock.seconds(), "samples": samples_seen}
            with clock.stopped():
                seen = validate(trainee, watch, config, step)
                better = best.judge(seen, step + 1) and best.keeps
            last = last or bool(config.patience and best.worse >= config.patience)
            if seen or last or step % LOG_EVERY == 0:
                log.write(entry | {"loss": loss} | _means(parts) | seen)
            meter.advance(note=log.note)
            if due or last or better:
                _check_weights(trainee, step, run)
                finished = config.steps if last else 0
                position = Position(step + 1, samples_seen, position.begun, finished, *best.found)
                with clock.saving():
                    if better and not last:
                        best.save(position)
                    save(trainee, run, position, clock.seconds(), best.keeps)
            if last:
                break
    if position.finished and position.step < config.steps:
        console.print(
            f"{learner.stage}: stopped after step {position.step}: {best.worse} validations in a row were no better"
        )
    if best.keeps and position.best is not None:
        console.print(f"{learner.stage}: the checkpoint is from step {position.best_step}, with {best.title}")
    if trainee.main:
        write_json(run / "cost.json", _cost(learner, log.last))


def same_gradients(
    trainee: Trainee, samples: Samples, index: np.ndarray, config: TrainingConfig, step: int, due: bool
) -> tuple[float, list[dict[str, float]], bool]:
    """The `gradients` that any run of this step on this device has, bit by bit; printed, and as they come, if a part of
    the policy can only be computed in any order.
    """
    device, begun = trainee.accelerator.device, trainee.accelerator.step
    if trainee.repeats:
        try:
            with same_bits(device):
                return gradients(trainee, samples, index, config, step, due)
        except RuntimeError as error:
            if "deterministic" not in str(error):
                raise
            reason = str(error).splitlines()[0].partition(". ")[0]
            console.print(f"a resumed run will differ in its last digits: {reason}", highlight=False)
            trainee.repeats, trainee.accelerator.step = False, begun
            trainee.optimizer.zero_grad()
    return gradients(trainee, samples, index, config, step, due)


def gradients(
    trainee: Trainee, samples: Samples, index: np.ndarray, config: TrainingConfig, step: int, due: bool
) -> tuple[float, list[dict[str, float]], bool]:
    """Compute the gradients of step number `step`, on the samples `index`. Return the loss, over all processes; the
    parts of the loss in this process's shares; and whether something is `due` by the first process's clock.
    """
    accelerator = trainee.accelerator
    shares, seed = accelerator.num_processes * config.accumulate, config.seed << 32
    losses, parts = [], []
    for number in range(accelerator.process_index, shares, accelerator.num_processes):
        torch.manual_seed(seed + step * shares + number)
        with accelerator.accumulate(trainee.model):
            batch = samples.share(index, number, shares, NOISE_SEEDS + seed + step)
            with trainee.autocast():
                loss, found = trainee.model(batch)
            accelerator.backward(loss)
        losses.append(loss.detach())
        parts.append(found or {})
    shared = torch.stack([torch.stack(losses).mean().float(), losses[0].new_tensor(float(due and trainee.main))])
    value, is_due = accelerator.reduce(shared, "mean").tolist()
    return value, parts, is_due > 0


def validate(trainee: Trainee, watch: Watch, config: TrainingConfig, step: int) -> dict[str, float]:
    """The held-out losses and the success in closed loop after step number `step`, as far as they are due: each every
    N steps, and at the end.
    """
    seen: dict[str, float] = {}
    run, last = Path(config.out), step + 1 == config.steps
    due = last or (step + 1) % config.validate_every == 0
    if watch.held_out is not None and due and trainee.learner.settled():
        seen |= held_out_losses(trainee, watch.held_out, config)
    if watch.rollout is not None and (last or (step + 1) % watch.rollout_every == 0):
        _check_weights(trainee, step, run)
        folder = run / "rollouts" / f"{step + 1:06}"
        policy = folder / "student"
        trainee.write(policy if trainee.main else None)
        seen["success"] = watch.rollout(policy, folder) if trainee.main else math.nan
        shutil.rmtree(policy, ignore_errors=True)
        trainee.accelerator.wait_for_everyone()
    return seen


@torch.no_grad()
def held_out_losses(trainee: Trainee, held_out: Samples, config: TrainingConfig) -> dict[str, float]:
    """The losses of held-out samples, with the weights that a checkpoint would hold and without noise."""
    accelerator, processes = trainee.accelerator, trainee.accelerator.num_processes
    index = np.resize(np.arange(len(held_out)), max(processes, len(held_out)))
    shares = processes * max(1, len(index) * config.accumulate // config.batch_size)
    losses: list[dict[str, float]] = []
    trainee.model.eval()
    with trainee.averaged():
        for number in range(accelerator.process_index, shares, processes):
            torch.manual_seed(config.seed)
            with trainee.autocast():
                loss, parts = trainee.model(held_out.share(index, number, shares))
            losses.append({"loss": float(loss), **(parts or {})})
    trainee.model.train()
    return {f"validation_{name}": value for name, value in _means(losses).items()}


def _check_shares(config: TrainingConfig, processes: int) -> None:
    shares = processes * config.accumulate
    if config.batch_size % shares:
        raise UserError(
            f"expected a batch that {processes} processes can share in {config.accumulate} equal parts each, found "
            f"{config.batch_size} samples; fix: --batch-size={config.batch_size // shares * shares or shares}"
        )


def _check_finite(loss: float, norm: float, step: int, run: Path) -> None:
    """All processes see the same two numbers, so all stop together."""
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise UserError(
            f"expected finite numbers at step {step}, found a loss of {loss} and gradients of norm {norm}; the last "
            f"checkpoint before is kept in {run}, but would come here again; fix: a smaller --learning-rate and "
            f"another --out, going on from {run} there if you like, and see that the data is finite"
        )


def _check_weights(trainee: Trainee, step: int, run: Path) -> None:
    if not trainee.finite():
        raise UserError(
            f"expected finite weights after step {step}, found some that are not; they are not saved, and the last "
            f"checkpoint before is kept in {run}, but would come here again; fix: a smaller --learning-rate"
        )


def _means(parts: list[dict[str, float]]) -> dict[str, float]:
    """The parts of the loss, over the shares of all processes; what a share does not have counts as nothing."""
    everywhere = gather_object(parts)
    names = dict.fromkeys(name for each in everywhere for name in each)
    return {name: sum(each.get(name, 0.0) for each in everywhere) / len(everywhere) for name in names}


def _cost(learner: Learner, last: dict[str, float]) -> dict[str, float | str]:
    policy = learner.policy
    return {
        "stage": learner.stage,
        "seconds": last["seconds"],
        "samples": last["samples"],
        "trainable_parameters": sum(p.numel() for p in policy.parameters() if p.requires_grad),
        "total_parameters": sum(p.numel() for p in policy.parameters()),
    }
