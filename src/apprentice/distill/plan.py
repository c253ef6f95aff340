"""What training a student will take: parameters, memory of a GPU, disk. Nothing is trained and no weights are fetched.

The student is built from the VLM's configuration and the expert's checkpoint, with imagined weights (see `memory`), and
is taken through two real steps of each stage, the policy's own code and all; the plan reports what they keep alive.
"""

import copy
import importlib.util
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.utils.constants import ACTION, OBS_STATE
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from apprentice.common.errors import UserError
from apprentice.common.progress import console
from apprentice.common.result import Result
from apprentice.common.untrusted import check_model
from apprentice.data.batch import ACTION_IS_PAD, EXPERT_LATENTS, IMAGE_TOKENS, PREFIX, STATE_IS_PAD, TASK, Batch
from apprentice.data.contract import Contract
from apprentice.data.dataset import instructions, open_dataset
from apprentice.data.features import policy_features
from apprentice.data.local import LocalDataset
from apprentice.distill.caches.cache import BATCH
from apprentice.distill.memory import Account, Saved, imagine
from apprentice.experts import load_expert
from apprentice.experts.base import ActionExpert
from apprentice.experts.by_task import ByTaskExpert
from apprentice.policy.configuration_apprentice import ApprenticeConfig
from apprentice.policy.modeling_apprentice import ApprenticePolicy

INSTRUCTIONS = ["pick up the black bowl and place it on the plate", "turn on the stove"]  # where no dataset tells
NO_WEIGHTS = ["*.json", "*.jinja", "*.txt", "*.model"]


@dataclass(frozen=True)
class StageMemory:
    """A stage of training, on one GPU.

    Attributes:
        trains: how many parameters train, by part.
        weights: bytes of the student's weights, and of the expert's that are there with them.
        gradients: bytes of gradients.
        optimizer: bytes of AdamW's two averages.
        saved: bytes that the forward pass saves for the backward pass.
        peak: most bytes at any time in a step, what is there for a moment included.
        work: floating-point operations of a step's matrix products, with the images' tokens there already.
    """

    trains: dict[str, int]
    weights: int
    gradients: int
    optimizer: int
    saved: int
    peak: int
    work: int


@dataclass(frozen=True)
class Plan:
    """What training takes.

    Attributes:
        parts: parameters of each part of the student.
        stages: "align", "finetune" and, with PEFT, "finetune, LoRA".
        caches: bytes a frame takes on disk, by cache; keys and values only where they can be cached.
        frames: how many frames are cached.
        filling: bytes on the GPU while the caches are computed.
    """

    parts: dict[str, int]
    stages: dict[str, StageMemory]
    caches: dict[str, int]
    frames: int
    filling: int


def plan(
    vlm: str,
    expert: str,
    batch: int = 64,
    dataset: str = "",
    frames: int = 0,
    n_obs_steps: int = 1,
    lora_rank: int = 16,
    precision: Literal["bfloat16", "float32"] = "bfloat16",
    rename: dict[str, str] | None = None,
    resize: dict[str, str] | None = None,
) -> Result:
    """Tell how many parameters train, what memory each stage needs on a GPU, and what the caches need on disk.

    Args:
        vlm: folder or hub name of a Hugging Face VLM; of a hub name, only the configuration and the processor are
            fetched.
        expert: folder of the expert's checkpoint, or a YAML file with one for each instruction.
        batch: number of samples in a step.
        dataset: folder of a LeRobotDataset v3.0; without one, the expert's cameras and example instructions are used.
        frames: number of frames to cache, instead of the dataset's.
        n_obs_steps: number of observation steps that the student reads, with the present one.
        lora_rank: rank of the LoRA matrices.
        precision: precision of the GPU's computation; weights, gradients and averages are always float32.
        rename: new names of the dataset's features, such as observation.images.top=observation.images.image.
        resize: sizes (px) in which cameras are read, such as observation.images.image=240x320 (height x width).

    Raises UserError if one of them cannot be read, or they do not fit.
    """
    if (rename or resize) and not dataset:
        raise UserError("expected --rename and --resize of a dataset, found none; fix: --dataset FOLDER")
    data = open_dataset(dataset, rename, resize) if dataset else None
    with configuration(vlm) as folder:
        sketch = Sketch(folder, expert, data, batch, n_obs_steps, getattr(torch, precision))
        stages = {stage: sketch.memory(stage) for stage in ("align", "finetune")}
        if importlib.util.find_spec("peft"):
            stages["finetune, LoRA"] = sketch.memory("finetune", lora_rank)
        caches, filling = sketch.caches()
    count = frames or (data.num_frames if data else 0)
    found = Plan(sketch.parts, stages, caches, count, filling)
    for table in tables(found, batch, precision):
        console.print(table)
    return Result(found)


