"""Small action models (experts) behind one interface."""

from pathlib import Path

import torch

from apprentice.experts import kinds
from apprentice.experts.base import ActionDecoder, ActionExpert
from apprentice.experts.by_task import ByTaskDecoder, ByTaskExpert, read_tasks
from apprentice.experts.kinds import EXPERTS, kind_of

DECODERS: dict[str, type[ActionDecoder]] = {**kinds.DECODERS, "by_task": ByTaskDecoder}


def load_expert(path: Path | str, device: torch.device) -> ActionExpert:
    """Load a LeRobot policy's checkpoint folder as an expert, or a YAML file that names one for each instruction.

    Raises UserError if it is none that we know.
    """
    if Path(path).is_file():
        return ByTaskExpert(path, device)
    return EXPERTS[kind_of(Path(path))](Path(path), device)


def checkpoints(path: Path | str) -> list[Path]:
    """The checkpoint folders behind what `load_expert` takes."""
    return sorted(set(read_tasks(path).values())) if Path(path).is_file() else [Path(path)]
