"""A question that ends an evaluation: how often the answer is wrong, with any number of analyses, and what counts."""

from dataclasses import replace

import numpy as np
import pytest
from example_evaluation import write_evaluation

from apprentice.common.errors import UserError
from apprentice.evaluate import rollout
from apprentice.evaluate.episode.job import EpisodeJob
from apprentice.evaluate.results import BLOCK, Evaluation
from apprentice.evaluate.sequential import ERROR, Claim, evidence, first_answer, interim_counts, verdict

TASKS, STATES, RUNS = 10, 50, 400


def simulated(difference, rng):
    """Counts at each analysis of one evaluation; tasks differ widely, B - A is `difference` in the mean over tasks."""
    a = np.linspace(0.2, 0.6, TASKS)
    b = a + difference + 0.2 * np.tile([-1, 1], TASKS // 2)
    outcomes = rng.random((STATES, TASKS, 2)) < np.stack([a, b], -1)
    differences = outcomes[..., 1].astype(int) - outcomes[..., 0]
    seen = differences[: STATES // BLOCK * BLOCK].reshape(-1, BLOCK * TASKS)
    counts = np.stack([(seen == sign).sum(1).cumsum() for sign in (1, 0, -1)], -1)
    return [tuple(map(int, counted)) for counted in counts]


@pytest.fixture(scope="module")
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("truth", [0.0, 0.1])
def test_at_the_margin_either_answer_is_as_rare_as_promised(truth, rng):
    verdicts = [first_answer(truth, simulated(truth, rng)) for _ in range(RUNS)]
    noise = 3 * (ERROR / 2 / RUNS) ** 0.5
    for answer in (True, False):
        assert sum(v.answer is answer for v in verdicts) / RUNS < ERROR / 2 + noise
    covered = sum(v.low <= truth <= v.high for v in verdicts)
    assert covered / RUNS > 1 - ERROR - noise


def test_a_clear_difference_is_found_early(rng):
    verdicts = [first_answer(0.0, simulated(0.2, rng)) for _ in range(200)]
    assert sum(v.answer is True for v in verdicts) > 190
    assert np.mean([v.pairs for v in verdicts]) < 0.6 * TASKS * STATES
    assert sum(first_answer(0.4, simulated(0.15, rng)).answer is False for _ in range(200)) > 190


def test_evidence_cannot_be_expected_from_a_difference_at_the_margin():
    """Exactly, over all outcomes of three pairs."""
    for margin, won, lost in ((0.0, 0.3, 0.3), (0.25, 0.5, 0.25), (-0.2, 0.1, 0.3)):
        rates = {1: won, 0: 1 - won - lost, -1: lost}
        expected = sum(
            rates[i] * rates[j] * rates[k] * evidence(*([i, j, k].count(sign) for sign in (1, 0, -1)), margin)
            for i in rates
            for j in rates
            for k in rates
        )
        assert expected == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("two-stage>only-ft", Claim("two-stage", "only-ft", 0.0)),
        ("two-stage > only-ft + 0.05", Claim("two-stage", "only-ft", 0.05)),
        ("only-ft>two-stage-0.1", Claim("only-ft", "two-stage", -0.1)),
        ("a-1>b-2", Claim("a-1", "b-2", 0.0)),
    ],
)
def test_questions_are_read(text, question):
    assert Claim.parse(text, ["two-stage", "only-ft", "a-1", "b-2"]) == question


@pytest.mark.parametrize("text", ["two-stage", "two-stage>", "two-stage>other", "two-stage>two-stage", "a>b+1"])
def test_what_is_no_question_is_named(text):
    with pytest.raises(UserError, match="about two of a, b, two-stage"):
        Claim.parse(text, ["a", "b", "two-stage"])


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    return Evaluation.load(write_evaluation(tmp_path_factory.mktemp("sequential")))


def test_only_whole_blocks_are_looked_at(evaluation):
    question = Claim("two-stage", "only-ft", 0.0)
    whole = list(interim_counts(question, evaluation))
    assert [sum(counted) for counted in whole] == [15, 30, 45, 60]
    assert whole[-1] == (8, 50, 2)
    missing = [e for e in evaluation.episodes if (e.policy, e.task, e.init_state) != ("only-ft", 8, 7)]
    assert list(interim_counts(question, replace(evaluation, episodes=missing))) == whole[:1]
    assert verdict(question, replace(evaluation, episodes=[])).pairs == 0


def test_an_evaluation_ends_when_its_question_is_decided(evaluation, tmp_path, monkeypatch):
    """Policy two-stage always succeeds here and only-ft never does."""
    protocol = replace(evaluation.protocol, until="two-stage>only-ft")
    policies = {name: evaluation.policies[name] for name in ("two-stage", "only-ft")}
    begun = Evaluation(tmp_path, protocol, policies, [])
    begun.save()
    states = [state for *_, state in begun.wanted]
    assert len(states) == 120 and max(states[:30]) == BLOCK - 1 < min(states[30:60])  # every task before the next block
    jobs = [
        EpisodeJob(name, "", card, task, instructed, s, protocol)
        for name, card, _, task, instructed, _, s in begun.wanted
    ]
    ended = []

    def spread(run, jobs, workers, ray):
        try:
            for job in jobs:
                done = job.policy == "two-stage"
                outcome = {"policy": job.policy, "checkpoint": job.checkpoint, "conditions": protocol.conditions}
                where = {"task": job.task, "instructed": job.instructed, "init_state": job.init_state}
                yield replace(evaluation.episodes[0], success=done, instructed_success=done, **outcome, **where), {}
        finally:
            ended.append(True)

    monkeypatch.setattr(rollout, "spread", spread)
    question = Claim.parse(protocol.until, policies)
    rollout._run(jobs, begun, 2, question)
    finished = Evaluation.load(tmp_path)
    assert ended and len(finished.episodes) == 30
    found = verdict(question, finished)
    assert found.answer is True and found.pairs == 15 and found.low > 0
    assert found.text(question).startswith("decided: two-stage is better than only-ft, after 15 pairs")
