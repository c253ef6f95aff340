"""Rendered scenes to training batches: many questions share the two images in front of them.

A row is `<image><image>` followed by several questions with their answers. Each question sees the images and itself
alone and has the positions of a first turn, so that what is learnt is what a prompt with one instruction uses.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from apprentice.common.errors import UserError
from apprentice.nano.forward import pixels_of
from apprentice.nano.questions import KINDS, Question, questions
from apprentice.nano.scenes.catalogue import CATEGORIES, CELL, NAMES, SIZE, instructions, problems
from apprentice.nano.scenes.dataset import load
from apprentice.nano.scenes.own_scenes import CENTRE, room_of
from apprentice.nano.tokenizer import DISTANCES, LOCATIONS
from apprentice.vlm.template import FIX, write_chat

ENTITIES = (*CATEGORIES[4:], "gripper")  # whose positions the auxiliary head predicts
SHIFT = CELL  # px: shifts by whole cells keep the dense targets exact


@dataclass
class Item:
    """One tokenised question: `ask` ends with "Assistant:", `answer` with the end of the utterance."""

    kind: int
    ask: np.ndarray
    answer: np.ndarray
    image: int


@dataclass(frozen=True)
class Chat:
    """How a VLM's processor writes a question about two images, and its answer.

    Attributes:
        tokenizer: the processor's.
        start: token ids (n,) of what stands before the question, the images included.
        close: text between question and answer.
        end: text that ends an answer.
    """

    tokenizer: PreTrainedTokenizerBase
    start: np.ndarray
    close: str
    end: str

    @classmethod
    def of(cls, processor: Any) -> "Chat":
        """As the processor's chat template has it. Raises UserError if that drops the question."""
        content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "QUESTION"}]
        turns = [{"role": "user", "content": content}]
        text = write_chat(processor, turns)
        if text.count("QUESTION") != 1:
            raise UserError(f"expected a chat template that repeats a question once, found {text[:1000]!r}; {FIX}")
        before, close = text.split("QUESTION")
        blank = np.zeros((SIZE, SIZE, 3), np.uint8)
        begin = processor.tokenizer.bos_token
        doubled = begin is not None and before.startswith(begin)  # a template that begins a text, as most do
        settings = {"add_special_tokens": False} if doubled else {}
        start = processor(text=before, images=[blank, blank], return_tensors="np", **settings)
        return cls(processor.tokenizer, start["input_ids"][0], close, processor.tokenizer.eos_token)

    @property
    def points(self) -> bool:
        """Whether pixels and centimetres are tokens; if not, nothing is asked that is answered in them."""
        return LOCATIONS[0] in self.tokenizer.get_vocab()

    def questions(self, facts: dict[str, Any], rng: np.random.Generator, count: int) -> list[Question]:
        """Draw at most `count` questions that can be answered in its tokens."""
        drawn = questions(facts, rng, count)
        return drawn if self.points else [q for q in drawn if q.image < 0 and "<" not in q.answer]

    def question_text(self, item: Item) -> str:
        """A question's words."""
        return "".join(self.tokenizer.batch_decode(item.ask)).split(self.close)[0].strip()

    def tokenise(self, drawn: list[list[Question]]) -> list[list[Item]]:
        """Tokenise the questions about each of some layouts."""
        flat = [question for layout in drawn for question in layout]
        if not flat:
            return [[] for _ in drawn]
        asks = self.tokenizer([q.ask + self.close for q in flat], add_special_tokens=False)["input_ids"]
        answers = self.tokenizer([q.answer + self.end for q in flat], add_special_tokens=False)["input_ids"]
        items = iter(
            Item(KINDS.index(q.kind), np.array(ask), np.array(answer), q.image)
            for q, ask, answer in zip(flat, asks, answers, strict=True)
        )
        return [[next(items) for _ in layout] for layout in drawn]


