"""What a pre-training finds on layouts that it is not trained on, now and then: few numbers, fast."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from apprentice.nano.batches import Chat, Corpus
from apprentice.nano.dense_heads import FIRST_THING, DenseHead
from apprentice.nano.forward import image_tokens
from apprentice.nano.scenes.catalogue import CATEGORIES
from apprentice.nano.scenes.dataset import rows_of_part
from apprentice.nano.score.score import Exam, answers

BATCH = 24  # layouts
POINTED = ("point", "point_wrist", "offset")  # kinds of questions whose answers are reported one by one


class HeldOut:
    """At most `layouts` layouts of one part; see `scenes.load`."""

    def __init__(self, data: Path | str, part: str, chat: Chat, layouts: int = 165):
        self.part, self.exam = part, Exam(data, part, chat, layouts)
        corpus = Corpus(data, part, chat)
        rng = np.random.default_rng(0)
        chosen = np.array_split(rows_of_part(len(corpus), layouts), -(-layouts // BATCH))
        self.batches = [corpus.batch(rows, rng, 1, augment=False) for rows in chosen if len(rows)]

    @torch.inference_mode()
    def run(self, model: Any, head: DenseHead, answering: bool) -> dict[str, float]:
        """Dense losses; "heat": the share of things whose hottest cell shows them; "workspace", "hand": the median
        error (mm) of the linear read-out; and of some kinds of answers, if it gives any, how many are right.
        """
        losses: dict[str, list[float]] = {}
        far: list[list[torch.Tensor]] = [[], []]
        hits = []
        for batch in self.batches:
            batch = {key: value.to(model.device) for key, value in batch.items()}
            tokens = image_tokens(model, batch["pixel_values"])
            for name, loss in head(tokens, batch).items():
                losses.setdefault(f"loss {name}", []).append(float(loss))
            error = (head.positions(tokens) / 10 - batch["positions"]).norm(dim=-1)
            for sort in (0, 1):
                far[sort].append(error[:, sort, :-1][batch["known"][:, sort, :-1]])
            labels, hottest = batch["category"].flatten(0, 1).flatten(1), head.categories(tokens).argmax(1)
            for category in range(FIRST_THING + 1, len(CATEGORIES)):
                there = (labels == category).any(1)
                hits.append(labels.gather(1, hottest[:, category : category + 1])[there, 0] == category)
        found = {name: float(np.mean(values)) for name, values in losses.items()}
        found["heat"] = float(torch.cat(hits).float().mean())
        for name, errors in zip(("workspace", "hand"), far, strict=True):
            found[name] = 1000 * float(torch.cat(errors).median())
        if answering:
            marks = self.exam.marks(answers(model, self.exam, blind=False))
            for kind in POINTED:
                right = [mark.right for mark in marks if mark.kind == kind]
                found[kind] = float(np.mean(right)) if right else 0.0
            found["all answers"] = float(np.mean([mark.right for mark in marks]))
        return {name: round(value, 4) for name, value in found.items()}
