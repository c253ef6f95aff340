"""Pre-training of the nano VLM: answers to questions about two images, plus a dense head that is dropped afterwards.

The vision tower stays frozen when a policy is taught, so its tokens must hold geometry: the auxiliary head reads the
category and the depth of every 4 px cell from its image token, and the position of every object from all of them.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, SmolVLMForConditionalGeneration

from apprentice.device import best_device
from apprentice.files import replacing, write_json
from apprentice.vlm.nano.batches import ENTITIES, Chat, Corpus, special_values, texts
from apprentice.vlm.nano.catalogue import CATEGORIES, CELL
from apprentice.vlm.nano.model import NanoConfig, build_model, build_processor
from apprentice.vlm.nano.scenes import load
from apprentice.vlm.nano.tokenizer import train_tokenizer
from apprentice.vlm.nano.trainer import Trainer, train


@dataclass
class PretrainConfig:
    """What to train on, where to write, how long.

    Attributes:
        data: folder of scenes, made by `apprentice scenes`.
        output: folder to write; the VLM will be OUTPUT/model.
        steps: of the optimizer.
        vision_share: share of the steps, at the beginning, in which the vision tower learns alone. Until it sees
            something, questions cost half of the time and teach nothing.
        batch: layouts a step.
        questions: asked about each of them.
        pool: questions drawn, once, for every layout; those asked are drawn from them.
        lr: peak learning rate.
        warmup: share of the steps in which the rate rises.
        weight_decay: of AdamW, on matrices but the embeddings.
        seed: of weights, questions and order.
        checkpoint_every: time between checkpoints (s).
        blind: grey images, for the text-only twin that scores are compared to.
        nano: sizes of the model.
    """

    data: str
    output: str
    steps: int = 3200
    vision_share: float = 0.5
    batch: int = 16
    questions: int = 8
    pool: int = 24
    lr: float = 8e-4
    warmup: float = 0.04
    weight_decay: float = 0.05
    seed: int = 0
    checkpoint_every: float = 240.0
    blind: bool = False
    nano: NanoConfig = field(default_factory=NanoConfig)


class AuxiliaryHead(nn.Module):
    """Linear read-outs of the image tokens. They exist in pre-training alone."""

    def __init__(self, config: NanoConfig):
        super().__init__()
        self.side = int(config.image_tokens**0.5)
        self.cells = config.image // self.side // CELL
        width, area = config.width, self.cells**2
        self.category = nn.Linear(width, area * len(CATEGORIES))
        self.depth = nn.Linear(width, area)
        self.workspace = nn.Linear(width * config.image_tokens, 3 * len(ENTITIES))
        self.offset = nn.Linear(2 * width * config.image_tokens, 3 * len(ENTITIES))

    def _cells(self, values: Tensor) -> Tensor:
        """Targets (B, 2, S, S) by token: (2 B, T, cells * cells)."""
        n, c = self.side, self.cells
        return values.reshape(-1, n, c, n, c).transpose(2, 3).reshape(-1, n * n, c * c)

    def forward(self, tokens: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Losses of image tokens (2 B, T, H): category (nats), depth (log m) and positions (dm)."""
        area = self.cells**2
        logits = self.category(tokens).reshape(-1, area, len(CATEGORIES)).float()
        category = F.cross_entropy(logits.flatten(0, 1), self._cells(batch["category"]).flatten())
        depth = F.l1_loss(self.depth(tokens).float(), self._cells(batch["depth"]).clamp(min=0.01).log())
        flat = tokens.reshape(len(tokens) // 2, 2, -1)
        guess = torch.stack([self.workspace(flat[:, 0]), self.offset(flat.flatten(1))], 1).float()
        error = (guess.unflatten(-1, (len(ENTITIES), 3)) - 10 * batch["positions"]).abs().mean(-1)
        known = batch["known"].float()
        return {"category": category, "depth": depth, "position": (error * known).sum() / known.sum().clamp(min=1)}


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


def answer_logits(model: SmolVLMForConditionalGeneration, tokens: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Logits (A, V) of the answer tokens of a packed batch, with image tokens (2 B, T, H)."""
    mask = batch["attention_mask"]  # "eager" attention adds its mask: a boolean one would hide nothing
    hidden = model.model(
        input_ids=batch["input_ids"],
        attention_mask=torch.zeros_like(mask, dtype=tokens.dtype).masked_fill_(~mask, torch.finfo(tokens.dtype).min),
        position_ids=batch["position_ids"],
        image_hidden_states=tokens,
        use_cache=False,
    ).last_hidden_state
    return model.lm_head(hidden.flatten(0, 1)[batch["at"]])


def image_tokens(model: SmolVLMForConditionalGeneration, pixels: Tensor, blind: bool = False) -> Tensor:
    """Tokens (2 B, T, H) of images (B, 2, 3, S, S), resized to what the model reads; blind: of grey images."""
    size = model.model.vision_model.config.image_size
    if pixels.shape[-1] != size:
        pixels = F.interpolate(pixels.flatten(0, 1), (size, size), mode="bilinear", antialias=True)
        pixels = pixels.unflatten(0, (-1, 2))
    if blind:
        grey = torch.full_like(pixels[:1], 0.1)
        return model.model.get_image_features(grey).pooler_output.repeat(len(pixels), 1, 1)
    return model.model.get_image_features(pixels).pooler_output


class PretrainTrainer(Trainer):
    """All of the model and the auxiliary head."""

    def __init__(self, config: PretrainConfig, tokenizer: PreTrainedTokenizerBase):
        torch.manual_seed(config.seed)
        model, head = build_model(config.nano, tokenizer), AuxiliaryHead(config.nano)
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
        self.model.set_attn_implementation("eager")  # a third faster than "sdpa" on a CPU at these lengths
        self.targets = Targets(tokenizer, config.nano.vocab).to(device)
        super().__init__(config, named, groups)

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        tokens = image_tokens(self.model, batch["pixel_values"], self.blind)
        losses = {} if self.blind else self.head(tokens, batch)
        if self.blind or self.step >= self.first_answers:
            losses["answer"] = self.targets(answer_logits(self.model, tokens, batch), batch["target"])
        return losses


def pretrain(config: PretrainConfig) -> Path:
    """Train on rendered scenes (see `scenes.generate`) and return the folder of the finished VLM, `output`/model.

    Killed at any moment and called again with the same configuration, it ends with the same weights.
    """
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "config.json", asdict(config))
    tokenizer = _tokenizer(config, output / "tokenizer")
    processor = build_processor(config.nano, tokenizer)
    trainer = PretrainTrainer(config, tokenizer)
    train(trainer, Corpus(config.data, "train", Chat.of(processor), config.pool, config.seed), output, "pre-training")
    with replacing(output / "model") as fresh:
        trainer.model.to(torch.bfloat16).save_pretrained(fresh)  # type: ignore[arg-type]
        processor.save_pretrained(fresh)
    return output / "model"


def _tokenizer(config: PretrainConfig, folder: Path) -> PreTrainedTokenizerBase:
    """The run's tokenizer, trained once."""
    if not folder.exists():
        facts = load(config.data, "layouts", ())["facts"]
        with replacing(folder) as fresh:
            train_tokenizer(texts(facts, config.seed)).save_pretrained(fresh)
    return PreTrainedTokenizerFast.from_pretrained(folder)