class Corpus:
    """Layouts, mapped from their files. `batch` is a pure function of its arguments.

    Attributes:
        images, category, depth, facts: as stored, see `scenes`.
        positions, known: see `positions`.
    """

    def __init__(self, folder: Path | str, part: str, chat: Chat):
        data = load(folder, part)
        self.images, self.category, self.depth = data["images"], data["category"], data["depth"]
        self.facts: list[dict[str, Any]] = data["facts"]
        self.chat = chat
        self.positions, self.known = positions(self.facts)
        self.prefix = chat.start
        self.first = chat.tokenizer.get_vocab().get(LOCATIONS[0], -SIZE)
        self.pad = int(chat.tokenizer.pad_token_id)

    def __len__(self) -> int:
        return len(self.facts)

    def batch(self, rows: np.ndarray, rng: np.random.Generator, count: int, augment: bool) -> dict[str, Tensor]:
        """Images (B, 2, 3, S, S) float in [-1, 1], packed text (see `pack`), and the auxiliary targets.

        `rng` draws `count` questions a row and, if `augment`, shifts, light and noise.
        """
        chosen = self.chat.tokenise([self.chat.questions(self.facts[row], rng, count) for row in rows])
        shifts = np.zeros((len(rows), 2, 2), int)
        for i, items in enumerate(chosen):
            if augment and rng.random() < 0.5:
                shift = rng.integers(-1, 2, (2, 2)) * SHIFT
                moved = [self._move(item, shift) for item in items]
                if None not in moved:
                    chosen[i], shifts[i] = [item for item in moved if item], shift
        images = np.stack([_shift(self.images[r], s, 1) for r, s in zip(rows, shifts, strict=True)])
        category = np.stack([_shift(self.category[r], s, CELL) for r, s in zip(rows, shifts, strict=True)])
        depth = np.stack([_shift(self.depth[r], s, CELL) for r, s in zip(rows, shifts, strict=True)])
        still = (shifts == 0).all(axis=(1, 2))
        pixels = pixels_of(images, torch.device("cpu"))
        if augment:
            pixels = _relight(pixels, rng)
        return {
            "pixel_values": pixels,
            **pack(chosen, self.prefix, self.pad),
            "category": torch.from_numpy(category.astype(np.int64)),
            "depth": torch.from_numpy(depth.astype(np.float32)),
            "positions": torch.from_numpy(self.positions[rows]),
            "known": torch.from_numpy(self.known[rows] & still[:, None, None]),
        }

    def _move(self, item: Item, shift: np.ndarray) -> Item | None:
        """The question about the shifted image, None if a location would leave it."""
        if item.image < 0 or not shift[item.image].any():
            return item
        answer = item.answer.copy()
        at = np.flatnonzero((answer >= self.first) & (answer < self.first + SIZE))
        moved = answer[at] - self.first + np.resize(shift[item.image], len(at))
        if len(at) and (moved.min() < 0 or moved.max() >= SIZE):
            return None
        answer[at] = moved + self.first
        return Item(item.kind, item.ask, answer, item.image)