class Sketch:
    """A student without weights, copied for each stage.

    Attributes:
        parts: parameters of each of its parts.
        tasks: the instructions, the one that makes the longest prompt first.
        image_tokens: shape (n, K * H) of a frame's image tokens.
        seeing: bytes that it takes to compute them.
    """

    def __init__(
        self, folder: Path, expert: str, data: LocalDataset | None, batch: int, steps: int, precision: torch.dtype
    ):
        self.batch, self.steps, self.precision = batch, steps, precision
        self.expert = load_expert(expert, torch.device("cpu"))
        features = policy_features(data.meta.features) if data else _features(self.expert)
        tasks = sorted(set(instructions(data))) if data else INSTRUCTIONS
        self.config = ApprenticeConfig(
            vlm=str(folder / "vlm"),
            expert=expert,
            input_features={k: f for k, f in features.items() if f.type is not FeatureType.ACTION},
            output_features={k: f for k, f in features.items() if f.type is FeatureType.ACTION},
            device="cpu",
        )
        self.config.adopt(self.expert)
        self.config.pretrained_path = folder  # adapters are for a student that has weights, so PEFT asks where
        with torch.device("meta"):
            self._student = ApprenticePolicy(self.config, checkpoint=folder)
        self._student.decoder = copy.deepcopy(self.expert.decoder)  # real, as are its noise schedules
        self.parts = {part: _count(parameters) for part, parameters in self._student.parts().items()}
        _, policy, account = self._imagined("align")
        self.tasks = sorted(tasks, key=lambda task: -policy.prompt({TASK: [task]}).ids.shape[1])
        self.image_tokens, self.seeing = self._see(policy, account)

    def memory(self, stage: str, lora_rank: int = 0) -> StageMemory:
        """A stage with everything cached; with adapters, which are lerobot-train's, without caches."""
        model, policy, account = self._imagined(stage, lora_rank)
        if stage == "align":
            account.meet(weights_of(self.expert))
        weights = account.live
        with account:
            batch = self._batch(policy, account)
            gradients, averages, saved, peak, work = step_memory(model, policy, batch, account, self.precision)
        if lora_rank:
            peak = max(peak, weights + averages + self.batch * self.seeing)
        trains = {part: _count(p for p in all_ if p.requires_grad) for part, all_ in policy.parts().items()}
        return StageMemory(trains, weights, gradients, averages, saved, peak, work)

    def caches(self) -> tuple[dict[str, int], int]:
        """Bytes a frame takes in each cache, and bytes on the GPU to compute them."""
        _, policy, account = self._imagined("align")
        weights = account.live
        with account:
            prefix = self._prefix(policy, account)
        rows = {
            "image tokens": self.image_tokens[0] * self.image_tokens[1] * 2,
            "expert latents": self.config.latent_count * self.config.latent_dim * 4,
        }
        rows |= {} if prefix is None else {"keys and values": prefix.nbytes}
        return rows, weights + BATCH * max(account.peak - weights, self.seeing)

    def _see(self, policy: ApprenticePolicy, account: Account) -> tuple[tuple[int, int], int]:
        """Shape of a frame's image tokens, and the bytes that it takes to compute them."""
        before = account.live
        black = [torch.zeros(1, 3, *size, dtype=torch.uint8) for size in policy.image_sizes]
        with account, torch.no_grad(), self._autocast():
            tokens = policy.vlm.image_tokens(black)
        return (tokens.shape[1], tokens.shape[2]), account.peak - before

    def _imagined(self, stage: str, lora_rank: int = 0) -> tuple[nn.Module, ApprenticePolicy, Account]:
        """The student wrapped in LoRA's adapters if they have a rank, itself, and an account of its weights."""
        policy = copy.deepcopy(self._student)
        policy.set_stage(stage)
        policy.config.n_obs_steps = self.steps
        policy.vlm.splits = True  # weights alone could tell, and all tested families do
        model: nn.Module = policy
        if lora_rank:
            with torch.device("meta"):
                model = policy.wrap_with_peft(peft_cli_overrides={"method_type": "lora", "r": lora_rank})
        account = Account()
        imagine(model.train(), account)
        account.meet([*model.parameters(), *model.buffers()])
        return model, policy, account

    def _batch(self, policy: ApprenticePolicy, account: Account) -> Batch:
        """What `Samples` would yield, imagined."""
        config, batch = policy.config, self._prompted(account, self.batch)
        actions = len(config.action_delta_indices)
        sizes = {
            OBS_STATE: (*self._history, *config.robot_state_feature.shape),  # type: ignore[union-attr]
            ACTION: (actions, *config.action_feature.shape),  # type: ignore[union-attr]
        }
        if config.reads_expert:
            sizes[EXPERT_LATENTS] = (*self._history, config.latent_count, config.latent_dim)
        packed = self._prefix(policy, account) if config.stage == "align" else None
        if packed is not None:
            del batch[IMAGE_TOKENS]
            batch[PREFIX] = account.imagined(packed.expand(self.batch, *packed.shape[1:]))
        if self._history:
            batch[STATE_IS_PAD] = torch.zeros(self.batch, *self._history, dtype=torch.bool)
        batch[ACTION_IS_PAD] = torch.zeros(self.batch, actions, dtype=torch.bool)
        return batch | {key: account.imagined(torch.empty(self.batch, *size)) for key, size in sizes.items()}

    @property
    def _history(self) -> list[int]:
        """The axis that a history adds to a batch's observations, if there is one."""
        return [self.steps] if self.steps > 1 else []

    def _prefix(self, policy: ApprenticePolicy, account: Account) -> Tensor | None:
        """The longest prompt's keys and values (1, layers, 2, heads, L, d), as they are cached, if they can be."""
        if self._history:
            return None
        with torch.no_grad(), self._autocast():
            packed = policy.prefix(self._prompted(account, 1)).pack()
        return None if packed is None else packed.bfloat16()

    def _prompted(self, account: Account, size: int) -> Batch:
        """Image tokens and instructions, for `size` samples."""
        tokens = torch.empty(size, *self._history, *self.image_tokens, dtype=torch.bfloat16)
        return {TASK: [self.tasks[i % len(self.tasks)] for i in range(size)], IMAGE_TOKENS: account.imagined(tokens)}

    def _autocast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.precision is torch.bfloat16)


