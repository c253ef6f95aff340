"""The two stages of distillation, and their controls, as runs.

two-stage   align(vlm, expert), then finetune(student=<the aligned run>)
only-ft     finetune(vlm, expert): stage 2 without stage 1
scratch     finetune(vlm, expert, scratch=True): the VLM's weights are random
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from draccus.utils import DecodingError
from lerobot.configs import FeatureType, PreTrainedConfig
from lerobot.utils.constants import ACTION, OBS_STATE
from rich.table import Table

from apprentice.common.adapters import load_policy
from apprentice.common.device import best_device, fast_bfloat16
from apprentice.common.errors import FileError, UserError
from apprentice.common.files import read_json
from apprentice.common.progress import console
from apprentice.data.contract import check_features
from apprentice.data.dataset import instructions
from apprentice.data.features import policy_shapes
from apprentice.data.local import LocalDataset
from apprentice.data.mixture import Mixture, open_mixture
from apprentice.data.statistics import check_alike
from apprentice.distill.caches.cache import cached_each
from apprentice.distill.caches.resident import on_device
from apprentice.distill.config import CacheConfig, TrainingConfig
from apprentice.distill.learner import Learner, decay
from apprentice.distill.runs.checkpoint import Position
from apprentice.distill.runs.run import carry_out, checkpoint_of, same_place
from apprentice.distill.runs.tracking import tracked
from apprentice.distill.samples import Samples
from apprentice.distill.trainer import Watch, processes, train
from apprentice.policy.configuration_apprentice import ApprenticeConfig
from apprentice.policy.modeling_apprentice import TRAINED, ApprenticePolicy
from apprentice.policy.processor_apprentice import make_apprentice_pre_post_processors

MADE_OF = ("vlm", "scratch", "n_obs_steps", "gripper_state_dims")  # settings that a student keeps for good
LEARNS_BY = ("learning_rate", "language_rate_factor", "align_loss", "latent_weight")  # those that each stage sets anew
UNITS_FROM = 2048  # frames whose latents say in which units they are learnt


@dataclass(frozen=True, kw_only=True)
class StageConfig(TrainingConfig, CacheConfig):
    """One stage of training.

    Attributes:
        vlm: folder or hub name of a Hugging Face VLM, for a new student.
        expert: folder of the expert's checkpoint, or a YAML file with one checkpoint for each instruction. With
            `student`: the new place of its expert, if it was moved.
        student: checkpoint or run from which to continue.
        scratch: give the VLM of a new student random weights.
        n_obs_steps: number of observation steps that a new student reads, with the present one (default: 1).
        gripper_state_dims: how many of the last entries of the state belong to the gripper of a new student (default:
            2, or fewer if no others would be left).
        learning_rate: peak learning rate of the new modules; the language model's is `language_rate_factor` times this.
        language_rate_factor: learning rate of the language model, as a share of `learning_rate`.
        align_loss: loss of the alignment, "mse" or "l2".
        latent_weight: in fine-tuning, weight of the distance from the expert's latents (in units of their deviation); 0
            as in the paper.
        rollouts: number of fresh layouts of each of the datasets' tasks to run in closed loop during training.
        rollout_every: roll out every N steps.
    """

    vlm: str = ""
    expert: str = ""
    student: str = ""
    scratch: bool = False
    n_obs_steps: int | None = None
    gripper_state_dims: int | None = None
    learning_rate: float = 1e-3
    language_rate_factor: float = 0.3
    align_loss: str = "mse"
    latent_weight: float = 0.0
    rollouts: int = 0
    rollout_every: int = 1000


Rollout = Callable[[Path, Path], float]  # see `Watch.rollout`; the method knows no simulator


def align(config: StageConfig, rollout: Rollout | None = None) -> Path:
    """Stage 1: teach the student to hand the decoder what the expert's encoder would. Return the checkpoint."""
    return _stage("align", config, rollout)


def finetune(config: StageConfig, rollout: Rollout | None = None) -> Path:
    """Stage 2: train language model and decoder for the demonstrated actions. Return the checkpoint."""
    return _stage("finetune", config, rollout)


def _stage(stage: str, config: StageConfig, rollout: Rollout | None) -> Path:
    config = settled(stage, config)
    accelerator = processes(stage, config.accumulate)

    def teach(position: Position) -> None:
        _teach(stage, config, rollout, accelerator, position)

    return carry_out(stage, accelerator, Path(config.out), asdict(config), teach)


