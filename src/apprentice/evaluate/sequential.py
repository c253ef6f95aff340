"""Stop when the question is decided: "is policy B better than A by d?", with interim analyses as often as one likes.

Two policies meet the same initial states, so every pair of episodes gives a difference of -1, 0 or 1. The test bets
against "B is better by at most d": with stake k a pair multiplies the capital by 1 + k (difference - d), which nobody
can expect to gain from as long as that is true. Of several capitals, one a stake, the mean is the evidence. By Ville's
inequality it ever reaches 1 / alpha with a probability of at most alpha, whatever the number of analyses (Waudby-Smith
and Ramdas, "Estimating means of bounded random variables by betting", JRSS B 86, 2024). The same is done against "B is
better by at least d"; one of the two ends the evaluation, or all episodes have been run and nothing is decided.

Tasks differ, so pairs are not draws from one distribution. But between two interim analyses every task comes by
equally often, and the product of the expected factors of all tasks is at most the factor at their mean (geometric and
arithmetic mean), so the bet is fair for the mean over tasks. And what ends a run must not depend on which episodes end
first, successes for one: only blocks of which every episode is finished are counted, in their order.
"""

import math
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import batched

from apprentice.common.errors import UserError
from apprentice.evaluate.episode.probes import PLAIN
from apprentice.evaluate.results import BLOCK, Evaluation

ERROR = 0.05  # of a wrong answer, half of it in each direction
DECIDED = 2 / ERROR
STAKES = (0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 0.95)  # of the largest one that cannot lose everything
MARGIN = re.compile(r"(.+?)\s*([+-]\s*\d*\.?\d+)")


@dataclass(frozen=True)
class Claim:
    """Is the success rate of `better` above that of `worse` by more than `margin`?"""

    better: str
    worse: str
    margin: float

    @classmethod
    def parse(cls, text: str, policies: Collection[str]) -> "Claim":
        """Read "B>A", "B>A+0.05" or "B>A-0.05" (not worse by 5 points). Raises UserError."""
        better, _, right = (part.strip() for part in text.partition(">"))
        found = None if right in policies else MARGIN.fullmatch(right)
        worse, margin = (found[1], float(found[2].replace(" ", ""))) if found else (right, 0.0)
        question = cls(better, worse, margin)
        if better == worse or not {better, worse} <= set(policies) or abs(margin) >= 1:
            raise UserError(
                f"expected a question such as 'B>A+0.05' about two of {', '.join(policies)}, with a margin between "
                f"-1 and 1, found {text!r}; fix: write it so, in quotes"
            )
        return question

    def __str__(self) -> str:
        if not self.margin:
            return f"{self.better} is better than {self.worse}"
        if self.margin < 0:
            return f"{self.better} is at most {-self.margin:g} worse than {self.worse}"
        return f"{self.better} is better than {self.worse} by more than {self.margin:g}"


@dataclass(frozen=True)
class Verdict:
    """What `pairs` pairs of episodes say; `low` and `high` bound the difference of rates at any time (95 %)."""

    answer: bool | None
    pairs: int
    low: float
    high: float

    @property
    def decided(self) -> bool:
        return self.answer is not None

    def text(self, question: Claim) -> str:
        found = (
            f"after {self.pairs} pairs of episodes; the difference lies between {self.low:+.3f} and {self.high:+.3f}"
        )
        said = {True: "decided", False: "decided: it is not so that", None: "not decided whether"}[self.answer]
        return f"{said}{':' if self.answer else ''} {question}, {found} (95 %, valid at any time)"


def verdict(question: Claim, evaluation: Evaluation) -> Verdict:
    """The answer of the first interim analysis of the finished episodes that decides."""
    return first_answer(question.margin, interim_counts(question, evaluation))


def interim_counts(question: Claim, evaluation: Evaluation) -> Iterable[tuple[int, int, int]]:
    """How many pairs were (won, equal, lost) by `better`, after each finished block."""
    done = {
        (e.policy, e.task, e.instructed, e.init_state): e.instructed_success
        for e in evaluation.episodes
        if e.probe == PLAIN
    }
    counts = {1: 0, 0: 0, -1: 0}
    for states in batched(range(evaluation.protocol.episodes), BLOCK):
        keys = [(task, instructed, state) for task, instructed in evaluation.protocol.pairs for state in states]
        both = [(done.get((question.better, *key)), done.get((question.worse, *key))) for key in keys]
        if any(None in pair for pair in both):
            return
        for better, worse in both:
            counts[int(bool(better)) - int(bool(worse))] += 1
        yield counts[1], counts[0], counts[-1]


def first_answer(margin: float, counts: Iterable[tuple[int, int, int]]) -> Verdict:
    """The verdict of the first interim analysis that decides, or else of the last."""
    won = equal = lost = 0
    answer = None
    for won, equal, lost in counts:
        above, below = evidence(won, equal, lost, margin), evidence(lost, equal, won, -margin)
        answer = True if above >= DECIDED else False if below >= DECIDED else None
        if answer is not None:
            break
    low, high = _least(won, equal, lost), -_least(lost, equal, won)
    return Verdict(answer, won + equal + lost, low, high)


def evidence(won: int, equal: int, lost: int, margin: float) -> float:
    """The capital after bets against "the mean difference is at most `margin`", begun with 1."""
    capital = 0.0
    for share in STAKES:
        stake = share / (1 + margin)
        logarithm = won * math.log1p(stake * (1 - margin)) + lost * math.log1p(-share)
        capital += math.exp(min(logarithm + equal * math.log1p(-stake * margin), 700.0))
    return capital / len(STAKES)


def _least(won: int, equal: int, lost: int) -> float:
    """The smallest difference that the evidence leaves standing: it falls as the margin grows."""
    low, high = -1.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if evidence(won, equal, lost, middle) >= DECIDED else (low, middle)
    return low
