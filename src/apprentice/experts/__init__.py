"""Small action models (experts) behind one interface."""

import json
from pathlib import Path

import torch

from apprentice.errors import UserError
from apprentice.experts.base import ActionDecoder, ActionExpert
from apprentice.experts.seer.expert import SeerExpert
from apprentice.experts.seer.modeling_seer import SeerDecoder
from apprentice.experts.seer_full.expert import SeerFullExpert

EXPERTS: dict[str, type[SeerExpert]] = {"seer": SeerExpert, "seer_full": SeerFullExpert}
DECODERS: dict[str, type[ActionDecoder]] = {"seer": SeerDecoder}


def load_expert(path: Path | str, device: torch.device) -> ActionExpert:
    """Load a LeRobot policy's checkpoint folder as an expert. Raises UserError if it is none that we know."""
    config = Path(path) / "config.json"
    if not config.is_file():
        raise UserError(
            f"expected an expert's checkpoint folder, found no {config}; "
            "fix: name the folder with config.json and model.safetensors (lerobot-train calls it pretrained_model)"
        )
    kind = json.loads(config.read_text()).get("type")
    if kind not in EXPERTS:
        raise UserError(f"expected an expert of type {', '.join(EXPERTS)}, found {kind!r}; fix: train one of those")
    return EXPERTS[kind](path, device)