def step_memory(
    model: nn.Module, policy: ApprenticePolicy, batch: Batch, account: Account, precision: torch.dtype
) -> tuple[int, int, int, int, int]:
    """Take two optimizer steps as `trainer.train` does on a GPU, inside `account`.

    Returns bytes of gradients, of the optimizer's averages, saved for the backward pass, and at the peak of the second;
    and the floating-point operations of the first one's matrix products.
    """
    counter = FlopCounterMode(display=False)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(policy.get_optim_params(), foreach=True)  # what PyTorch chooses on a GPU
    for counting in (counter, nullcontext()):
        account.peak = account.live
        saved = Saved(model.parameters())
        with counting:
            with saved, torch.autocast("cpu", precision, enabled=precision is torch.bfloat16):
                loss, _ = model(batch)
            loss.backward()
        gradients = sum(p.grad.nbytes for p in trained if p.grad is not None)
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        del loss
    averages = sum(t.nbytes for state in optimizer.state.values() for t in state.values() if t.ndim)
    return gradients, averages, saved.size, account.peak, counter.get_total_flops()


def tables(found: Plan, batch: int, precision: str) -> Iterator[Table]:
    """The plan for a reader."""
    table = Table(title="parameters that train", title_justify="left")
    for column in ("part", "parameters", *found.stages):
        table.add_column(column, justify="left" if column == "part" else "right")
    for part, count in found.parts.items():
        trained = (stage.trains[part] for stage in found.stages.values())
        table.add_row(part, f"{count:,}", *(f"{t:,}" if t else "frozen" for t in trained))
    sums = (sum(stage.trains.values()) for stage in found.stages.values())
    table.add_row("together", f"{sum(found.parts.values()):,}", *(f"{s:,}" for s in sums))
    yield table

    table = Table(title=f"memory and work of a GPU, {batch} samples a step, {precision}", title_justify="left")
    for column in ("", *found.stages):
        table.add_column(column, justify="right" if column else "left")
    rows = {
        "weights (float32)": "weights",
        "gradients": "gradients",
        "AdamW's averages": "optimizer",
        "saved for the backward pass": "saved",
        "peak of a step": "peak",
    }
    for name, field in rows.items():
        table.add_row(name, *(_size(getattr(stage, field)) for stage in found.stages.values()))
    table.add_row("work of a step", *(f"{stage.work / 1e12:.3g} TFLOP" for stage in found.stages.values()))
    table.caption = f"to compute the caches: {_size(found.filling)}. CUDA itself takes 0.5 to 1 GB on top"
    yield table

    table = Table(title="caches on disk", title_justify="left")
    for column in ("cache", "a frame", *([f"{found.frames:,} frames"] if found.frames else [])):
        table.add_column(column, justify="left" if column == "cache" else "right")
    for name, size in found.caches.items():
        table.add_row(name, _size(size), *([_size(size * found.frames)] if found.frames else []))
    yield table


