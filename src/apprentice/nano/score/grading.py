"""Judges answers: words must be equal, points and distances near."""

from collections import defaultdict
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from transformers import PreTrainedTokenizerBase

from apprentice.nano.batches import Item, special_values
from apprentice.nano.questions import KINDS
from apprentice.nano.scenes.catalogue import CELL

PIXEL, DISTANCE = 1, 3  # thousands of `special_values`
NEAR = {PIXEL: 4.0, DISTANCE: 3.0}  # px, cm: how far off is still right
CANDIDATES = 500  # constant answers that are tried


@dataclass
class Mark:
    """One answer judged.

    Attributes:
        kind: of the question.
        right: whether it counts.
        error: of its worst point (px) or, if it has none, its worst distance (cm); None if it is words.
    """

    kind: str
    right: bool
    error: float | None


class Marker:
    """Judges answers in the tokens of one tokenizer: a point is two numbers (px), a distance one or three (cm)."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.values = special_values(tokenizer).numpy()

    def form(self, answer: np.ndarray) -> tuple[int, ...]:
        """The answer without its numbers: -PIXEL or -DISTANCE in their places, other tokens as they are."""
        sort = self.values[answer] // 1000
        return tuple(np.where(sort > 0, -sort, answer).tolist())

    def errors(self, guess: np.ndarray, right: np.ndarray, form: tuple[int, ...]) -> list[tuple[int, np.ndarray]]:
        """Euclidean error of every point (PIXEL, px) and distance (DISTANCE, cm) of answers (..., L) of one form."""
        found, start = [], 0
        for token, run in groupby(form):
            end = start + len(list(run))
            if token < 0:
                gap = self.values[guess[..., start:end]] - self.values[right[..., start:end]]
                found.append((-token, np.linalg.norm(gap, axis=-1)))
            start = end
        return found

    def constant(self, answers: list[np.ndarray]) -> np.ndarray:
        """The one answer that would be right most often."""
        alike = defaultdict(list)
        for answer in answers:
            alike[self.form(answer)].append(answer)
        best = []
        for form, same in alike.items():
            every, tried = np.stack(same), np.unique(np.stack(same), axis=0)
            tried = tried[np.random.default_rng(0).permutation(len(tried))[:CANDIDATES]]
            right = np.ones((len(tried), len(every)), bool)
            for sort, error in self.errors(tried[:, None], every[None], form):
                right &= error <= NEAR[sort]
            counts = right.sum(1)
            best.append((int(counts.max()), tried[counts.argmax()]))
        return max(best, key=lambda pair: pair[0])[1]

    def mark(self, guess: np.ndarray, item: Item, category: np.ndarray, single: set[int]) -> Mark:
        """Judge the answer to a question. A point on the right thing is right, however large the thing.

        Args:
            guess: the answer's tokens.
            item: the question.
            category: (2, S / CELL, S / CELL), what the images show.
            single: categories of which the scene has one thing.
        """
        kind, form = KINDS[item.kind], self.form(item.answer)
        if min(form) >= 0:
            return Mark(kind, np.array_equal(guess, item.answer), None)
        if self.form(guess) != form:
            return Mark(kind, False, np.inf)
        near, far, start = [], [], 0
        for sort, error in self.errors(guess, item.answer, form):
            start = form.index(-sort, start)
            near.append(bool(error <= NEAR[sort]))
            far.append((sort, float(error)))
            if sort == PIXEL:
                (x, y), (true_x, true_y) = (
                    (self.values[answer[start : start + 2]] - 1000) // CELL for answer in (guess, item.answer)
                )
                there = category[item.image, true_y, true_x]
                near[-1] |= bool(there in single and category[item.image, y, x] == there)
            start += 2 if sort == PIXEL else 1
        return Mark(kind, all(near), max(error for sort, error in far if sort == far[0][0]))