def settled(stage: str, config: StageConfig) -> StageConfig:
    """The configuration with what a student is made of filled in from the student that it goes on from.

    Raises UserError if something is missing, contradicts the student, or would do nothing.
    """
    for name, idle, reason in _idle(stage, config):
        if idle and getattr(config, name) != getattr(StageConfig, name):
            raise UserError(
                f"expected settings that do something, found {_flag(name, getattr(config, name))}, but {reason}; "
                "fix: leave it out"
            )
    if not config.student:
        for name in ("vlm", "expert"):
            if not getattr(config, name):
                raise UserError(f"expected --{name} or --student, found neither; fix: --{name}=FOLDER")
        return replace(config, n_obs_steps=config.n_obs_steps or 1)
    own = _own(config)
    contradicted = {
        "vlm": bool(config.vlm) and not same_place(own.vlm, config.vlm),
        "scratch": config.scratch and not own.scratch,
        "n_obs_steps": config.n_obs_steps not in (None, own.n_obs_steps),
        "gripper_state_dims": config.gripper_state_dims not in (None, own.gripper_state_dims),
    }
    for name in (name for name, wrong in contradicted.items() if wrong):
        raise UserError(
            f"expected a student of {_flag(name, getattr(config, name))}, found {_flag(name, getattr(own, name))} in "
            f"{config.student}, which stays as it is; fix: leave that out, or --student, to begin with a new one"
        )
    if config.expert:
        own.expert, own.expert_place = config.expert, ""
    reads = stage == "align" or config.latent_weight > 0
    expert = own.find_expert() if reads or config.expert else own.expert
    return replace(config, expert=expert, **{name: getattr(own, name) for name in MADE_OF})


def _idle(stage: str, config: StageConfig) -> list[tuple[str, bool, str]]:
    """Settings that may do nothing, whether they do nothing in this run, and why."""
    aligns, measured = stage == "align", bool(config.validate or config.rollouts)
    return [
        ("latent_weight", aligns, "to align is to learn the latents, and nothing else"),
        ("language_rate_factor", aligns, "the language model does not train while aligning"),
        ("align_loss", not aligns and not config.latent_weight, "latents do not count without --latent-weight"),
        ("cache_precision", not aligns and config.cache_precision == "8-bit", "8-bit is for align's keys and values"),
        ("validate_every", not config.validate, "no episodes are kept out without --validate"),
        ("rollout_every", not config.rollouts, "there are no roll-outs without --rollouts"),
        ("keep", not measured, "nothing says what is best without --validate or --rollouts"),
        ("patience", not measured, "nothing says what is better without --validate or --rollouts"),
    ]


def _own(config: StageConfig) -> ApprenticeConfig:
    """What the student that a run goes on from says of itself. Raises UserError if it is none."""
    folder = Path(config.student, "checkpoint")
    folder = folder if folder.exists() else Path(config.student)
    if not (folder / "config.json").is_file():
        raise UserError(
            f"expected a student's checkpoint in {folder}, found {_other(folder)}; fix: name the --out of apprentice "
            "align as --student"
        )
    try:
        known = read_json(folder / "config.json", dict[str, Any], "a student's settings")
        kind, stage = known.get("type"), known.get("stage")
        if not kind and stage in TRAINED:
            raise UserError(
                f"expected a student in {folder}, found a run of {stage} that has no checkpoint yet; fix: repeat the "
                f"command that began it: apprentice {stage} ... --out {folder}"
            )
        if kind != ApprenticeConfig.get_choice_name(ApprenticeConfig):
            found = f"a policy of type {kind}" if kind else f"a run of {stage}" if stage else "another model"
            raise UserError(
                f"expected a student in {folder}, found {found}; fix: name the --out of apprentice align as --student"
            )
        own = PreTrainedConfig.from_pretrained(folder, local_files_only=True)
    except FileError:
        raise
    except (ValueError, TypeError, AttributeError, DecodingError) as error:
        raise UserError(
            f"expected a student's settings in {folder / 'config.json'}, found: {str(error).splitlines()[0]}; "
            "fix: copy or train it again"
        ) from error
    assert isinstance(own, ApprenticeConfig)
    return own


def _other(folder: Path) -> str:
    """What a folder without config.json is."""
    if not folder.exists():
        return "no such folder"
    if (folder / "meta" / "info.json").exists():
        return "a dataset"
    return "no config.json" if any(folder.iterdir()) else "an empty folder"


def _flag(name: str, value: Any) -> str:
    name = name.replace("_", "-")
    return f"--{name}={value}" if not isinstance(value, bool) else f"--{name}" if value else f"--no-{name}"