@contextmanager
def configuration(vlm: str) -> Iterator[Path]:
    """A student's checkpoint folder without its weights: the VLM's configuration and processor, and a contract."""
    place = Path(vlm)
    if not place.is_dir():
        try:
            place = Path(snapshot_download(vlm, allow_patterns=NO_WEIGHTS))
        except (OSError, ValueError, HFValidationError) as error:
            raise UserError(
                f"expected a VLM's folder or its name on the hub, found '{vlm}': {str(error).splitlines()[0]}; "
                "fix: check the name, or go online once to fetch its configuration"
            ) from error
    check_model(place, weights=False)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vlm").symlink_to(place.resolve())
        Contract().save(folder)
        yield Path(folder)


def _features(expert: ActionExpert) -> dict[str, PolicyFeature]:
    """The features that an expert's dataset had."""
    kinds = {key: FeatureType.STATE if key == OBS_STATE else FeatureType.VISUAL for key in expert.inputs}
    features = {key: PolicyFeature(kinds[key], shape) for key, shape in expert.inputs.items()}
    return features | {ACTION: PolicyFeature(FeatureType.ACTION, (expert.action_dim,))}


def weights_of(expert: ActionExpert) -> list[Tensor]:
    """What the expert holds on its device."""
    each = expert.experts if isinstance(expert, ByTaskExpert) else [expert]
    modules = [expert.decoder, *(one.policy for one in each), *(one.decoder for one in each)]
    return [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]


def _count(parameters: Iterable[Tensor]) -> int:
    return sum(p.numel() for p in parameters)


def _size(size: float) -> str:
    """Bytes in words."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
