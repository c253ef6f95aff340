"""Train an expert: a Seer, or a LeRobot policy that can teach, on datasets whose images are decoded once.

The policy, its processors, its optimizer and its schedule are what `lerobot-train` would use; the reader and the loop
are ours. What is left is arithmetic: `benchmarks/expert.py` compares.
"""

import copy
import dataclasses
import difflib
import typing
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict
from urllib.error import URLError

import draccus
import torch
import yaml
from accelerate import Accelerator
from draccus.utils import DecodingError
from lerobot.configs import FeatureType, PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.processor import RenameObservationsProcessorStep
from lerobot.utils.constants import ACTION, IMAGENET_STATS, OBS_STATE
from torch import Tensor

from apprentice.common.adapters import load_config, load_policy, load_processors
from apprentice.common.camera_size import with_camera_sizes
from apprentice.common.device import best_device, bfloat16_is_faster
from apprentice.common.errors import UserError
from apprentice.common.files import read_json, write_json
from apprentice.common.progress import console
from apprentice.data.batch import Batch
from apprentice.data.contract import FILE as CONTRACT
from apprentice.data.contract import Contract, check_features
from apprentice.data.features import policy_shapes
from apprentice.data.mixture import Mixture, open_mixture
from apprentice.data.statistics import check_alike
from apprentice.distill.caches.cache import cached_images
from apprentice.distill.caches.resident import on_device
from apprentice.distill.config import TrainingConfig
from apprentice.distill.learner import Learner
from apprentice.distill.runs.checkpoint import Position
from apprentice.distill.runs.run import RATES, carry_out, checkpoint_of
from apprentice.distill.runs.tracking import tracked
from apprentice.distill.samples import Samples
from apprentice.distill.trainer import Watch, processes, train
from apprentice.experts.base import affine_of, state_affine_of
from apprentice.experts.kinds import kind_of

STAGE = "train-expert"
PROBED = 8  # samples on which precisions are compared on a CPU; a GPU needs a whole batch to be busy
FIXED = {"device", "push_to_hub", "pretrained_path", "output_features", "use_amp", "use_peft"}  # not for --set
HORIZONS = ("n_action_steps", "chunk_size", "action_chunk_size")


@dataclass(frozen=True, kw_only=True)
class ExpertConfig(TrainingConfig):
    """The training of an expert. Its statistics are those of all frames of all datasets, whatever their weights.

    Attributes:
        kind: type of policy to train (default: seer, or the type of `init`).
        set: fields of the policy's own configuration, as in --policy.KEY=VALUE of lerobot-train: chunk_size=16
            optimizer_lr=3e-4.
        cameras: cameras that the policy reads; all if not given.
        init: checkpoint or run whose weights and statistics the training starts from.
        precision: "auto" computes in bfloat16 if that is faster on this machine, which is measured at the start, so
            the same command may compute otherwise the next time.
        cache_gb: largest size of the decoded images on the disk (GB); if the space is too small, the last cameras are
            decoded in each step.
    """

    kind: Literal["seer", "seer_full", "act", "diffusion", "vqbet", "multi_task_dit"] | None = None
    set: dict[str, str] | None = None
    cameras: Sequence[str] = ()
    init: str = ""
    steps: int = 10000
    batch_size: int = 32
    ema: float = 0.999
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    cache_gb: float = 32.0
    validate_every: int = 500


def train_expert(config: ExpertConfig) -> Path:
    """Train an expert, or go on with it. Return its checkpoint.

    Raises UserError if the datasets do not fit together, or the policy's settings or inputs do not fit to them.
    """
    _check_settings(config)
    policy_config = configured(config)  # before the other processes, for its errors
    accelerator = processes(STAGE, config.accumulate)

    def teach(position: Position) -> None:
        _train(config, policy_config, accelerator, position)

    return carry_out(STAGE, accelerator, Path(config.out), asdict(config), teach)


