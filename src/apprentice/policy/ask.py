"""Ask a VLM a question about images: a plain one, or the one inside a student, and how far that has drifted."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.utils import logging

from apprentice.common.adapters import load_policy, policy_type
from apprentice.common.device import best_device
from apprentice.common.errors import UserError
from apprentice.common.progress import show
from apprentice.common.result import Result
from apprentice.policy.configuration_apprentice import ApprenticeConfig
from apprentice.vlm.base import VLM


@dataclass(frozen=True)
class Drift:
    """How far a VLM is from the one that it was.

    Attributes:
        divergence: mean KL divergence of its next-token distributions from the original's (nats).
        equal: share of tokens that both would choose.
        weights: norm of the change of the language model's weights, relative to their norm.
    """

    divergence: float
    equal: float
    weights: float


def ask(model: str, images: list[str], question: str, tokens: int = 64) -> Result:
    """Print the answer; for a student also its original's answer and the drift, if the original is at hand.

    Args:
        model: a student (run or checkpoint), or the folder or hub name of a VLM.
        images: picture files, in the order of the student's cameras.
        question: question about the pictures.
        tokens: largest length of the answer (tokens).
    """
    logging.set_verbosity_error()  # a generation configuration may speak of sampling
    logging.disable_progress_bar()
    pictures = [_picture(path) for path in images]
    folder = Path(model) / "checkpoint" if (Path(model) / "checkpoint").is_dir() else Path(model)
    if not (folder / "config.json").exists() or policy_type(folder) != "apprentice":
        vlm = VLM.from_pretrained(model)
        said = _text(vlm, answer(vlm, vlm.inputs([pictures], [question]), tokens))
        show(said)
        return Result({"answer": said})
    policy = load_policy(folder, ApprenticeConfig.from_pretrained(folder))
    student = policy.vlm.to(best_device()).eval()
    inputs = student.inputs([pictures], [question])
    said = _text(student, answer(student, inputs, tokens))
    show(f"the student: {said}")
    if policy.config.scratch:
        show("its VLM started from random weights: there is no original")
        return Result({"answer": said})
    try:
        original = VLM.from_pretrained(policy.config.vlm, local=True).to(best_device()).eval()
    except UserError:
        show(f"the original, {policy.config.vlm}, was not found: drift is not measured")
        return Result({"answer": said})
    expected = answer(original, inputs, tokens)
    found = drift(student, original, inputs, expected)
    show(f"the original: {_text(original, expected)}")
    show(
        f"drift over the original's {len(expected)} tokens: KL divergence {found.divergence:.3g} nats a token, "
        f"{found.equal:.0%} of tokens equal; the language model's weights changed by {found.weights:.2%}"
    )
    return Result({"answer": said, "original": _text(original, expected), "drift": found})


@torch.no_grad()
def answer(vlm: VLM, inputs: Any, tokens: int) -> Tensor:
    """The greedy answer to one question, as token ids (n,)."""
    ids = vlm.model.generate(**inputs, do_sample=False, max_new_tokens=tokens)
    return ids[0, inputs["input_ids"].shape[1] :]


def drift(vlm: VLM, original: VLM, inputs: Any, expected: Tensor) -> Drift:
    """Compare two VLMs of one structure while both say the original's answer `expected` (n,) to one question."""
    ours, its = (_log_probabilities(each, inputs, expected) for each in (vlm, original))
    pairs = list(zip(vlm.language_parameters(), original.language_parameters(), strict=True))
    with torch.no_grad():
        change = sum((a - b).square().sum().item() for a, b in pairs)
        size = sum(b.square().sum().item() for _, b in pairs)
    return Drift(
        divergence=(its.exp() * (its - ours)).nan_to_num().sum(-1).mean().item(),
        equal=(ours.argmax(-1) == its.argmax(-1)).float().mean().item(),
        weights=(change / size) ** 0.5,
    )


@torch.no_grad()
def _log_probabilities(vlm: VLM, inputs: Any, said: Tensor) -> Tensor:
    """Of every next token (n, V), while the model is made to say `said` (n,) in the way it generates."""
    start = inputs["input_ids"].shape[1]
    output = vlm.model.generate(
        **inputs,
        do_sample=False,
        max_new_tokens=len(said),
        prefix_allowed_tokens_fn=lambda _, ids: [said[len(ids) - start].item()],
        output_logits=True,
        return_dict_in_generate=True,
    )
    return torch.cat(output.logits).float().log_softmax(-1)


def _text(vlm: VLM, ids: Tensor) -> str:
    return vlm.processor.tokenizer.decode(ids, skip_special_tokens=True).strip()


def _picture(path: str) -> Tensor:
    """A file as (3, h, w), uint8. Raises UserError."""
    try:
        with Image.open(path) as image:
            if image.mode[0] in "IF":  # Pillow would make nearly all of it white
                raise ValueError(f"numbers of more than 8 bits (mode {image.mode})")
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    except Exception as error:  # Pillow has many for a damaged file
        raise UserError(f"expected an image, found {path}: {error}; fix: give a PNG or JPEG file of 8 bits") from error
