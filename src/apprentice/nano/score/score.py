"""How well the nano VLM answers about pictures that it was not trained on.

Two baselines tell what the pictures are worth: the best constant answer to each kind of question, and the text-only
twin, the same architecture trained on the same questions behind grey pictures.
"""

from collections import Counter
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from apprentice.common.device import best_device
from apprentice.common.errors import UserError
from apprentice.common.files import read_json, write_text
from apprentice.common.progress import track
from apprentice.common.untrusted import place_of, without_weights
from apprentice.nano.batches import Chat, Corpus, Item, pack
from apprentice.nano.forward import answer_logits, image_tokens, pixels_of
from apprentice.nano.questions import KINDS
from apprentice.nano.scenes.catalogue import CATEGORIES
from apprentice.nano.scenes.dataset import available, load, rows_of_part
from apprentice.nano.score.grading import Mark, Marker
from apprentice.nano.score.model_card import PARTS, Score, card
from apprentice.nano.score.probe import probe

LAYOUTS, QUESTIONS = 200, 16  # at most so many layouts of a part, and questions about each
BATCH = 20  # layouts
SURVEYED = 1000  # at most so many training layouts are asked about to find the best constant answers


def score(data: Path | str, run: Path | str, twin: Path | str) -> list[Score]:
    """Score a pre-trained VLM on held-out pictures and write its model card, RUN/model/README.md.

    Args:
        data: folder of the scenes that both models were trained on, written by `apprentice scenes`.
        run: folder of the VLM, written by `apprentice pretrain-vlm`.
        twin: folder of the text-only twin, written by `apprentice pretrain-vlm --blind`.

    Raises UserError if a model is missing, if the VLM is blind or if the twin is not.
    """
    run, twin = Path(run), Path(twin)
    runs, twin_config = _runs(run), _config(twin, blind=True)
    chat, its_chat = (Chat.of(_processor(folder)) for folder in (run, twin))
    facts = load(data, "train", ())["facts"]
    constants = constant_answers(facts, chat)
    scores: list[Score] = []
    parts = available(data, tuple(PARTS))
    for part in parts:
        exam = Exam(data, part, chat)
        seeing = exam.marks(answers(_model(run), exam, blind=False))
        fixed = exam.marks([[constants.get(item.kind, item.answer[:0]) for item in items] for items in exam.items])
        exam = Exam(data, part, its_chat)
        guessing = exam.marks(answers(_model(twin), exam, blind=True))
        scores += tally(part, exam.examples, seeing, guessing, fixed)
    model = _model(run)
    probed = probe(model, data, parts)
    text = card(scores, probed, runs, twin_config, model.num_parameters(), [fact["scene"] for fact in facts])
    write_text(run / "model" / "README.md", text)
    return scores


class Exam:
    """Questions about held-out layouts, as one chat writes them. The same for every chat that has words for them.

    Attributes:
        images: (N, 2, S, S, 3) uint8.
        items: N lists of questions.
        examples: a short question of each kind.
    """

    def __init__(self, data: Path | str, part: str, chat: Chat, layouts: int = LAYOUTS):
        corpus = Corpus(data, part, chat)
        rows = rows_of_part(len(corpus), layouts)
        self.part, self.marker, self.prefix, self.pad = part, Marker(chat.tokenizer), corpus.prefix, corpus.pad
        self.images, self.category = corpus.images[rows], corpus.category[rows]
        asked = [chat.questions(corpus.facts[row], np.random.default_rng([1, row]), QUESTIONS) for row in rows]
        self.items = chat.tokenise(asked)
        names = [Counter(thing["name"] for thing in corpus.facts[row]["things"]) for row in rows]
        self.single = [{CATEGORIES.index(name) for name, count in held.items() if count == 1} for held in names]
        longest_first = sorted((item for items in self.items for item in items), key=lambda item: -len(item.ask))
        self.examples = {KINDS[item.kind]: chat.question_text(item) for item in longest_first}

    def marks(self, guesses: list[list[np.ndarray]]) -> list[Mark]:
        """Judge an answer to every question."""
        return [
            self.marker.mark(guess, item, category, single)
            for row, items, category, single in zip(guesses, self.items, self.category, self.single, strict=True)
            for guess, item in zip(row, items, strict=True)
        ]


def answers(model: Any, exam: Exam, blind: bool) -> list[list[np.ndarray]]:
    """Greedy answers, as token ids, to all questions of an exam."""
    found: list[list[np.ndarray]] = []
    name = "grey pictures" if blind else "pictures"
    for start in track(range(0, len(exam.items), BATCH), f"asking about {name} of held-out {exam.part}"):
        found += _answers(model, exam, slice(start, start + BATCH), blind)
    return found