def _check_settings(config: ExpertConfig) -> None:
    """Raise UserError for a setting that would do nothing."""
    unseen = "no episodes are kept out without --validate"
    idle = {name: unseen for name in ("validate_every", "keep", "patience") if not config.validate}
    idle |= {"cameras": "the checkpoint of --init says which cameras it reads"} if config.init else {}
    for name, reason in idle.items():
        if (value := getattr(config, name)) != getattr(ExpertConfig, name):
            raise UserError(
                f"expected settings that do something, found --{name.replace('_', '-')} {value}, but {reason}; "
                "fix: leave it out"
            )
    if fixed := sorted(FIXED & set(config.set or {})):
        raise UserError(
            f"expected settings that training here reads, found --set {fixed[0]}, which does nothing; fix: leave it "
            "out (--precision chooses bfloat16, --dataset the features, --init the weights)"
        )


def _train(config: ExpertConfig, policy_config: Any, accelerator: Accelerator, position: Position) -> None:
    """Train it, from `position` on."""
    done = position.step
    run = Path(config.out)
    checkpoint = run / "checkpoint"
    torch.manual_seed(config.seed)
    mixture = open_mixture(config.dataset, config.rename, config.resize)
    init = checkpoint if done else checkpoint_of(config.init) if config.init else None
    if done:  # a policy may have filled in what it found in pretrained encoders
        pace = {name: getattr(policy_config, name) for name in config.set or {} if name.startswith(RATES)}
        policy_config = PreTrainedConfig.from_pretrained(checkpoint, local_files_only=True)
        for name, value in {**pace, "device": best_device().type}.items():
            setattr(policy_config, name, value)
    policy, contract = built(policy_config, mixture, config.cameras, init)
    before, after = processors(policy, mixture, init)
    before = with_camera_sizes(before, policy.config.input_features, config.resize or ())
    if init is not None:
        _check_units(policy, before, after, mixture)
    with accelerator.main_process_first(), accelerator.local_main_process_first():
        rows = cached_images(
            mixture.datasets, list(policy.config.image_features), config.cache_gb, choice=run / "caches.json"
        )
    rows = on_device(rows, best_device())
    samples, held_out = Samples.of(mixture.datasets, policy.config, rows, best_device()), None
    samples.prepare = prepared(before)
    if config.validate:
        samples, held_out = samples.split(config.validate)
    samples.weigh(mixture.weights, config.balance, config.gripper_change_factor)
    _go_on(policy, done * config.accumulate)
    learner = Learner(
        policy,
        STAGE,
        *optimization(policy, config.steps, position.begun),
        processors=(renaming(before, config.rename), after),
        contract=contract,
        bfloat16=_in_bfloat16(config, policy, samples, run, accelerator),
        settled=lambda: _is_settled(policy),
    )
    parameters = sum(p.numel() for p in policy.parameters())
    console.print(f"{policy.config.type}: {parameters:,} parameters, {len(samples):,} samples", highlight=False)
    kind = config.track if accelerator.is_main_process else "none"
    with tracked(kind, run, {"stage": STAGE, **asdict(config)}) as tell:
        train(learner, samples, config, position, Watch(held_out, tell=tell), accelerator)


def configured(config: ExpertConfig) -> Any:
    """The policy's own configuration. Raises UserError if a setting has no such name, or no such type."""
    if not config.init:
        declared: type = PreTrainedConfig.get_choice_class(config.kind or "seer")
        make: Callable[..., Any] = declared
    else:
        init = checkpoint_of(config.init)
        kind = kind_of(init)
        if config.kind not in (None, kind):
            raise UserError(f"expected a {config.kind} in {init}, found a {kind}; fix: --kind={kind}, or none")
        known = load_config(init)
        declared = type(known)

        def make(**fields: Any) -> Any:
            return dataclasses.replace(known, **fields)

    settings = decoded(declared, config.set or {})
    try:
        return make(**{**settings, "device": best_device().type, "push_to_hub": False, "pretrained_path": None})
    except ValueError as error:
        raise UserError(f"expected settings that fit together, found: {error}; fix: change what --set says") from error