def positions(facts: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Positions (N, 2, E, 3) in m: in the workspace, and from the gripper; and which are known (N, 2, E).

    Known: single of its name and visible in some image (for the workspace: in the first).
    """
    found = np.zeros((len(facts), 2, len(ENTITIES), 3), np.float32)
    known = np.zeros(found.shape[:3], bool)
    for n, fact in enumerate(facts):
        origin = np.array([CENTRE[room_of(fact["scene"])], 0.0, fact["table"]])
        gripper = np.array(fact["gripper"]["position"])
        names = [thing["name"] for thing in fact["things"]]
        for thing in fact["things"]:
            if names.count(thing["name"]) == 1:
                e = ENTITIES.index(thing["name"])
                found[n, :, e] = np.array(thing["position"]) - [origin, gripper]
                known[n, :, e] = [thing["seen"][0] >= 10, max(thing["seen"]) >= 10]
        found[n, 0, -1] = gripper - origin
        known[n, 0, -1] = True
    return found, known


def pack(chosen: list[list[Item]], start: np.ndarray, pad: int) -> dict[str, Tensor]:
    """Lay rows of questions out behind the images.

    Returns input_ids, position_ids (B, L); attention_mask (B, 1, L, L) bool; for the A answer tokens: `at` (A,), the
    index of the predicting token in the flattened (B * L), `target`, `question` and `kind` (A,).
    """
    length = len(start) + max(sum(len(i.ask) + len(i.answer) for i in items) for items in chosen)
    length = -(-length // 16) * 16
    ids = np.full((len(chosen), length), pad)
    place = np.zeros((len(chosen), length), int)
    group = np.full((len(chosen), length), -1)
    at, target, question, kind = [], [], [], []
    number = 0
    for row, items in enumerate(chosen):
        ids[row, : len(start)], place[row, : len(start)], group[row, : len(start)] = start, np.arange(len(start)), 0
        cursor = len(start)
        for index, item in enumerate(items, start=1):
            text = np.concatenate([item.ask, item.answer])
            span = slice(cursor, cursor + len(text))
            ids[row, span], group[row, span] = text, index
            place[row, span] = len(start) + np.arange(len(text))
            first = row * length + cursor + len(item.ask) - 1
            at.append(first + np.arange(len(item.answer)))
            target.append(item.answer)
            question.append(np.full(len(item.answer), number))
            kind.append(np.full(len(item.answer), item.kind))
            cursor, number = cursor + len(text), number + 1
    own = group[:, :, None] == group[:, None, :]
    mask = (own | (group[:, None, :] == 0)) & np.tri(length, dtype=bool)
    parts = {"at": at, "target": target, "question": question, "kind": kind}
    return {
        "input_ids": torch.from_numpy(ids),
        "position_ids": torch.from_numpy(place),
        "attention_mask": torch.from_numpy(mask[:, None]),
        **{key: torch.from_numpy(np.concatenate(value)) for key, value in parts.items()},
    }


def texts(corpus_facts: list[dict[str, Any]], seed: int = 0) -> list[str]:
    """Text to train the tokenizer on: questions about some layouts of every scene, and LIBERO-90's instructions."""
    rng = np.random.default_rng(seed)
    drawn = [q for facts in corpus_facts for q in questions(facts, rng, 40)]
    plain = [q.ask for q in drawn] + [q.answer for q in drawn if "<" not in q.answer]
    return plain + 20 * [text for scene in problems() for text in instructions(scene)] + 20 * list(NAMES.values())


def special_values(tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """(V,) int: 1000 + px for location tokens, 3000 + cm for distances, 0 elsewhere: near values are near answers."""
    vocabulary, values = tokenizer.get_vocab(), torch.zeros(len(tokenizer), dtype=torch.long)
    for first, tokens in ((1000, LOCATIONS), (3000, DISTANCES)):
        for value, token in enumerate(tokens, first):
            if token in vocabulary:
                values[vocabulary[token]] = value
    return values


def _shift(array: np.ndarray, shift: np.ndarray, cell: int) -> np.ndarray:
    """Shift the images (2, H, W, ...) by `shift` (2, [x, y]) px, repeating edges; a pixel is `cell` px wide."""
    if not shift.any():
        return array
    size = array.shape[1]
    rows = np.clip(np.arange(size)[None] - shift[:, 1:] // cell, 0, size - 1)
    columns = np.clip(np.arange(size)[None] - shift[:, :1] // cell, 0, size - 1)
    return np.stack([image[y][:, x] for image, y, x in zip(array, rows, columns, strict=True)])


def _relight(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Random contrast, brightness and tint a row, and a little noise; pixels (B, 2, 3, S, S) in [-1, 1]."""
    size = (len(pixels), 1, 3, 1, 1)
    contrast = torch.from_numpy(rng.uniform(0.75, 1.25, (len(pixels), 1, 1, 1, 1)).astype(np.float32))
    light = rng.uniform(-0.2, 0.2, (len(pixels), 1, 1, 1, 1))
    tint = torch.from_numpy((light + rng.normal(0, 0.04, size)).astype(np.float32))
    noise = torch.from_numpy(rng.standard_normal(pixels.shape[1:], dtype=np.float32))
    strength = torch.from_numpy(rng.uniform(0, 0.04, (len(pixels), 1, 1, 1, 1)).astype(np.float32))
    return (pixels * contrast + tint + noise * strength).clamp_(-1.0, 1.0)
