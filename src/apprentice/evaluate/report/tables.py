"""What the report's tables hold, counted from episodes."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from apprentice.evaluate.compare import Paired, paired
from apprentice.evaluate.episode.probes import PLAIN, PROBES
from apprentice.evaluate.episode.trace import Trace
from apprentice.evaluate.results import ALL, Episode, Evaluation, Row, failure_meanings, success_rows
from apprentice.simulators.base import simulator_of, variant_of

PUBLISHED, OTHER_INSTRUCTION = "as published", "given another task's instruction"
PARTS = ("seconds", "reset_seconds", "policy_seconds", "render_seconds", "physics_seconds", "steps")


@dataclass(frozen=True)
class Latency:
    """How long (s) a policy's plans took: half of them at most `p50`, 99 of 100 at most `p99`; `in_time` is the share
    that was ready before the `actions_last` (s) of the plan before had been carried out."""

    policy: str
    plans: int
    p50: float
    p99: float
    actions_last: float
    in_time: float


@dataclass(frozen=True)
class Failing:
    """How a policy's episodes failed: how many by each kind."""

    policy: str
    episodes: int
    failed: int
    kinds: dict[str, int]


def changed(episode: Episode, suite: str) -> str:
    """What was changed against the episodes as published of `suite`."""
    if episode.suite != suite:
        return simulator_of(suite).variants[variant_of(episode.suite)[1]]
    if episode.task != episode.instructed:
        return OTHER_INSTRUCTION
    return PUBLISHED if episode.probe == PLAIN else episode.probe


def aside(episode: Episode, suite: str) -> str:
    """What was changed, if the instruction does not say it: words for a film's caption."""
    what = changed(episode, suite)
    return "" if what in (PUBLISHED, OTHER_INSTRUCTION) else what


def by_change(episodes: Iterable[Episode], suite: str) -> dict[str, list[Episode]]:
    """Episodes by what was changed: nothing first, then probes in their order, then the variants."""
    groups: dict[str, list[Episode]] = {name: [] for name in (PUBLISHED, *PROBES)}
    for episode in episodes:
        groups.setdefault(changed(episode, suite), []).append(episode)
    return {name: group for name, group in groups.items() if group}


def perturbed(groups: dict[str, list[Episode]]) -> dict[str, list[Row]]:
    """Each policy's success over all tasks, by what was changed; the language probe has a table of its own."""
    rows = {}
    for name, group in groups.items():
        if all(episode.task == episode.instructed for episode in group):
            rows[name] = [row for row in success_rows(group, probe=group[0].probe) if row.task == ALL]
    return rows


def rows_by_task(rows: list[Row], subject: str, names: dict[int, str]) -> dict[str, list[Row]]:
    """Rows of all tasks together, then task by task: the worst for `subject` first, then the worst for all."""
    tasks: dict[int, list[Row]] = {}
    for row in rows:
        if isinstance(row.task, int):
            tasks.setdefault(row.task, []).append(row)

    def quality(task: int) -> tuple[float, float, int]:
        own = [row.rate for row in tasks[task] if row.policy == subject]
        return own[0] if own else 1.0, float(np.mean([row.rate for row in tasks[task]])), task

    ordered = {names[task]: tasks[task] for task in sorted(tasks, key=quality)}
    return {"all tasks": [row for row in rows if row.task == ALL], **ordered}


def against(
    subject: str, policies: Sequence[str], groups: dict[str, list[Episode]]
) -> dict[str, list[tuple[str, Paired]]]:
    """Each other policy (A) and `subject` (B) on the episodes that both have run, by what was changed."""
    table: dict[str, list[tuple[str, Paired]]] = {}
    for name, group in groups.items():
        own = {policy: [episode for episode in group if episode.policy == policy] for policy in policies}
        pairs = [(other, paired(own[other], own[subject])[0]) for other in policies if other != subject]
        if found := [(other, pair) for other, pair in pairs if pair.pairs]:
            table[name] = found
    return table


def probed(groups: dict[str, list[Episode]]) -> dict[str, list[tuple[Row, Paired]]]:
    """What each probe does to each policy: its rate, and the unchanged episodes (A) beside the changed ones (B)."""
    table: dict[str, list[tuple[Row, Paired]]] = {}
    for probe in PROBES:
        for row in [] if probe == PLAIN else perturbed(groups).get(probe, []):
            before, after = ([e for e in groups.get(name, []) if e.policy == row.policy] for name in (PUBLISHED, probe))
            table.setdefault(probe, []).append((row, paired(before, after)[0]))
    return table


def latencies(evaluation: Evaluation) -> list[Latency]:
    """Of the plans whose traces are at hand, policy by policy."""
    rows = []
    for name, card in evaluation.policies.items():
        paths = [evaluation.file("traces", e.trace) for e in evaluation.episodes if e.policy == name]
        seconds = [Trace.load(path).plan_seconds for path in paths if path]
        if seconds:
            every, last = np.concatenate(seconds), card.n_action_steps / simulator_of(evaluation.protocol.suite).fps
            p50, p99 = (float(x) for x in np.percentile(every, (50, 99)))
            rows.append(Latency(name, len(every), p50, p99, last, float(np.mean(every <= last))))
    return rows


def where_time_goes(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Mean seconds of an episode, by policy and by what they were spent on."""
    table: list[dict[str, Any]] = []
    for name in evaluation.policies:
        own = [episode for episode in evaluation.episodes if episode.policy == name]
        if own:
            table.append({"policy": name, **{p: float(np.mean([getattr(e, p) for e in own])) for p in PARTS}})
    return table


def failing(groups: dict[str, list[Episode]]) -> dict[str, dict[str, Failing]]:
    """How episodes failed, by what was changed and by policy; without those that never failed."""
    table: dict[str, dict[str, Failing]] = {}
    for name, group in groups.items():
        for policy in dict.fromkeys(episode.policy for episode in group):
            own = [episode for episode in group if episode.policy == policy]
            counts = Counter(episode.failure for episode in own)
            if failed := sum(not episode.instructed_success for episode in own):
                table.setdefault(name, {})[policy] = Failing(
                    policy, len(own), failed, {kind: counts[kind] for kind in failure_meanings(own[0].suite)}
                )
    return table
