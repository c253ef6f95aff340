"""Demonstrations of any simulator's demonstrator on fresh seeds, as benchmarks count them."""

import json
import time
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from apprentice import simulators
from apprentice.common.files import fingerprint
from apprentice.common.intervals import wilson
from apprentice.simulators.base import simulator_of


@dataclass(frozen=True)
class Job:
    suite: str
    task: int
    seed: int


@dataclass(frozen=True)
class Result:
    job: Job
    code: str  # fingerprint of the sources of apprentice.simulators
    steps: int
    failure: str | None
    retries: int
    seconds: float  # of CPU time

    @classmethod
    def of_line(cls, line: str) -> "Result":
        fields = json.loads(line)
        return cls(**{**fields, "job": Job(**fields["job"])})


def demonstrated(job: Job) -> Result:
    """In a worker: one demonstration, without pictures."""
    simulator = simulator_of(job.suite)
    env = simulator.environment(job.suite, job.task, render="fast", size=128)  # neither is used: nothing is drawn
    start = time.process_time()
    found = simulator.demonstrator().demonstrate(env, job.seed)
    seconds = time.process_time() - start
    return Result(job, code(), len(found.record.actions), found.failure, found.retries, seconds)


@cache
def code() -> str:
    """Fingerprint of the sources of all simulators."""
    return fingerprint(*sorted(Path(simulators.__path__[0]).rglob("*.py")))


def row(label: str, results: list[Result], limit: int, instruction: str = "") -> str:
    """One line of a table: successes, interval, how many at once, steps of the successes, reasons of the others."""
    good = [result for result in results if result.failure is None]
    low, high = wilson(len(good), len(results))
    steps = sum(result.steps for result in good) / max(len(good), 1)
    reasons = Counter(result.failure for result in results if result.failure is not None)
    why = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common())
    at_once = sum(not result.retries for result in good)
    return (
        f"{label:<18} {len(good):>3}/{len(results):<3} {len(good) / len(results):6.1%} [{low:6.1%}, {high:6.1%}]  "
        f"{at_once} at once  {steps:5.0f} of {limit} steps  {why or instruction}"
    )
