"""What an evaluation found, in sentences that claim no more than the episodes allow."""

from collections.abc import Mapping, Sequence

from apprentice.common.intervals import wilson
from apprentice.evaluate.compare import Paired
from apprentice.evaluate.results import ALL, ProbeRow, Row

TWO_STAGE, ONLY_FT, EXPERT = "two-stage", "only-ft", "expert"


def percent(rate: float) -> str:
    """A rate in [0, 1] as whole per cent; never rounded to 0 or 100 unless it is."""
    whole = round(100 * rate)
    if whole in (0, 100) and rate not in (0, 1):
        return f"{100 * rate:.1f}\u00a0%"
    return f"{whole}\u00a0%"


def interval(low: float, high: float) -> str:
    """`86 to 98 %`, with a no-break space before the sign."""
    return f"{percent(low)[:-2]} to {percent(high)}"


def points(difference: float) -> str:
    """A difference of rates in percentage points, with its sign."""
    return f"{100 * difference:+.1f}".replace("-", "\u2212")


def points_interval(pair: Paired) -> str:
    """`\u22124.1 to +12.0`."""
    return f"{points(pair.low95)} to {points(pair.high95)}"


def count(row: Row) -> str:
    """`55 of 60 episodes (92 %, 95 % interval 82 to 96 %)`."""
    bounds = interval(row.low95, row.high95)
    return f"{row.successes} of {row.episodes} episodes ({percent(row.rate)}, 95\u00a0% interval {bounds})"


def chosen(rows: Sequence[Row]) -> Row:
    """Over all tasks, the policy that the page is about: the two-stage student, or else the best. Raises ValueError."""
    overall = {row.policy: row for row in rows if row.task == ALL}
    if not overall:
        raise ValueError("expected at least one success rate, found none")
    return overall.get(TWO_STAGE) or max(overall.values(), key=lambda row: row.rate)


def findings(rows: list[Row], probes: list[ProbeRow]) -> list[str]:
    """The headline, then a sentence for each comparison that can be made. Raises ValueError without rows."""
    overall = {row.policy: row for row in rows if row.task == ALL}
    subject = chosen(rows)
    headline = f"{subject.policy} solves {subject.successes} of {subject.episodes} episodes"
    details = []
    if subject.policy == TWO_STAGE:
        if expert := overall.get(EXPERT):
            short, long = _against_expert(subject, expert)
            headline += f", {short} ({expert.successes})"
            details.append(long)
        if control := overall.get(ONLY_FT):
            short, long = _against_only_ft(subject, control)
            headline += f"; {short} ({control.successes})"
            details.append(long)
    instructed = [probe for probe in probes if probe.policy == subject.policy]
    if instructed:
        details.append(_listening(instructed))
    return [headline[0].upper() + headline[1:] + ".", *details]


def _against_expert(student: Row, expert: Row) -> tuple[str, str]:
    solved = f"the expert it learned from, which solves {count(expert)}"
    if student.rate >= expert.rate:
        return "no fewer than its expert", f"It does at least as well as {solved}."
    if student.rate >= expert.low95:
        return (
            "about as many as its expert",
            f"It keeps up with {solved}: its rate is not below the expert's interval.",
        )
    return "fewer than its expert", f"It falls short of {solved}: its rate is below the expert's interval."


def _against_only_ft(student: Row, control: Row) -> tuple[str, str]:
    name = "The control, only-ft (fine-tuning without alignment),"
    if control.low95 > student.high95:
        return "only-ft did better", f"{name} did better: {count(control)}. Here alignment did harm."
    if control.rate >= student.rate:
        return "only-ft did as well", f"{name} did as well: {count(control)}. Here alignment bought no success."
    if control.high95 >= student.low95:
        return (
            "only-ft did as well within the error",
            f"{name} did as well as far as these episodes can tell: {count(control)}. "
            "The intervals overlap, so a gain from alignment is not shown.",
        )
    return (
        "more than only-ft, which has no alignment",
        f"{name} solves only {count(control)}. The intervals do not overlap: alignment made the difference.",
    )


def _listening(probes: list[ProbeRow]) -> str:
    episodes, instructed = sum(p.episodes for p in probes), sum(p.did_instructed for p in probes)
    usual, neither = sum(p.did_task for p in probes), sum(p.did_neither for p in probes)
    instructed_low, instructed_high = wilson(instructed, episodes)
    usual_low, usual_high = wilson(usual, episodes)
    if instructed_low > usual_high:
        verdict = "It listens"
    elif usual_low > instructed_high:
        verdict = "It does not listen"
    elif neither > instructed + usual:
        verdict = "Another instruction keeps it from the usual task, but it does not do the other one"
    else:
        verdict = "It does not listen reliably"
    return (
        f"{verdict}: given the instruction of another task of the same scene, it did that task in {instructed} of "
        f"{episodes} episodes, the one the scene was set up for in {usual}, and neither in {neither}."
    )


def changes(subject: str, probed: Mapping[str, Sequence[tuple[Row, Paired]]]) -> list[str]:
    """A sentence on what each probe costs a policy, if any was run: differences on the same episodes."""
    found = []
    for probe, members in probed.items():
        for row, pair in members:
            if row.policy == subject and pair.pairs:
                found.append(f"{probe} {points(pair.difference)} ({points_interval(pair)})")
    return [f"With one thing changed it gains or loses, in points: {'; '.join(found)}."] if found else []


def perturbations(subject: str, suite: str, perturbed: Mapping[str, Sequence[Row]]) -> list[str]:
    """A sentence on what a policy still solves of the variants of `suite`, if any were run."""
    found = [
        f"{name} {row.successes} of {row.episodes} ({interval(row.low95, row.high95)})"
        for name, members in perturbed.items()
        for row in members
        if row.policy == subject and row.suite != suite
    ]
    return [f"Of the perturbed tasks it solves: {'; '.join(found)}."] if found else []


def failures(kinds: Mapping[str, int]) -> list[str]:
    """A sentence on how episodes failed, the commonest kind first, if any did."""
    common = sorted((kind for kind in kinds if kinds[kind]), key=lambda kind: -kinds[kind])
    return [f"How it failed: {', '.join(f'{kind} {kinds[kind]}' for kind in common)}."] if common else []
