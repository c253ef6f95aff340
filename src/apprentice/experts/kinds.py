"""Every kind of expert, by the `type` in its checkpoint's config.json. A new kind is a file and two lines here."""

from collections.abc import Callable
from pathlib import Path

import torch

from apprentice.common.adapters import policy_type
from apprentice.common.errors import UserError
from apprentice.common.untrusted import check_policy
from apprentice.experts.act import ACTDecoder, ACTExpert
from apprentice.experts.base import ActionDecoder, ActionExpert
from apprentice.experts.diffusion import DiffusionDecoder, DiffusionExpert
from apprentice.experts.multi_task_dit import MultiTaskDiTDecoder, MultiTaskDiTExpert
from apprentice.experts.seer import configuration_seer  # noqa: F401  LeRobot knows a policy once this is imported
from apprentice.experts.seer.decoder import SeerDecoder
from apprentice.experts.seer.expert import SeerExpert
from apprentice.experts.seer_full import configuration_seer_full  # noqa: F401
from apprentice.experts.seer_full.expert import SeerFullExpert
from apprentice.experts.vqbet import VQBeTDecoder, VQBeTExpert

EXPERTS: dict[str, Callable[[Path, torch.device], ActionExpert]] = {
    "seer": SeerExpert,
    "seer_full": SeerFullExpert,
    "act": ACTExpert,
    "diffusion": DiffusionExpert,
    "vqbet": VQBeTExpert,
    "multi_task_dit": MultiTaskDiTExpert,
}
DECODERS: dict[str, type[ActionDecoder]] = {
    "seer": SeerDecoder,
    "act": ACTDecoder,
    "diffusion": DiffusionDecoder,
    "vqbet": VQBeTDecoder,
    "multi_task_dit": MultiTaskDiTDecoder,
}


def kind_of(folder: Path) -> str:
    """The policy type of a checkpoint folder, which is checked (`apprentice.common.untrusted`).

    Raises UserError if it is none, may not be loaded, or is of a type that cannot teach.
    """
    config = folder / "config.json"
    if not config.is_file():
        raise UserError(
            f"expected an expert's checkpoint folder, found no {config}; "
            "fix: name the folder with config.json and model.safetensors (lerobot-train calls it pretrained_model)"
        )
    check_policy(folder)
    kind = policy_type(folder)
    if kind not in EXPERTS:
        raise UserError(
            f"expected an expert of type {', '.join(EXPERTS)} in {config}, found {kind!r}; fix: train one of those"
        )
    return kind
