"""Configuration of Seer, the small language-conditioned expert (LeRobot policy type `seer`)."""

from dataclasses import dataclass, field

from lerobot.configs import NormalizationMode, PreTrainedConfig
from lerobot.optim import AdamWConfig
from lerobot.optim.schedulers import CosineAnnealingWithWarmupSchedulerConfig

from apprentice.common.errors import UserError
from apprentice.experts.seer.decoder import AUTO

LEAST_SIDE = 32  # of an image (px)


@PreTrainedConfig.register_subclass("seer")
@dataclass
class SeerConfig(PreTrainedConfig):
    """About 3 M parameters at the defaults.

    Args:
        chunk_size: T, actions predicted at once; one action query token each.
        n_action_steps: how many of them are carried out before the policy plans again.
        width: D, of the transformer and of the latents.
        gripper: "binary" if the action's last entry is a gripper of two values, "continuous" if all entries are
            decoded alike, "auto" to let the dataset decide; a checkpoint holds what was decided.
        gripper_weight: factor of a binary gripper's cross-entropy in the loss.
        shift: largest random shift of a training image, in pixels.
        jitter: largest relative change of a training image's brightness and contrast.
        position_noise_mm, angle_noise_rad: standard deviation of noise on the state in training, so that the policy
            looks instead of trusting where the arm happened to be in the demonstrations. The dataset's contract.json
            says which entries are lengths and which are angles; an entry without a unit gets no noise.
        dtype: precision of `lerobot-train`: "float32", or "bfloat16" where that is faster (not on a CPU without
            AVX-512, which takes 50 times longer). Weights are always float32.
    """

    n_obs_steps: int = 1
    chunk_size: int = 8
    n_action_steps: int = 4
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: {
            "VISUAL": NormalizationMode.IDENTITY,
            "STATE": NormalizationMode.MEAN_STD,
            "ACTION": NormalizationMode.MIN_MAX,  # to [-1, 1], the range of the decoder's tanh
        }
    )

    width: int = 192
    layers: int = 4
    heads: int = 6
    gripper: str = AUTO
    gripper_weight: float = 0.1

    shift: int = 6
    jitter: float = 0.2
    position_noise_mm: float = 1.0
    angle_noise_rad: float = 0.01

    dtype: str = "float32"
    optimizer_lr: float = 5e-4
    optimizer_weight_decay: float = 1e-4
    scheduler_warmup_steps: int = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_obs_steps != 1:
            raise UserError(f"expected n_obs_steps 1, found {self.n_obs_steps}; fix: Seer has no history yet")
        if not 1 <= self.n_action_steps <= self.chunk_size:
            raise UserError(
                f"expected n_action_steps in 1..chunk_size ({self.chunk_size}), found {self.n_action_steps}; "
                "fix: lower n_action_steps or raise chunk_size"
            )
        modes = {kind: self.normalization_mapping.get(kind) for kind in ("STATE", "ACTION")}
        if modes != {"STATE": NormalizationMode.MEAN_STD, "ACTION": NormalizationMode.MIN_MAX}:
            raise UserError(
                f"expected normalization_mapping STATE by MEAN_STD and ACTION by MIN_MAX, found {modes}; "
                "fix: leave it out: the state's noise and the decoder's range are made for these"
            )

    def validate_features(self) -> None:
        """Raise UserError unless there are images, a state and actions."""
        sizes = {key: tuple(feature.shape) for key, feature in self.image_features.items()}
        if not sizes or any(side < LEAST_SIDE for size in sizes.values() for side in size[1:]):
            raise UserError(
                f"expected images, sides of at least {LEAST_SIDE} px, found {sizes}; "
                "fix: record a camera, or larger images"
            )
        check_state_and_action(self, 0)

    def get_optimizer_preset(self) -> AdamWConfig:
        return AdamWConfig(lr=self.optimizer_lr, weight_decay=self.optimizer_weight_decay, grad_clip_norm=1.0)

    def get_scheduler_preset(self) -> CosineAnnealingWithWarmupSchedulerConfig:
        return CosineAnnealingWithWarmupSchedulerConfig(num_warmup_steps=self.scheduler_warmup_steps)  # ends at 0

    @property
    def observation_delta_indices(self) -> None:
        return None

    @property
    def action_delta_indices(self) -> list[int]:
        return list(range(self.chunk_size))

    @property
    def reward_delta_indices(self) -> None:
        return None


def check_state_and_action(config: PreTrainedConfig, gripper_states: int) -> None:
    """Raise UserError unless the state has entries before its `gripper_states` last ones, and there is an action."""
    state, action = config.robot_state_feature, config.action_feature
    if state is None or state.shape[0] <= gripper_states:
        raise UserError(
            f"expected observation.state with more than {gripper_states} entries, found "
            f"{None if state is None else tuple(state.shape)}; fix: record the arm's state"
        )
    if action is None:
        raise UserError("expected an action, found none; fix: check the dataset's features")
