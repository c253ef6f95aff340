"""Any LeRobot checkpoint as something that turns an observation into the next actions, as `lerobot-eval` runs it."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from apprentice.common.adapters import (
    complete,
    known_config,
    load_policy,
    load_processors,
    policy_file,
    policy_type,
    rename_map,
    whole_checkpoint,
)
from apprentice.common.errors import UserError
from apprentice.common.files import fingerprint
from apprentice.data.contract import FILE as CONTRACT
from apprentice.data.contract import Contract
from apprentice.data.features import READ
from apprentice.serve.policy_card import PLAIN, Execution, PolicyCard


def inspect_checkpoint(name: str, folder: Path, environment: Contract, execution: Execution = PLAIN) -> PolicyCard:
    """Look at a checkpoint before anything is loaded. Raises UserError if it is incomplete or does not fit."""
    whole = complete(folder, f"policy {name}: ")
    config, renamed = policy_file(folder), rename_map(folder)
    if (whole / CONTRACT).exists():
        cameras = tuple(renamed.get(key, key) for key in environment.cameras or ()) or None
        environment.having(cameras=cameras).check(Contract.load(whole), "the environment", f"policy {name}")
    offered = (*(environment.cameras or ()), "observation.state")
    given = [renamed.get(key, key) for key in offered]
    needed = [key for key in read_inputs(config["input_features"]) if key not in given]
    if needed:
        raise UserError(
            f"policy {name}: expected inputs among {', '.join(offered)}, found {', '.join(needed)}; "
            "fix: train it on a dataset with the features of this environment"
        )
    size, theirs = len(environment.action or ()), (config["output_features"] or {}).get("action")
    if size and theirs and tuple(theirs["shape"]) != (size,):
        raise UserError(
            f"policy {name}: expected actions of size {size}, found {', '.join(map(str, theirs['shape']))}; "
            "fix: a policy for the robot of this environment"
        )
    if execution != PLAIN:
        config |= vars(configured(name, folder, execution))
    return PolicyCard(config["type"], identity(folder), config.get("n_action_steps") or 1)


def read_inputs(features: dict[str, Any]) -> list[str]:
    """The inputs that a policy reads, of those in its config.json: LeRobot lists a dataset's unread ones, too."""
    return [key for key, each in features.items() if each["type"] == "VISUAL" or key in READ]


def identity(folder: Path) -> str:
    """The fingerprint of a checkpoint's files, and of those behind it."""
    return fingerprint(*dict.fromkeys((folder, whole_checkpoint(folder))))


def longest_chunk(config: Any) -> int:
    """How many of the actions that a policy plans lie ahead of it."""
    return sum(index >= 0 for index in config.action_delta_indices or [0])


def configured(name: str, folder: Path, execution: Execution = PLAIN) -> Any:
    """A checkpoint's configuration (LeRobot's) with another execution of its plans in place of its own.

    Raises UserError if its type is not known, or if the policy cannot act so.
    """
    import lerobot.policies  # noqa: F401  registers LeRobot's own
    from lerobot.configs import PreTrainedConfig
    from lerobot.utils.import_utils import register_third_party_plugins

    complete(folder, f"policy {name}: ")
    register_third_party_plugins()  # ours are one of them
    kind = policy_type(folder)
    if kind not in PreTrainedConfig.get_known_choices():
        raise UserError(
            f"policy {name}: expected a policy of LeRobot's or of an installed plugin, found type {kind}; "
            "fix: install the package lerobot_policy_... that has it"
        )
    config = known_config(folder, f"policy {name}: ")
    n_action_steps, ensembling = execution.n_action_steps, execution.ensembling
    if ensembling is not None:
        if config.n_obs_steps > 1:
            raise UserError(
                f"policy {name}: expected one that reads the present alone for temporal ensembling, found "
                f"n_obs_steps {config.n_obs_steps} (it would read observations of other times than it learned from); "
                "fix: leave --ensembling out"
            )
        n_action_steps = 1
    if n_action_steps is not None:
        longest = longest_chunk(config)
        if not hasattr(config, "n_action_steps") or not 1 <= n_action_steps <= longest:
            can = f"1 to {longest}" if hasattr(config, "n_action_steps") else "what it was trained to"
            raise UserError(
                f"policy {name} ({config.type}): expected {can} actions of a chunk to be executed, found "
                f"{n_action_steps}; fix: choose another --n-action-steps, or leave it out"
            )
        config.n_action_steps = n_action_steps
        if hasattr(config, "temporal_ensemble_coeff"):
            config.temporal_ensemble_coeff = None
    return config


