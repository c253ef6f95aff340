"""The settings that trainings share. Each is declared here once; commands and recipes read their flags from here."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """What is computed once for each frame, and kept on the disk.

    Attributes:
        every: train on every n-th frame only. Neighbouring frames differ little, and each cached frame takes time.
        views: train on so many views of each frame: the picture itself, and copies that are moved a little and lit
            differently.
        cache_gb: largest size of the caches on the disk (GB). If the space is too small for all, image tokens come
            first, then the expert's latents, then the keys and values of the VLM's prefix.
        cache_precision: precision of the caches; 8-bit is for keys and values, image tokens are then bfloat16.
    """

    every: int = 1
    views: int = 1
    cache_gb: float = 32.0
    cache_precision: Literal["float32", "bfloat16", "8-bit"] = "bfloat16"


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """A training, of an expert or of a student.

    Attributes:
        dataset: folder of a LeRobotDataset v3.0, or several: A B samples each as often as it has frames, A=2 B=1 takes
            two of three samples from A.
        out: folder of the run; OUT/checkpoint is the policy.
        rename: new names of a dataset's features, such as observation.images.top=observation.images.image. The
            checkpoint remembers them, for a robot that has the old names.
        resize: sizes (px) in which cameras are read, such as observation.images.image=240x320 (height x width).
        steps: number of optimizer steps.
        batch_size: number of samples in a step, over all processes together.
        accumulate: split each process's share of a step into so many parts, to save memory.
        ema: decay of the moving average of the weights, such as 0.999; the average is saved. 0 for no average.
        seed: seed of the initial weights and of the order of the data.
        balance: "task" draws each instruction of a dataset equally often, "frame" draws each frame equally often.
        gripper_change_factor: draw samples within half a second of a change of the gripper so many times as often as
            others; 1 draws all equally often.
        validate: number of episodes of the datasets that are kept out of training; their loss is logged.
        validate_every: validate every N steps.
        keep: the weights that the run ends with: the last or the best. The best have the highest success if there are
            roll-outs, otherwise the lowest loss on the episodes of `validate`.
        patience: stop early after so many validations (or roll-outs, if there are any) in a row without a better
            result; 0 for never.
        track: also draw the log's curves with trackio (if it is installed) or wandb; both stay on this machine.
    """

    dataset: Sequence[str] | str
    out: str
    rename: dict[str, str] | None = None
    resize: dict[str, str] | None = None
    steps: int = 1000
    batch_size: int = 64
    accumulate: int = 1
    ema: float = 0.0
    seed: int = 0
    balance: Literal["task", "frame"] = "task"
    gripper_change_factor: float = 1.0
    validate: int = 0
    validate_every: int = 200
    keep: Literal["last", "best"] = "last"
    patience: int = 0
    track: Literal["trackio", "wandb", "none"] = "trackio"
