"""Pre-training of the nano VLM: answers to questions about two images, plus a dense head that is dropped afterwards.

The vision tower stays frozen when a policy is taught, so its tokens must hold geometry: see `dense.DenseHead`. Weights
are averaged as they change, and the average is what is checked and kept.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from apprentice.common.device import best_device
from apprentice.common.files import only_one, replacing, write_json
from apprentice.common.untrusted import place_of, without_weights
from apprentice.nano.batches import Chat, Corpus, special_values, texts
from apprentice.nano.dense_heads import DenseHead
from apprentice.nano.forward import answer_logits, image_tokens
from apprentice.nano.model import NanoConfig, build_model, build_processor
from apprentice.nano.scenes.dataset import available, load
from apprentice.nano.score.validation import HeldOut
from apprentice.nano.tokenizer import train_tokenizer
from apprentice.nano.trainer import CHECKPOINT, Trainer, train


@dataclass
class PretrainConfig:
    """What to train on, where to write, how long.

    Attributes:
        data: folder of scenes, written by `apprentice scenes`.
        output: folder to write; the VLM is OUTPUT/model.
        start: OUTPUT of an earlier run of the same sizes: begin with its weights and its tokenizer.
        steps: number of optimizer steps.
        vision_share: share of the steps, at the beginning, in which the vision tower is trained alone. Questions teach
            nothing before the tower has learned, and take half of the time.
        batch: number of layouts in a step.
        questions: number of questions about each layout.
        lr: peak learning rate.
        warmup: share of the steps in which the learning rate rises.
        weight_decay: weight decay of AdamW, for all matrices but the embeddings.
        ema: decay of the moving average of the weights.
        seed: seed of weights, questions and their order.
        checkpoint_every: time between checkpoints (s).
        check_every: validate on held-out layouts every N steps; log.jsonl has the results.
        blind: train on grey images: the text-only twin that scores are compared with.
        nano: sizes of the model.
    """

    data: str
    output: str
    start: str | None = None
    steps: int = 24_000
    vision_share: float = 0.4
    batch: int = 16
    questions: int = 8
    lr: float = 8e-4
    warmup: float = 0.01
    weight_decay: float = 0.05
    ema: float = 0.998
    seed: int = 0
    checkpoint_every: float = 240.0
    check_every: int = 500
    blind: bool = False
    nano: NanoConfig = field(default_factory=NanoConfig)


class Targets(nn.Module):
    """Cross-entropy in which a location or distance next to the right one is nearly right (Gaussian, 1.2 steps)."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocab: int):
        super().__init__()
        values = F.pad(special_values(tokenizer), (0, vocab - len(tokenizer)))
        near = (values[:, None] - values[None]).float()
        soft = torch.exp(-0.5 * (near / 1.2) ** 2) * (values[:, None] > 0) * (values[None] > 0)
        soft[values == 0] = torch.eye(vocab)[values == 0]
        self.register_buffer("soft", soft / soft.sum(1, keepdim=True), persistent=False)
        self.soft: Tensor

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Loss of logits (A, V) against token ids (A,)."""
        return -(self.soft[target] * logits.float().log_softmax(-1)).sum(-1).mean()


class PretrainTrainer(Trainer):
    """All of the model and the dense head."""

    def __init__(self, config: PretrainConfig, tokenizer: PreTrainedTokenizerBase):
        torch.manual_seed(config.seed)
        model, head = build_model(config.nano, tokenizer), DenseHead(config.nano)
        named = dict(model.named_parameters(prefix="model")) | dict(head.named_parameters(prefix="head"))
        # The position heads sum thousands of inputs: at the full rate they overshoot.
        wide = [p for name, p in named.items() if name.startswith(("head.workspace", "head.offset"))]
        rest = {name: p for name, p in named.items() if not name.startswith(("head.workspace", "head.offset"))}
        decayed = [p for name, p in rest.items() if p.ndim > 1 and "embed" not in name]
        others = [p for name, p in rest.items() if p.ndim < 2 or "embed" in name]
        groups = [
            {"params": decayed, "weight_decay": config.weight_decay, "scale": 1.0},
            {"params": others, "weight_decay": 0.0, "scale": 1.0},
            {"params": wide, "weight_decay": config.weight_decay, "scale": 0.1},
        ]
        device = best_device()
        self.blind, self.first_answers = config.blind, config.vision_share * config.steps
        self.model, self.head = model.to(device).train(), head.to(device)  # type: ignore[arg-type]
        self.model.get_decoder().set_attn_implementation("eager")  # on a CPU a third faster than "sdpa" here
        self.targets = Targets(tokenizer, config.nano.vocab).to(device)
        self.checks: list[HeldOut] = []
        super().__init__(config, named, groups, config.ema)

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        tokens = image_tokens(self.model, batch["pixel_values"], self.blind)
        losses = {} if self.blind else self.head(tokens, batch)
        if self.blind or self.step >= self.first_answers:
            losses["answer"] = self.targets(answer_logits(self.model, tokens, batch), batch["target"])
        return losses

    def questions_at(self, step: int) -> int:
        return self.config.questions if self.blind or step >= self.first_answers else 1

    def check(self) -> dict[str, float]:
        """What the average of the weights finds on layouts that are not trained on."""
        answering = self.step > self.first_answers
        with self.averaged():
            return {
                f"{check.part} {name}": value
                for check in self.checks
                for name, value in check.run(self.model, self.head, answering).items()
            }


def pretrain(config: PretrainConfig) -> Path:
    """Train on rendered scenes (see `scenes.generate`) and return the folder of the finished VLM, `output`/model.

    Killed at any moment and called again with the same configuration, it ends with the same weights.
    """
    with only_one(config.output):
        return _pretrain(config, Path(config.output))


def _pretrain(config: PretrainConfig, output: Path) -> Path:
    write_json(output / "config.json", asdict(config))
    tokenizer = tokenizer_of(config, output / "tokenizer")
    processor = build_processor(config.nano, tokenizer)
    trainer, chat = PretrainTrainer(config, tokenizer), Chat.of(processor)
    if config.start:
        trainer.begin_with(Path(config.start) / CHECKPOINT)
    if config.check_every and not config.blind:
        trainer.checks = [HeldOut(config.data, part, chat) for part in available(config.data, ("layouts", "own"))]
        trainer.check_every = config.check_every
    train(trainer, Corpus(config.data, "train", chat), output, "pre-training")
    with trainer.averaged(), replacing(output / "model") as fresh:
        trainer.model.to(torch.bfloat16).save_pretrained(fresh)  # type: ignore[arg-type]
        processor.save_pretrained(fresh)
    return output / "model"


def tokenizer_of(config: PretrainConfig, folder: Path) -> PreTrainedTokenizerBase:
    """The run's tokenizer: that of the run it starts from, or else trained once."""
    if not folder.exists() and config.start:
        known = PreTrainedTokenizerFast.from_pretrained(**without_weights(place_of(Path(config.start) / "tokenizer")))
        with replacing(folder) as fresh:
            known.save_pretrained(fresh)
    elif not folder.exists():
        facts = load(config.data, "layouts", ())["facts"]
        with replacing(folder) as fresh:
            train_tokenizer(texts(facts, config.seed)).save_pretrained(fresh)
    return PreTrainedTokenizerFast.from_pretrained(**without_weights(place_of(folder)))