def decoded(declared: type, settings: dict[str, str]) -> dict[str, Any]:
    """Settings, as they are typed, as values of a configuration's fields. Raises UserError for one that is none."""
    types = typing.get_type_hints(declared)
    names = [field.name for field in dataclasses.fields(declared) if field.init]
    values = {}
    for name, text in settings.items():
        if name not in names:
            near = difflib.get_close_matches(name, names) or sorted(names)
            raise UserError(
                f"expected a field of {declared.__name__}, found {name}; fix: --set {near[0]}=... "
                f"(there are {', '.join(near)})"
            )
        try:
            values[name] = draccus.decode(types[name], yaml.safe_load(text))
        except (DecodingError, yaml.YAMLError, ValueError, TypeError) as error:
            wanted = getattr(types[name], "__name__", str(types[name]))
            raise UserError(
                f"expected {name} to be of type {wanted}, found {text}; fix: --set {name}=VALUE of that type"
            ) from error
    return values


def built(config: Any, mixture: Mixture, cameras: Sequence[str], init: Path | None) -> tuple[Any, Contract]:
    """The policy, fresh or with the weights in `init`, and the contract of its checkpoint."""
    features = mixture.features
    seen = {key: f for key, f in features.items() if f.type is FeatureType.VISUAL}
    if missing := [name for name in cameras if name not in seen]:
        raise UserError(
            f"expected cameras among {', '.join(seen)}, found {', '.join(missing)}; fix: name some of those"
        )
    unread = set(seen) - set(cameras or seen)
    if not config.input_features:
        config.input_features = {
            key: f for key, f in features.items() if f.type is not FeatureType.ACTION and key not in unread
        }
    config.output_features = {key: f for key, f in features.items() if f.type is FeatureType.ACTION}
    contract = mixture.contract
    if init is not None:
        found = {key: tuple(feature.shape) for key, feature in features.items()}
        check_features(policy_shapes(config), found, f"expert {init}", mixture.name)
        if (init / CONTRACT).exists():
            contract = Contract.load(init)
            contract.check(mixture.contract, f"expert {init}", mixture.name)
        if hasattr(config, "pretrained_backbone_weights"):
            config.pretrained_backbone_weights = None  # the checkpoint has them
        policy = load_policy(init, config, strict=True).train()
    else:
        try:
            policy = get_policy_class(config.type)(config, dataset_stats=mixture.meta.stats, dataset_meta=mixture.meta)
        except URLError as error:
            raise UserError(
                f"expected to fetch the pretrained weights of {config.type}'s vision encoder, found no way there: "
                f"{error.reason}; fix: go online once, or --set pretrained_backbone_weights=null, which starts it anew"
            ) from error
        except (ValueError, ImportError, OSError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"expected {config.type} to fit to {mixture.name}, found: {error}; fix: --set another value, "
                "--cameras to leave images out, or install what it needs"
            ) from error
    if hasattr(policy, "contract"):  # a Seer's units: those that any of the datasets knows
        policy.contract = contract
    horizon = next(getattr(config, name) for name in reversed(HORIZONS) if hasattr(config, name))
    return policy.to(best_device()), contract.having(horizon=horizon)


def processors(policy: Any, mixture: Mixture, init: Path | None) -> tuple[Any, Any]:
    """What goes before and after the policy: with the statistics of all frames, those of images by ImageNet as in
    lerobot-train; or as they are in `init`, for the weights there were trained with them.
    """
    if init is not None:
        return load_processors(init, policy.config)
    usual = {name: torch.tensor(value, dtype=torch.float32) for name, value in IMAGENET_STATS.items()}
    cameras = [key for key, feature in mixture.features.items() if feature.type is FeatureType.VISUAL]
    stats = {key: {**mixture.meta.stats[key], **usual} for key in cameras}
    return make_pre_post_processors(
        policy.config, dataset_stats={**mixture.meta.stats, **stats}, dataset_meta=mixture.meta
    )


