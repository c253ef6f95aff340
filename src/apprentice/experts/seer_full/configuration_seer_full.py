"""Configuration of Seer as published (LeRobot policy type `seer_full`)."""

from dataclasses import dataclass, field
from math import isqrt

from lerobot.configs import NormalizationMode, PreTrainedConfig
from lerobot.optim import AdamWConfig
from lerobot.optim.schedulers import CosineAnnealingWithWarmupSchedulerConfig

from apprentice.common.errors import UserError
from apprentice.experts.seer.configuration_seer import check_state_and_action
from apprentice.experts.seer.decoder import AUTO

FORESIGHT_HEADS = 16  # of the decoder that paints, at every width, as published


@PreTrainedConfig.register_subclass("seer_full")
@dataclass
class SeerFullConfig(PreTrainedConfig):
    """The defaults are those of the public code on LIBERO: 67 M trained parameters between two frozen encoders.

    A window is `n_obs_steps` steps of an episode; every step in it predicts its own actions and its own future.

    Args:
        n_obs_steps: S, steps in a window; at run time, as many past steps at most, the present one included.
        chunk_size: T, actions predicted at each step; one action token each.
        temporal_ensemble_coeff: k of the weights exp(-k i), i = 0 the oldest, that average what the last T chunks say
            of the present step; None takes the newest chunk's first action.
        width, layers, heads: of the transformer; D, the width of the latents, is `width`.
        dropout: of the transformer, in training.
        resampler_tokens, resampler_layers: of the perceiver resampler; tokens for each image.
        foresight_steps: how many steps ahead the predicted pictures lie; 0 predicts none.
        foresight_tokens: for each camera, a square number.
        foresight_layers: of the decoder that paints the predicted pictures.
        gripper: "binary", "continuous" or "auto", see SeerConfig.
        gripper_states: 2, finger positions at the end of the state; or 1, a flag there, positive for one of two states.
        euler_columns: first column of the state, and the one after the last, of three angles (rad) that the weights
            know as Euler angles in their usual ranges; None if there are none. The public LIBERO loader takes the
            axis-angle numbers for Euler angles, which puts rx - 2 pi in the place of an rx above pi.
        turn_images: turn images by 180 degrees before they are encoded. The public LIBERO weights saw the simulator's
            raw pictures, LeRobot's are turned.
        mae: folder or hub name of the ViT-MAE that a new policy starts from; it stays frozen. None: random weights of
            the sizes below, trained with the rest. A checkpoint holds these weights itself.
        clip: the same for the CLIP text model and its tokenizer; None reads the instruction letter by letter.
        image_size: side that images are resized to (px); patch_size: of the MAE (px).
        vision_width, vision_layers, vision_heads: of the MAE; taken from `mae` if that is given.
        text_width, text_layers, text_heads, text_features, vocabulary: of CLIP's text model; the same.
        foresight_weight, gripper_weight: factors of the pictures' loss and of the gripper's cross-entropy.
        shift: largest random shift of a window's images in training (px, after resizing).
        dtype: precision of `lerobot-train`, see SeerConfig.
    """

    n_obs_steps: int = 7
    chunk_size: int = 3
    temporal_ensemble_coeff: float | None = 0.01
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: {
            "VISUAL": NormalizationMode.IDENTITY,
            "STATE": NormalizationMode.MEAN_STD,
            "ACTION": NormalizationMode.MIN_MAX,  # to [-1, 1], the range of the decoder's tanh
        }
    )

    width: int = 384
    layers: int = 24
    heads: int = 12
    dropout: float = 0.1
    resampler_tokens: int = 6
    resampler_layers: int = 3
    foresight_steps: int = 3
    foresight_tokens: int = 9
    foresight_layers: int = 2
    gripper: str = AUTO
    gripper_states: int = 2
    euler_columns: tuple[int, int] | None = None
    turn_images: bool = False

    mae: str | None = "facebook/vit-mae-base"
    clip: str | None = "openai/clip-vit-base-patch32"
    image_size: int = 224
    patch_size: int = 16
    vision_width: int = 768
    vision_layers: int = 12
    vision_heads: int = 12
    text_width: int = 512
    text_layers: int = 12
    text_heads: int = 8
    text_features: int = 512
    vocabulary: int = 49408

    foresight_weight: float = 0.1
    gripper_weight: float = 0.01
    shift: int = 4
    dtype: str = "float32"
    optimizer_lr: float = 1e-3
    optimizer_weight_decay: float = 1e-4
    scheduler_warmup_steps: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("n_obs_steps", "chunk_size", "resampler_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"expected {name} of at least 1, found {getattr(self, name)}; fix: raise it")
        if isqrt(self.foresight_tokens) ** 2 != self.foresight_tokens:
            raise UserError(
                f"expected foresight_tokens to be a square number, found {self.foresight_tokens}; fix: 9 or 16"
            )
        if self.gripper_states not in (1, 2):
            raise UserError(
                f"expected gripper_states 1 (a flag) or 2 (finger positions), found {self.gripper_states}; "
                "fix: say how the gripper stands at the end of observation.state"
            )
        if self.width % self.heads or (self.foresight_steps and self.width % FORESIGHT_HEADS):
            raise UserError(
                f"expected a width that {self.heads} heads divide, and {FORESIGHT_HEADS} for the predicted pictures, "
                f"found {self.width}; fix: a width of 384 or 1024"
            )

    def validate_features(self) -> None:
        """Raise UserError unless there are images, a state with a gripper, and actions."""
        if not self.image_features:
            raise UserError("expected images, found none; fix: train on a dataset with a camera")
        check_state_and_action(self, self.gripper_states)

    def get_optimizer_preset(self) -> AdamWConfig:
        return AdamWConfig(lr=self.optimizer_lr, weight_decay=self.optimizer_weight_decay, grad_clip_norm=0.1)

    def get_scheduler_preset(self) -> CosineAnnealingWithWarmupSchedulerConfig:
        return CosineAnnealingWithWarmupSchedulerConfig(num_warmup_steps=self.scheduler_warmup_steps)

    @property
    def observation_delta_indices(self) -> list[int]:
        """A window that begins here, and behind it the pictures that its last steps are to predict."""
        return list(range(self.n_obs_steps + self.foresight_steps))

    @property
    def action_delta_indices(self) -> list[int]:
        """T actions from each step of the window on."""
        return list(range(self.n_obs_steps + self.chunk_size - 1))

    @property
    def reward_delta_indices(self) -> None:
        return None