@torch.inference_mode()
def _answers(model: Any, exam: Exam, rows: slice, blind: bool) -> list[list[np.ndarray]]:
    """Greedy answers about some layouts.

    Words are read off behind the right ones in one pass: what is all right is what generating would give, and only
    that counts. Numbers are fed back as they are predicted, one a pass.
    """
    tokens = image_tokens(model, pixels_of(exam.images[rows], model.device), blind)
    items = exam.items[rows]
    guesses = [[item.answer.copy() for item in row] for row in items]
    numbers = [[sum(token < 0 for token in exam.marker.form(item.answer)) for item in row] for row in items]
    for step in range(max(1, *(n for row in numbers for n in row))):
        asked = [(r, q) for r, row in enumerate(numbers) for q, n in enumerate(row) if max(1, n) > step]
        chosen: list[list[Item]] = [[] for _ in items]
        for r, q in asked:
            item = items[r][q]
            chosen[r].append(Item(item.kind, item.ask, guesses[r][q], item.image))
        batch = pack(chosen, exam.prefix, exam.pad)
        logits = answer_logits(model, tokens, {key: value.to(model.device) for key, value in batch.items()})
        bounds = batch["question"].bincount().cumsum(0)[:-1]
        for (r, q), best in zip(asked, np.split(logits.argmax(-1).cpu().numpy(), bounds.numpy()), strict=True):
            if numbers[r][q]:
                guesses[r][q][step] = best[step]
            else:
                guesses[r][q] = best
    return guesses


def constant_answers(facts: list[dict[str, Any]], chat: Chat) -> dict[int, np.ndarray]:
    """To each kind of question (its index in KINDS), the one answer that is right most often about such layouts."""
    rng, marker = np.random.default_rng(2), Marker(chat.tokenizer)
    surveyed = [facts[row] for row in rows_of_part(len(facts), SURVEYED)]
    items = [item for row in chat.tokenise([chat.questions(f, rng, QUESTIONS) for f in surveyed]) for item in row]
    kinds = {item.kind for item in items}
    return {kind: marker.constant([item.answer for item in items if item.kind == kind]) for kind in kinds}


def tally(
    part: str, examples: dict[str, str], seeing: list[Mark], guessing: list[Mark], fixed: list[Mark]
) -> list[Score]:
    """Count the right answers of the VLM, its twin and the constants to each kind of question."""
    scores = []
    for kind in KINDS:
        mine = [n for n, mark in enumerate(seeing) if mark.kind == kind]
        if not mine:
            continue
        right, text_only, constant = (sum(marks[n].right for n in mine) for marks in (seeing, guessing, fixed))
        errors = [error for n in mine if (error := seeing[n].error) is not None]
        median = float(np.median(errors)) if errors else None
        scores.append(Score(part, kind, examples[kind], len(mine), right, text_only, constant, median))
    return scores


class PretrainedFile(TypedDict):
    """What is read of the config.json of a pre-training."""

    blind: bool
    steps: int
    vision_share: float
    batch: int
    questions: int
    lr: float
    ema: float
    nano: dict[str, Any]
    start: NotRequired[str | None]


def _config(folder: Path, blind: bool) -> dict[str, Any]:
    """The settings of a finished pre-training."""
    if not (folder / "model" / "model.safetensors").exists():
        raise UserError(f"expected a pre-trained VLM in {folder}, found no model; fix: apprentice pretrain-vlm")
    config: dict[str, Any] = read_json(folder / "config.json", PretrainedFile, "settings of a pre-training", more=True)
    if config["blind"] != blind:
        wanted, found = ("the text-only twin", "a VLM that sees") if blind else ("a VLM that sees", "a blind twin")
        raise UserError(f"expected {wanted} in {folder}, found {found}; fix: name the other folder")
    return config


def _runs(run: Path) -> list[dict[str, Any]]:
    """The settings of a finished pre-training, and before them those of the runs that it went on from."""
    runs = [_config(run, blind=False)]
    while start := runs[0].get("start"):
        before = _config(Path(start), blind=False)
        if before in runs:
            raise UserError(f"expected {start} to be older than {run}, found a circle; fix: start in config.json")
        runs.insert(0, before)
    return runs


def _processor(folder: Path) -> Any:
    return AutoProcessor.from_pretrained(**without_weights(place_of(folder / "model")))


def _model(folder: Path) -> Any:
    model: Any = AutoModelForImageTextToText.from_pretrained(**place_of(folder / "model"), dtype=torch.float32)
    return model.to(best_device()).eval()