def renaming(before: Any, rename: dict[str, str] | None) -> Any:
    """The processor as a robot needs it that has a dataset's old names; training reads by the new ones."""
    if not rename:
        return before
    own = copy.copy(before)
    names = RenameObservationsProcessorStep(rename_map=dict(rename))
    own.steps = [names if isinstance(step, RenameObservationsProcessorStep) else step for step in before.steps]
    return own


def _check_units(policy: Any, before: Any, after: Any, mixture: Mixture) -> None:
    """Raises UserError if a dataset has other numbers than those that the weights were trained on."""
    known = {ACTION: affine_of(after, policy.config.action_feature.shape[0])}
    if policy.config.robot_state_feature is not None:
        known[OBS_STATE] = state_affine_of(before, policy.config.robot_state_feature.shape[0])
    for dataset in mixture.datasets:
        for key, (offset, scale) in known.items():
            stats = dataset.meta.stats[key]
            check_alike(stats, offset.numpy(), scale.numpy(), key, "the expert", f"dataset {dataset.root}")


def prepared(before: Any) -> Callable[[Batch], Batch]:
    """What lerobot-train does to a batch: images as floats in [0, 1], then the policy's own processor."""

    def prepare(batch: Batch) -> Batch:
        return before(
            {k: v.float() / 255 if isinstance(v, Tensor) and v.dtype == torch.uint8 else v for k, v in batch.items()}
        )

    return prepare


def optimization(
    policy: Any, steps: int, begun: int = 0
) -> tuple[torch.optim.Optimizer, Callable[[int], float], float]:
    """The policy's own optimizer, with its peak rates, the factor of these in each step from `begun` on, and its limit
    of gradients.
    """
    preset, schedule = policy.config.get_optimizer_preset(), policy.config.get_scheduler_preset()
    rate: Callable[[int], float] = lambda step: 1.0  # noqa: E731
    if schedule is not None:
        anything = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        own = schedule.build(anything, steps - begun).lr_lambdas[0]
        rate = lambda step: own(step - begun)  # noqa: E731
    optimizer = preset.build(policy.get_optim_params())
    for group in optimizer.param_groups:
        group |= {"fused": True} if "fused" in group else {}  # the same numbers in a fifth of the time
    return optimizer, rate, preset.grad_clip_norm or float("inf")


class Precision(TypedDict):
    """precision.json: what a run computes in."""

    bfloat16: bool


def _in_bfloat16(config: ExpertConfig, policy: Any, samples: Samples, run: Path, accelerator: Accelerator) -> bool:
    """Whether to compute in bfloat16; a run goes on as it began."""
    if config.precision != "auto":
        return config.precision == "bfloat16"
    known = run / "precision.json"
    with accelerator.main_process_first():
        if not known.exists():
            a_batch = config.batch_size // accelerator.num_processes // config.accumulate
            count = min(PROBED, a_batch) if accelerator.device.type == "cpu" else a_batch
            batch = samples.share(samples.order(0, count, seed=0), 0, 1)
            write_json(known, {"bfloat16": bfloat16_is_faster(policy, batch)})
    found: Precision = read_json(known, Precision, "the precision that the run began with")
    return found["bfloat16"]


def _go_on(policy: Any, batches: int) -> None:
    """A VQ-BeT counts the batches of its first phase in a place that its checkpoint lacks."""
    if policy.config.type == "vqbet":
        policy.vqbet.action_head.vqvae_model.optimized_steps = batches


def _is_settled(policy: Any) -> bool:
    """A VQ-BeT's first phase has another loss, and looking at it would train."""
    return policy.config.type != "vqbet" or bool(policy.vqbet.action_head.vqvae_model.discretized)
