"""Configuration of Seer, the small language-conditioned expert (LeRobot policy type `seer`)."""

from dataclasses import dataclass, field

from lerobot.configs import NormalizationMode, PreTrainedConfig
from lerobot.optim import AdamWConfig
from lerobot.optim.schedulers import CosineAnnealingWithWarmupSchedulerConfig

from apprentice.errors import UserError

GRIPPER_STATES = 2  # the last entries of the state are the gripper's, as in LIBERO: two finger positions (m)
IMAGE_STRIDE = 32  # pixels of an image per visual token, along each side


@PreTrainedConfig.register_subclass("seer")
@dataclass
class SeerConfig(PreTrainedConfig):
    """About 3 M parameters at the defaults.

    Args:
        chunk_size: T, actions predicted at once; one action query token each.
        n_action_steps: how many of them are carried out before the policy looks again.
        width: D, of the transformer and of the latents.
        gripper_weight: factor of the gripper's cross-entropy in the loss.
        shift: largest random shift of a training image, in pixels.
        jitter: largest relative change of a training image's brightness and contrast.
        state_noise: standard deviation of noise on the normalised state in training, so that the policy looks
            instead of trusting where the arm happened to be in the demonstrations.
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
    gripper_weight: float = 0.1

    shift: int = 6
    jitter: float = 0.2
    state_noise: float = 0.03

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

    def validate_features(self) -> None:
        """Raise UserError unless there are images of one size, a state with a gripper, and actions."""
        sizes = {tuple(feature.shape) for feature in self.image_features.values()}
        if len(sizes) != 1 or any(side % IMAGE_STRIDE for side in next(iter(sizes))[1:]):
            raise UserError(
                f"expected images of one size, sides a multiple of {IMAGE_STRIDE} px, found {sorted(sizes)}; "
                "fix: record or resize every camera to the same size, 128 px say"
            )
        check_state_and_action(self, GRIPPER_STATES)

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
    """Raise UserError unless the state has an arm before its `gripper_states` last entries, and the action an arm."""
    state, action = config.robot_state_feature, config.action_feature
    if state is None or state.shape[0] <= gripper_states:
        raise UserError(
            f"expected observation.state with more than {gripper_states} entries, the last {gripper_states} "
            f"the gripper's, found {None if state is None else tuple(state.shape)}; fix: add the arm's state"
        )
    if action is None or action.shape[0] < 2:
        raise UserError(
            f"expected an action whose last entry is the gripper's, found "
            f"{None if action is None else tuple(action.shape)}; fix: check the dataset's features"
        )