def _teach(
    stage: str, config: StageConfig, rollout: Rollout | None, accelerator: Accelerator, position: Position
) -> None:
    """Train the student, from `position` on."""
    done = position.step
    run = Path(config.out)
    checkpoint = run / "checkpoint"
    torch.manual_seed(config.seed)
    mixture = open_mixture(config.dataset, config.rename, config.resize)
    if done:
        policy = ApprenticePolicy.from_pretrained(checkpoint)
    elif config.student:
        student = checkpoint_of(config.student)
        policy = load_policy(student, ApprenticeConfig.from_pretrained(student))
    else:
        policy = fresh_student(config, mixture)
    for name in LEARNS_BY:
        setattr(policy.config, name, getattr(config, name))
    policy.contract.check(mixture.contract, "the student", mixture.name)
    found = {key: tuple(feature.shape) for key, feature in mixture.features.items()}
    check_features(policy_shapes(policy.config), found, "the student", mixture.name)
    for dataset in mixture.datasets:
        _check_units(policy, dataset)
    policy.set_stage(stage)
    if policy.config.reads_expert or config.expert != policy.config.expert:
        policy.config.expert, policy.config.expert_place = config.expert, str(Path(config.expert).resolve())
    policy.config.device = best_device().type  # of its expert too, wherever the checkpoint comes from
    policy.to(best_device())
    policy.vlm.check({task for dataset in mixture.datasets for task in instructions(dataset)})
    console.print(parameter_table(policy))
    # The first process fills the caches; then, if it has another disk, the first of each machine; then all find them.
    with accelerator.main_process_first(), accelerator.local_main_process_first():
        rows = cached_each(policy, mixture.datasets, config, run / "caches.json")
    rows = on_device(rows, policy.vlm.device)
    reading = (policy.vlm.device, config.every)
    samples, held_out = Samples.of(mixture.datasets, policy.config, rows, *reading), None
    if config.validate:
        samples, held_out = samples.split(config.validate)
    samples.weigh(mixture.weights, config.balance, config.gripper_change_factor)
    if policy.config.reads_expert and not (done or config.student):
        policy.standardise(samples.subsample(UNITS_FROM))
    _ = policy.vlm.splits  # found by trying, which FSDP's shards would not stand
    learner = Learner(
        policy,
        stage,
        torch.optim.AdamW(policy.get_optim_params(), weight_decay=policy.config.weight_decay),
        decay(config.steps, position.begun),
        processors=make_apprentice_pre_post_processors(policy.config, rename=config.rename),
        contract=policy.contract,
        bfloat16=fast_bfloat16(best_device()),
    )
    kind = config.track if accelerator.is_main_process else "none"
    with tracked(kind, run, {"stage": stage, **asdict(config)}) as tell:
        watch = Watch(held_out, rollout, config.rollout_every, tell)
        train(learner, samples, config, position, watch, accelerator)


def parameter_table(policy: ApprenticePolicy) -> Table:
    """Which part has how many parameters, and in which stage it trains."""
    table = Table(title="what trains", title_justify="left")
    for column in ("part", "parameters", *TRAINED):
        table.add_column(column, justify="left" if column == "part" else "right")
    for part, parameters in policy.parts().items():
        count = sum(p.numel() for p in parameters)
        table.add_row(part, f"{count:,}", *("trains" if part in trained else "frozen" for trained in TRAINED.values()))
    return table


def fresh_student(config: StageConfig, mixture: Mixture) -> ApprenticePolicy:
    """A student of `config.expert`, on `config.vlm`. Raises UserError if they do not fit."""
    features = mixture.features
    student = ApprenticeConfig(
        **{name: getattr(config, name) for name in MADE_OF},
        expert=config.expert,
        resize=sorted(config.resize or {}),
        input_features={k: f for k, f in features.items() if f.type is not FeatureType.ACTION},
        output_features={k: f for k, f in features.items() if f.type is FeatureType.ACTION},
        push_to_hub=False,
        device=best_device().type,
    )
    meta = mixture.meta
    return ApprenticePolicy(student, dataset_stats=meta.stats, dataset_meta=meta, contract=mixture.contract)


def _check_units(policy: ApprenticePolicy, dataset: LocalDataset) -> None:
    """Raises UserError if a dataset has other numbers than those that the student learns, or learned, from."""
    learned = {
        OBS_STATE: (policy.state_offset, policy.state_scale),
        ACTION: (policy.action_offset, policy.action_scale),
    }
    for key, affine in learned.items():
        offset, scale = (value.cpu().numpy() for value in affine)
        check_alike(dataset.meta.stats[key], offset, scale, key, "the student", f"dataset {dataset.root}")
