"""The two stages of distillation, and their controls, as runs.

two-stage   align(vlm, expert), then finetune(student=<the aligned run>)
only-ft     finetune(vlm, expert): stage 2 without stage 1
scratch     finetune(vlm, expert, scratch=True): the VLM's weights are random
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from lerobot.configs import FeatureType
from lerobot.utils.feature_utils import dataset_to_policy_features
from rich.table import Table

from apprentice.adapters import load_policy
from apprentice.data.contract import Contract, check_features
from apprentice.data.dataset import open_dataset
from apprentice.device import best_device
from apprentice.distill.cache import cached
from apprentice.distill.trainer import Samples, Schedule, train
from apprentice.errors import UserError
from apprentice.files import read_json, write_json
from apprentice.policy.configuration_apprentice import ApprenticeConfig
from apprentice.policy.modeling_apprentice import TRAINED, ApprenticePolicy, shapes
from apprentice.progress import console


@dataclass(frozen=True)
class StageConfig:
    """One stage of training.

    Attributes:
        dataset: folder of a LeRobotDataset v3.0.
        out: folder of the run.
        vlm: folder or hub name of a Hugging Face VLM; not needed with `student`.
        expert: folder of the expert's checkpoint, or a YAML file with one for each instruction; not needed to
            fine-tune a `student`.
        student: checkpoint (or run) to go on from.
        scratch: give the VLM random weights.
        n_obs_steps: steps of observation that a new student reads, the present one included.
        every: learn from every n-th frame alone. Neighbours differ little, and caching costs a time for each.
        prefix_gb: to align, keep the keys and values of the VLM's prefix on disk if they take up to that much (GB).
        steps: optimizer steps.
        batch_size: samples a step, over all processes together.
        learning_rate: peak learning rate of what is new; the language model's is `language_rate_factor` times that.
        language_rate_factor: see `learning_rate`.
        align_loss: "mse" or "l2".
        latent_weight: to fine-tune, how much the distance from the expert's latents still counts; 0 as in the paper.
        seed: decides initial weights and the order of the data.
    """

    dataset: str
    out: str
    vlm: str = ""
    expert: str = ""
    student: str = ""
    scratch: bool = False
    n_obs_steps: int = 1
    every: int = 1
    prefix_gb: float = 4.0
    steps: int = 1000
    batch_size: int = 64
    learning_rate: float = 1e-3
    language_rate_factor: float = 0.3
    align_loss: str = "mse"
    latent_weight: float = 0.0
    seed: int = 0


def align(config: StageConfig) -> Path:
    """Stage 1: teach the student to hand the decoder what the expert's encoder would. Return the checkpoint."""
    return _stage("align", config)


def finetune(config: StageConfig) -> Path:
    """Stage 2: train language model and decoder for the demonstrated actions. Return the checkpoint."""
    return _stage("finetune", config)


def _stage(stage: str, config: StageConfig) -> Path:
    run = Path(config.out)
    checkpoint = run / "checkpoint"
    _same_run(run, {"stage": stage, **asdict(config)})
    if (run / "cost.json").exists():
        console.print(f"{stage}: {run} is finished already")
        return checkpoint
    torch.manual_seed(config.seed)
    dataset = open_dataset(config.dataset)
    if checkpoint.exists():
        policy = ApprenticePolicy.from_pretrained(checkpoint)
    elif config.student:
        student = _checkpoint(config.student)
        policy = load_policy(student, ApprenticeConfig.from_pretrained(student))
    else:
        policy = _fresh(config, dataset)
    policy.config.learning_rate, policy.config.align_loss = config.learning_rate, config.align_loss
    policy.config.language_rate_factor, policy.config.latent_weight = config.language_rate_factor, config.latent_weight
    policy.contract.check(Contract.of_dataset(dataset.root), "the student", f"dataset {config.dataset}")
    found = {key: tuple(feature.shape) for key, feature in dataset_to_policy_features(dataset.meta.features).items()}
    check_features(shapes(policy.config), found, "the student", f"dataset {config.dataset}")
    policy.set_stage(stage)
    policy.to(best_device())
    console.print(parameter_table(policy))
    rows = cached(policy, dataset, config.every, config.prefix_gb)
    samples = Samples(dataset, policy.config, rows, policy.vlm.device, config.every)
    train(policy, samples, Schedule(config.steps, config.batch_size, config.seed), run)
    return checkpoint


def parameter_table(policy: ApprenticePolicy) -> Table:
    """Which part has how many parameters, and in which stage it trains."""
    table = Table(title="what trains", title_justify="left")
    for column in ("part", "parameters", *TRAINED):
        table.add_column(column, justify="left" if column == "part" else "right")
    for part, parameters in policy.parts().items():
        count = sum(p.numel() for p in parameters)
        table.add_row(part, f"{count:,}", *("trains" if part in trained else "frozen" for trained in TRAINED.values()))
    return table


def _fresh(config: StageConfig, dataset: object) -> ApprenticePolicy:
    for name in ("vlm", "expert"):
        if not getattr(config, name):
            raise UserError(f"expected --{name} or --student, found neither; fix: --{name}=FOLDER")
    meta = dataset.meta  # type: ignore[attr-defined]
    features = dataset_to_policy_features(meta.features)
    student = ApprenticeConfig(
        vlm=config.vlm,
        expert=config.expert,
        scratch=config.scratch,
        n_obs_steps=config.n_obs_steps,
        input_features={k: f for k, f in features.items() if f.type is not FeatureType.ACTION},
        output_features={k: f for k, f in features.items() if f.type is FeatureType.ACTION},
        push_to_hub=False,
        device=best_device().type,
    )
    return ApprenticePolicy(student, dataset_stats=meta.stats, dataset_meta=meta)


def _checkpoint(path: str) -> Path:
    """A run's checkpoint, or the checkpoint itself."""
    inside = Path(path) / "checkpoint"
    return inside if inside.exists() else Path(path)


def _same_run(run: Path, config: dict[str, object]) -> None:
    """Claim the folder for this configuration. Raises UserError if it belongs to another."""
    if not (run / "config.json").exists():
        write_json(run / "config.json", config)
        return
    known = read_json(run / "config.json")
    changed = {k: (known.get(k), v) for k, v in config.items() if known.get(k) != v}
    if changed:
        difference = ", ".join(f"{k} was {old} and is {new}" for k, (old, new) in changed.items())
        raise UserError(
            f"expected the run of {run} again, found another: {difference}; fix: another --out, or remove {run}"
        )
