"""Configuration of the student policy."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lerobot.configs import FeatureType, NormalizationMode, PreTrainedConfig
from lerobot.optim import AdamWConfig, CosineDecayWithWarmupSchedulerConfig
from lerobot.utils.constants import ACTION

from apprentice.common.errors import UserError
from apprentice.common.files import fingerprint, read_json
from apprentice.data.features import read_features
from apprentice.experts import load_expert
from apprentice.experts.base import ActionExpert
from apprentice.experts.by_task import read_tasks

STAGES = ("align", "finetune")


@PreTrainedConfig.register_subclass("apprentice")
@dataclass
class ApprenticeConfig(PreTrainedConfig):
    """What a student is made of and how it is trained.

    A fresh student reads `vlm` and `expert` once. Its checkpoint holds all it needs, and both are then only provenance.

    Attributes:
        vlm: folder or hub name of a Hugging Face image-text-to-text model.
        expert: folder of the expert's checkpoint, or a YAML file with one for each instruction; its decoder moves into
            the student.
        stage: "align" trains action tokens, state encoder and mapper towards the expert's latents; "finetune" trains
            the language model and the decoder too, towards the demonstrated actions.
        align_loss: "mse", or "l2", the mean norm of the difference (docs/paper.md, Equations, alignment).
        n_obs_steps: K, steps of observation that the student reads, the present one included; older ones lie
            `n_action_steps` frames apart, as plans do.
        latent_weight: how much of the alignment's loss stays in the fine-tuning's; 0 as in the paper.
        scratch: give the VLM random weights (a control).
        n_action_steps: actions executed before the policy plans again; None for half of the chunk.
        gripper_state_dims: how many of the last columns of the state belong to the gripper; None for 2, or fewer if
            the state would have no others.
        resize: cameras whose images may have any proportions; others must have those that the student learned.
        position_noise_mm, angle_noise_rad: standard deviation of noise on the state in training, so that the student
            relies on the images, and less on where the arm was in the demonstrations; by the contract's units.
        learning_rate: peak learning rate; the language model's is `language_rate_factor` times as high.
        decoder_kind, decoder_settings: the expert's decoder; these and what follows is filled in from the expert.
        chunk_size: T, actions in a chunk.
        latent_count, latent_dim: N latents of D numbers, from which the decoder makes a chunk; an action token each.
        action_window: first step, and the one after the last, of the actions that the decoder's loss reads.
        expert_place, expert_weights: where the expert lay, as an absolute path, and a fingerprint of its weights: by
            these it is found, and known, when its latents count again.
        expert_obs_steps: steps of observation that the expert reads, right before each step of the student.
        history_spacing: `n_action_steps` of the training, frames between the steps of a history.
    """

    vlm: str = ""
    expert: str = ""
    stage: str = "align"
    align_loss: str = "mse"
    latent_weight: float = 0.0
    scratch: bool = False
    n_action_steps: int | None = None
    gripper_state_dims: int | None = None
    resize: list[str] = field(default_factory=list)
    position_noise_mm: float = 1.0
    angle_noise_rad: float = 0.01
    learning_rate: float = 1e-3
    language_rate_factor: float = 0.3
    weight_decay: float = 1e-4
    expert_place: str = ""
    expert_weights: str = ""
    decoder_kind: str = ""
    decoder_settings: dict[str, Any] = field(default_factory=dict)
    chunk_size: int = 0
    latent_count: int = 0
    latent_dim: int = 0
    action_window: tuple[int, int] = (0, 0)
    expert_obs_steps: int = 1
    history_spacing: int = 0
    # The student normalises by itself, with the expert's statistics, which travel in its weights.
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: {kind.value: NormalizationMode.IDENTITY for kind in FeatureType}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stage not in STAGES:
            raise UserError(f"expected a stage of {STAGES}, found '{self.stage}'; fix: --policy.stage=align")
        if self.align_loss not in ("mse", "l2"):
            raise UserError(f"expected align_loss mse or l2, found '{self.align_loss}'; fix: --policy.align_loss=mse")
        if self.n_obs_steps < 1:
            raise UserError(f"expected n_obs_steps of at least 1, found {self.n_obs_steps}; fix: 1 for no history")

    def validate_features(self) -> None:
        """Keep the inputs that are read. Raise UserError unless there are images, a state and an action, and plans as
        far apart as in training.
        """
        inputs, outputs = self.input_features, self.output_features or {}  # type: ignore[has-type]
        self.input_features = read_features(inputs)
        self.output_features = {key: each for key, each in outputs.items() if key == ACTION}
        if not self.image_features or self.robot_state_feature is None or self.action_feature is None:
            raise UserError(
                f"expected images, observation.state and action in the dataset, found inputs "
                f"{sorted(self.input_features or {})} and outputs {sorted(self.output_features or {})}; "
                "fix: record them, or rename yours (--rename OLD=NEW of apprentice align or finetune)"
            )
        wrong = [f"{key} {tuple(each.shape)}" for key, each in self.image_features.items() if each.shape[0] != 3]
        if wrong:
            raise UserError(
                f"expected images of three colours, found {', '.join(wrong)}; fix: leave these cameras out of the "
                "dataset, or convert their pictures"
            )
        size = self.robot_state_feature.shape[0]
        if not 0 <= self.gripper_dims <= size:
            raise UserError(
                f"expected --gripper-state-dims of 0 to {size}, the entries of observation.state, found "
                f"{self.gripper_state_dims}; fix: say how many of its last entries belong to the gripper"
            )
        if self.n_obs_steps > 1 and self.history_spacing not in (0, self.n_action_steps):
            raise UserError(
                f"expected n_action_steps {self.history_spacing}, how far apart steps of a history were in training,"
                f" found {self.n_action_steps}; fix: --policy.n_action_steps={self.history_spacing}"
            )

    def check_same(self, folder: Path) -> None:
        """Raise UserError if the checkpoint in `folder` is to be loaded as a student of another VLM; an expert that is
        named anew is looked for there alone.
        """
        try:
            known = read_json(folder / "config.json", dict[str, Any])
        except (OSError, ValueError):
            return  # the loader's error is clearer
        for name in ("vlm", "scratch"):
            if (now := getattr(self, name)) != known.get(name, now):
                raise UserError(
                    f"expected {name} {known[name]} as in {folder}, found {now}; a trained student keeps its VLM; fix: "
                    f"leave --policy.{name} out, or --policy.path, to begin with a new one"
                )
        if self.expert != known.get("expert", self.expert):
            self.expert_place = str(Path(self.expert).resolve())

    @property
    def gripper_dims(self) -> int:
        """How many of the last columns of the state belong to the gripper."""
        assert self.robot_state_feature is not None
        return (
            min(2, self.robot_state_feature.shape[0] - 1)
            if self.gripper_state_dims is None
            else self.gripper_state_dims
        )

    def get_optimizer_preset(self) -> AdamWConfig:
        """AdamW, as in the reference recipe."""
        return AdamWConfig(lr=self.learning_rate, weight_decay=self.weight_decay, grad_clip_norm=1.0)

    def get_scheduler_preset(self) -> CosineDecayWithWarmupSchedulerConfig:
        """A tenth of the steps to warm up, then cosine decay; LeRobot scales both down to the length of the run."""
        return CosineDecayWithWarmupSchedulerConfig(
            num_warmup_steps=1_000_000, num_decay_steps=10_000_000, peak_lr=self.learning_rate, decay_lr=0.0
        )

    @property
    def observation_delta_indices(self) -> list[int] | None:
        """The student's history, and what the expert reads at each of its steps if the expert's latents count; None for
        the present alone.
        """
        self._know_expert()
        past = range(1 - self.expert_obs_steps if self.reads_expert else 0, 1)
        deltas = sorted({step + before for step in self.history for before in past})
        return deltas if len(deltas) > 1 else None

    @property
    def history(self) -> list[int]:
        """The student's K steps in frames, oldest first; 0 is now."""
        return [-self.history_spacing * step for step in reversed(range(self.n_obs_steps))]

    @property
    def reads_expert(self) -> bool:
        """Whether the expert's latents count in the present stage."""
        return self.stage == "align" or self.latent_weight > 0

    @property
    def action_delta_indices(self) -> list[int]:
        """The steps of the actions that the decoder's loss reads, at every step of the history."""
        self._know_expert()
        return sorted({step + action for step in self.history for action in range(*self.action_window)})

    def _know_expert(self) -> None:
        """A fresh configuration asks its expert for its shape. Raises UserError without one."""
        if not self.chunk_size:
            self.adopt(load_expert(self.expert, torch.device("cpu")))

    def find_expert(self) -> str:
        """Where the expert is: as named, or else where it lay. Raises UserError if neither holds its weights."""
        places = dict.fromkeys(place for place in (self.expert, self.expert_place) if place)
        there = [place for place in places if Path(place).exists()]
        for place in there:
            if self.expert_weights in ("", weights_fingerprint(place)):
                return place
        found = f"another in {' and '.join(there)}" if there else f"nothing at {' or '.join(places)}"
        raise UserError(
            f"expected the expert whose latents the student learns, found {found}; fix: name the folder where it is "
            "now, --expert=FOLDER (lerobot-train: --policy.expert=FOLDER), or do without it, --latent-weight=0 to "
            "fine-tune"
        )

    def adopt(self, expert: ActionExpert) -> None:
        """Take over the shape of the expert's latents and the recipe of its decoder."""
        self.chunk_size, self.action_window = expert.horizon, expert.action_window
        self.latent_count, self.latent_dim = expert.latent_count, expert.latent_dim
        self.expert_obs_steps = expert.n_obs_steps if self.n_obs_steps == 1 else expert.most_obs_steps
        self.n_action_steps = self.n_action_steps or (expert.horizon + 1) // 2
        self.history_spacing = self.n_action_steps
        self.decoder_kind, self.decoder_settings = expert.kind, dict(expert.decoder.settings)
        self.expert_place, self.expert_weights = str(Path(self.expert).resolve()), weights_fingerprint(self.expert)

    @property
    def reward_delta_indices(self) -> None:
        """No rewards."""
        return None


def weights_fingerprint(expert: str) -> str:
    """A fingerprint of an expert's weights, or of those for each instruction; the same wherever the folders lie."""
    tasks = read_tasks(expert) if Path(expert).is_file() else {"": Path(expert)}
    parts: list[Path | str] = []
    for task, folder in sorted(tasks.items()):
        parts += [task, *sorted(folder.glob("*.safetensors"))]
    return fingerprint(*parts)
