"""Checkpoints of our own experts carry the contract of the data that they were trained on."""

from pathlib import Path
from typing import Any, Self

from torch import Tensor

from apprentice.data.contract import FILE as CONTRACT
from apprentice.data.contract import Contract


class Contracted:
    """Goes in front of LeRobot's PreTrainedPolicy; `config.chunk_size` is the horizon that the contract states."""

    config: Any
    contract: Contract

    def _save_pretrained(self, save_directory: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        super()._save_pretrained(save_directory, state_dict)  # type: ignore[misc]
        self.contract.having(horizon=self.config.chunk_size).save(save_directory)

    @classmethod
    def from_pretrained(cls, pretrained_name_or_path: str | Path, **kwargs: Any) -> Self:
        """Load a checkpoint, as LeRobot does, with its contract. Fine-tuning on other data checks that it fits."""
        policy: Self = super().from_pretrained(pretrained_name_or_path, **kwargs)  # type: ignore[misc]
        if (Path(pretrained_name_or_path) / CONTRACT).exists():
            trained = Contract.load(pretrained_name_or_path)
            trained.check(policy.contract, f"expert {pretrained_name_or_path}", "the dataset")
            policy.contract = trained
        return policy
