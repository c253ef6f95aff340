"""Rates of one evaluation, and two policies on the same episodes: worst tasks first, each number with its interval."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from apprentice.common.errors import UserError
from apprentice.common.intervals import mcnemar, tango, wilson
from apprentice.common.progress import show
from apprentice.common.result import Result
from apprentice.evaluate.episode.probes import PLAIN
from apprentice.evaluate.episode.trace import write_table
from apprentice.evaluate.protocol import differences
from apprentice.evaluate.results import ALL, Episode, Evaluation, Row, rows_by, success_rows
from apprentice.simulators.base import simulator_of


@dataclass(frozen=True)
class Paired:
    """Two policies, A and B, on the same episodes of a task, or of all.

    Attributes:
        task, instructed: indices, or "all".
        pairs: episodes that both have run.
        a, b: successes of each; in the language probe, of the task whose instruction was given.
        only_a, only_b: pairs in which one alone succeeds.
        low95, high95: bounds of the difference of rates, B - A (Tango).
        p: of the exact McNemar test that neither is better.
    """

    task: int | str
    instructed: int | str
    pairs: int
    a: int
    b: int
    only_a: int
    only_b: int
    low95: float
    high95: float
    p: float

    @classmethod
    def of(cls, task: int | str, instructed: int | str, outcomes: list[tuple[bool, bool]]) -> "Paired":
        a, b = (sum(outcome) for outcome in zip(*outcomes, strict=True)) if outcomes else (0, 0)
        only_a, only_b = sum(a > b for a, b in outcomes), sum(b > a for a, b in outcomes)
        low, high = tango(only_b, only_a, len(outcomes))
        return cls(task, instructed, len(outcomes), a, b, only_a, only_b, low, high, mcnemar(only_a, only_b))

    @property
    def difference(self) -> float:
        """Rate of B minus rate of A."""
        return (self.b - self.a) / self.pairs if self.pairs else 0.0


def paired(a: list[Episode], b: list[Episode]) -> list[Paired]:
    """All tasks together, then task by task, first where B falls behind A most; of episodes that both have."""
    mine, theirs = ({(e.task, e.instructed, e.init_state): e.instructed_success for e in side} for side in (a, b))
    common = sorted(mine.keys() & theirs.keys())
    per_task = [
        Paired.of(task, instructed, [(mine[key], theirs[key]) for key in keys])
        for (task, instructed), keys in groupby(common, key=lambda key: key[:2])
    ]
    per_task.sort(key=lambda row: (row.difference, row.b))
    return [Paired.of(ALL, ALL, [(mine[key], theirs[key]) for key in common]), *per_task]


def compare(runs: list[Path], *, policies: list[str] | None = None, across: list[str] | None = None) -> Result:
    """Compare policies of two evaluations, or of one, on the same episodes, and print it.

    Args:
        runs: one or two folders, written by `apprentice eval`.
        policies: names of two policies, A of the first run and B of the last. If not given: policies of the same name
            in both runs, or the only two.
        across: fields of the protocol that may differ between the runs, such as render.

    Raises UserError if the protocols differ otherwise, or if there is nothing to compare.
    """
    if len(runs) > 2:
        raise UserError(f"expected one or two runs, found {len(runs)}; fix: compare two at a time")
    first, last = Evaluation.load(runs[0]), Evaluation.load(runs[-1])
    names = (str(runs[0]), str(runs[-1]))
    found = differences(first.protocol, last.protocol, names, across or ())
    if found:
        fields = " ".join(line.partition(":")[0] for line in found)
        raise UserError(
            "expected two evaluations of one protocol, found differences:\n  " + "\n  ".join(found) + "\n"
            f"fix: evaluate both alike; if this is what you compare: --across {fields}"
        )
    for evaluation in {run.folder: run for run in (first, last)}.values():
        write_table(evaluation)
        if len(evaluation.episodes) < len(evaluation.wanted):
            show(_caution(evaluation))
    compared = []
    for a, b in _chosen(first, last, policies):
        episodes = [
            [e for e in run.episodes if e.policy == name and e.probe == PLAIN] for run, name in ((first, a), (last, b))
        ]
        rows = paired(*episodes)
        if not rows[0].pairs:
            raise UserError(f"expected episodes that {a} and {b} have both run, found none; fix: evaluate them alike")
        show(_comparison(first, rows, a, b, names))
        compared.append({"suite": first.protocol.suite, "a": a, "b": b, "rows": rows})
    return Result({"runs": list(names), "compared": compared})


def _caution(evaluation: Evaluation) -> str:
    done = f"{evaluation.folder} has {len(evaluation.episodes)} of its {len(evaluation.wanted)} episodes"
    if evaluation.protocol.until is None:
        return f"{done}; pairs are of those that both have."
    return (
        f"{done}; it stops when {evaluation.protocol.until} is decided. Intervals and p below are those of a "
        "number of episodes fixed beforehand, too sure here; the verdict of `apprentice eval` holds whenever it stops."
    )


def _chosen(first: Evaluation, last: Evaluation, policies: Collection[str] | None) -> list[tuple[str, str]]:
    """Which policies to compare. Raises UserError."""
    if policies is None:
        common = [name for name in first.policies if name in last.policies and first.folder != last.folder]
        if common:
            return [(name, name) for name in common]
        policies = list(first.policies) if first.folder == last.folder else [*first.policies, *last.policies]
    a, b = policies if len(policies) == 2 else ("", "")
    if a not in first.policies or b not in last.policies:
        raise UserError(
            f"expected --policies A B with A of {', '.join(first.policies)} and B of {', '.join(last.policies)}, "
            f"found {' '.join(policies)}; fix: name one of each"
        )
    return [(a, b)]


def _comparison(evaluation: Evaluation, rows: list[Paired], a: str, b: str, names: tuple[str, str]) -> str:
    where = "" if names[0] == names[1] else f" ({names[0]} and {names[1]})"
    instructions = simulator_of(evaluation.protocol.suite).tasks(evaluation.protocol.suite)
    lines = [["task", "A", "B", "only A", "only B", "B - A", "95 % interval", "p", ""]]
    for row in rows:
        lines.append(
            [
                _name(row.task, row.instructed),
                f"{row.a}/{row.pairs}",
                f"{row.b}/{row.pairs}",
                str(row.only_a),
                str(row.only_b),
                f"{100 * row.difference:+.1f}",
                f"{100 * row.low95:+.1f} to {100 * row.high95:+.1f}",
                f"{row.p:.2g}",
                "" if row.instructed == ALL else instructions[int(row.instructed)].instruction,
            ]
        )
    return f"{evaluation.protocol.suite}: A = {a}, B = {b}{where}\n" + _table(lines)


def summary(evaluation: Evaluation) -> str:
    """Success rates of every policy: the suite, then its tasks, the worst first; of a probe, over all tasks."""
    instructions = simulator_of(evaluation.protocol.suite).tasks(evaluation.protocol.suite)
    lines = [["policy", "task", "successes", "rate", "95 % interval", ""]]
    for row in _rows(evaluation):
        name = instructions[row.task].instruction if isinstance(row.task, int) else ""
        lines.append([row.policy, str(row.task), *_rate(row), name])
    layouts = f", {evaluation.protocol.layouts} layouts" if evaluation.protocol.layouts else ""
    return f"{evaluation.protocol.suite}{layouts}, protocol {evaluation.protocol.hash}\n" + _table(lines)


def rates(runs: list[Path]) -> Result:
    """Print the success rates of evaluations, and of all of them together, the worst suites and tasks first.

    Args:
        runs: folders, written by `apprentice eval`, one for each suite.

    Raises UserError if there is no evaluation in one of them.
    """
    evaluations = [Evaluation.load(run) for run in runs]
    for evaluation in evaluations:
        show(summary(evaluation) + "\n")
    whole: list[Row] = []
    lines = [["policy", "suite", "successes", "rate", "95 % interval", ""]]
    for policy in dict.fromkeys(name for evaluation in evaluations for name in evaluation.policies):
        found = [
            row for e in evaluations for row in success_rows(e.episodes) if (row.policy, row.task) == (policy, ALL)
        ]
        total, done = sum(row.episodes for row in found), sum(row.successes for row in found)
        seconds = sum(row.seconds for row in found)
        found.sort(key=lambda row: row.rate)
        whole.append(Row(policy, ALL, ALL, total, done, *wilson(done, total), seconds))
        lines.extend([policy, row.suite, *_rate(row), ""] for row in (whole[-1], *found))
    show(_table(lines))
    return Result({"together": whole, "runs": [rates_of(evaluation) for evaluation in evaluations]})


def rates_of(evaluation: Evaluation) -> dict[str, Any]:
    """What `summary` shows, as data."""
    protocol = evaluation.protocol
    return {
        "folder": evaluation.folder,
        "suite": protocol.suite,
        "layouts": protocol.layouts,
        "protocol": protocol.hash,
        "rates": _rows(evaluation),
    }


def _rows(evaluation: Evaluation) -> list[Row]:
    """Of each policy: the suite, its probes, then its tasks, the worst first."""
    instructed = [e for e in evaluation.episodes if e.task != e.instructed and e.probe == PLAIN]
    rows = success_rows(evaluation.episodes) if not instructed else _instructed_rows(instructed)
    for probe in evaluation.protocol.probes or ():
        probed = success_rows(evaluation.episodes, probe) if probe != PLAIN else []
        rows += [replace(row, task=probe) for row in probed if row.task == ALL]
    return sorted(rows, key=lambda row: (row.policy, isinstance(row.task, int), row.task != ALL, row.rate))


def _rate(row: Row) -> list[str]:
    bounds = f"{100 * row.low95:.1f} to {100 * row.high95:.1f}"
    return [f"{row.successes}/{row.episodes}", f"{100 * row.rate:.1f}", bounds]


def _instructed_rows(episodes: list[Episode]) -> list[Row]:
    """Of a language probe: how often the instructed task was done, by that task."""
    return rows_by(episodes, lambda e: e.instructed, lambda e: e.instructed_success)


def _name(task: int | str, instructed: int | str) -> str:
    return str(task) if task == instructed else f"{task}, instructed {instructed}"


def _table(lines: list[list[str]]) -> str:
    """Columns, the first and the last flush left, numbers flush right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    last = len(widths) - 1
    return "\n".join(
        "  ".join(
            cell.ljust(width) if number in (0, last) else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