class Checkpoint:
    """A policy with its processors, loaded offline onto `device`."""

    def __init__(
        self,
        name: str,
        folder: Path,
        device: torch.device,
        execution: Execution = PLAIN,
        action_dim: int | None = None,
    ):
        """`action_dim`: size of the actions that are asked for; None: what its configuration says."""
        from lerobot.policies.act.modeling_act import ACTTemporalEnsembler

        self.name = name
        config = configured(name, folder, execution)
        self.action_dim = action_dim or config.output_features["action"].shape[0]
        config.pretrained_path, config.device = folder, str(device)
        self.policy = load_policy(folder, config)
        self.preprocess, self.postprocess = load_processors(folder, config)
        # Only `select_action` keeps a history of observations (in queues, even of one) or an ensemble of chunks, and it
        # has to see every frame. A policy that says so remembers what it planned from.
        remembers = getattr(self.policy, "remembers_plans", False)
        history = not remembers and (config.n_obs_steps > 1 or hasattr(self.policy, "_queues"))
        self.every_step = history or getattr(config, "temporal_ensemble_coeff", None) is not None
        self.n_action_steps = 1 if self.every_step else config.n_action_steps
        self.ensembler: ACTTemporalEnsembler | None = None
        if execution.ensembling is not None:
            self.ensembler = ACTTemporalEnsembler(execution.ensembling, len(config.action_delta_indices))

    def reset(self, seed: int) -> None:
        """Begin an episode; a policy that samples does so from `seed`."""
        torch.manual_seed(seed)
        self.policy.reset()
        if self.ensembler:
            self.ensembler.reset()

    def close(self) -> None:
        """End the episode: nothing has to be given back."""

    @torch.inference_mode()
    def plan(self, observation: dict[str, np.ndarray], instruction: str) -> np.ndarray:
        """Turn one observation (images uint8 (H, W, 3), state (S,)) into the next `n_action_steps` actions (N, A).

        Raises UserError if the actions are not finite or of another shape.
        """
        batch = self.preprocess({**{k: _tensor(v) for k, v in observation.items()}, "task": [instruction]})
        if self.every_step:
            chunk = self.policy.select_action(batch)[:, None]
        else:
            chunk = self.policy.predict_action_chunk(batch)
            chunk = self.ensembler.update(chunk)[:, None] if self.ensembler else chunk[:, : self.n_action_steps]
        actions = np.concatenate([self.postprocess(chunk[:, k]).float().cpu().numpy() for k in range(chunk.shape[1])])
        return usable(actions, self.n_action_steps, f"policy {self.name}, instruction {instruction!r}", self.action_dim)


def usable(actions: np.ndarray, count: int, whose: str, size: int) -> np.ndarray:
    """The actions as they are. Raises UserError unless they are `count` finite ones of this size."""
    if actions.shape != (count, size) or not np.isfinite(actions).all():
        found = f"shape {actions.shape}" if np.isfinite(actions).all() else f"{actions[0]}"
        raise UserError(
            f"{whose}: expected {count} finite actions of size {size}, found {found}; "
            "fix: check its training and its normalisation statistics"
        )
    return actions


def _tensor(value: np.ndarray) -> torch.Tensor:
    """LeRobot's batch of one: images as float (1, 3, H, W) in [0, 1], everything else as it is.

    Contiguous as LeRobot's: with other strides a convolution rounds differently.
    """
    tensor = torch.from_numpy(np.ascontiguousarray(value))[None]
    return tensor.permute(0, 3, 1, 2).contiguous().float() / 255 if tensor.dtype == torch.uint8 else tensor
