"""The report: one self-contained page, and beside it the same numbers as JSON.

`write_report` reads folders that `evaluate` and the training stages wrote; it computes nothing but rates, differences
and counts.
"""

from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from apprentice.common.errors import UserError
from apprentice.common.files import read_json, write_json, write_text
from apprentice.distill.runs.tracking import Cost, read_log
from apprentice.evaluate.episode.probes import PROBES
from apprentice.evaluate.report import films, tables
from apprentice.evaluate.report.charts import SERIES, loss_chart, probe_chart, success_chart
from apprentice.evaluate.report.findings import (
    EXPERT,
    ONLY_FT,
    TWO_STAGE,
    changes,
    chosen,
    failures,
    findings,
    interval,
    percent,
    perturbations,
    points,
    points_interval,
)
from apprentice.evaluate.results import ALL, Evaluation, failure_meanings, probe_rows, success_rows
from apprentice.simulators.base import simulator_of

CHARTED = 12  # tasks in the chart; the table has all


@dataclass(frozen=True)
class TrainingRun:
    """What a training run cost and how its loss fell."""

    name: str
    stage: str
    seconds: float
    samples: int
    trainable_parameters: int
    total_parameters: int
    seen: np.ndarray  # (N,) samples
    loss: np.ndarray  # (N,)
    held_out: np.ndarray  # (M, 2) samples, and the loss of episodes that nothing trains on

    @classmethod
    def load(cls, name: str, run: Path) -> "TrainingRun":
        """Read `cost.json` and `log.jsonl` of a run. Raises UserError if the run is not finished."""
        try:
            cost = read_json(run / "cost.json", Cost, "the costs of a run")
            log = read_log(run)
        except FileNotFoundError as error:
            raise UserError(
                f"stage {name}: expected a finished run in {run}, found no {Path(error.filename).name}; "
                "fix: run the stage again, it goes on from where it stopped"
            ) from error
        held_out = [
            (entry["samples"], entry.get("validation_action_loss", entry["validation_loss"]))
            for entry in log
            if "validation_loss" in entry
        ]
        return cls(
            name=name,
            held_out=np.array(held_out).reshape(-1, 2),
            seen=np.array([entry["samples"] for entry in log]),
            loss=np.array([entry.get("action_loss", entry["loss"]) for entry in log]),
            **cost,
        )


def write_report(
    out: Path,
    evaluation: Path,
    *,
    runs: dict[str, Path] | None = None,
    probe: list[Path] | None = None,
    variants: list[Path] | None = None,
    title: str = "Apprentice",
) -> None:
    """Write the page, and `results.json`, `details.json` (and `probe.json`) beside it.

    Args:
        out: the HTML file to write.
        evaluation: folder, written by `apprentice eval`.
        runs: folders of training stages by name; a fine-tuned stage has the name of its policy.
        probe: folders of probes, written by `apprentice eval --instruct` or `--probes`, if probes have folders of their
            own.
        variants: folders of evaluations on variants of the suite, such as libero_goal_swap.
        title: text above the headline.

    Raises UserError if a folder is missing or of another suite, a stage is not finished, or there is no episode yet.
    """
    out = Path(out)
    main = Evaluation.load(evaluation)
    folders = dict.fromkeys(Path(folder).resolve() for folder in [*(probe or []), *(variants or [])])
    others = [folder for folder in folders if folder != Path(evaluation).resolve()]  # nothing counts twice
    evaluations = [main, *(Evaluation.load(folder) for folder in others)]
    simulator, meanings = simulator_of(main.protocol.suite), failure_meanings(main.protocol.suite)
    suites = (main.protocol.suite, *(f"{main.protocol.suite}_{kind}" for kind in simulator.variants))
    for each in evaluations:
        if each.protocol.suite not in suites:
            raise UserError(
                f"expected {each.folder} to be of {', '.join(suites)}, found {each.protocol.suite}; fix: leave it out"
            )
    episodes = [episode for each in evaluations for episode in each.episodes]
    groups = tables.by_change(episodes, main.protocol.suite)
    rows = success_rows(main.episodes)
    if not rows:
        raise UserError(f"expected episodes in {evaluation}, found none; fix: run `apprentice eval`")
    instructed = probe_rows(episode for episode in episodes if episode.suite == main.protocol.suite)
    stages = [TrainingRun.load(name, run) for name, run in (runs or {}).items()]
    names = {task.index: task.instruction for task in simulator.tasks(main.protocol.suite)}
    colours = _colours([*main.policies, *(runs or {})])
    contract = simulator.contract(main.protocol.suite, main.protocol.image_size, main.protocol.render)
    subject = chosen(rows).policy
    rows_by_task, changed = tables.rows_by_task(rows, subject, names), tables.perturbed(groups)
    pairs = tables.against(subject, list(main.policies), {name: groups[name] for name in changed})
    probed, latencies, failing = tables.probed(groups), tables.latencies(main), tables.failing(groups)
    instructed_pairs: dict[str, list] = {}
    for row in instructed:
        instructed_pairs.setdefault(f"instructed “{names[row.instructed]}”", []).append(row)
    own = failing.get(tables.PUBLISHED, {}).get(subject)
    counts = {
        kind: sum(row.kinds.get(kind, 0) for members in failing.values() for row in members.values())
        for kind in meanings
    }

    write_json(out.parent / "results.json", [asdict(row) for row in rows])
    if instructed:
        write_json(out.parent / "probe.json", [asdict(row) for row in instructed])
    details = {
        "perturbations": {name: [asdict(row) for row in members] for name, members in changed.items()},
        "paired": [
            {"perturbation": name, "policy": subject, "against": against, **asdict(pair)}
            for name, members in pairs.items()
            for against, pair in members
        ],
        "probes": {
            probe: [asdict(row) | {"paired": asdict(pair)} for row, pair in members]
            for probe, members in probed.items()
        },
        "latency": [asdict(row) for row in latencies],
        "failures": {name: [asdict(row) for row in members.values()] for name, members in failing.items()},
    }
    write_json(out.parent / "details.json", details)
    write_text(
        out,
        _page().render(
            title=title,
            today=date.today().isoformat(),
            findings=[
                *findings(rows, instructed),
                *changes(subject, probed),
                *perturbations(subject, main.protocol.suite, changed),
                *failures(own.kinds if own else {}),
            ],
            subject=subject,
            policies=list(main.policies),
            overall=[row for row in rows if row.task == ALL],
            groups=rows_by_task,
            perturbations=changed,
            perturbation_chart=success_chart(changed, colours, "perturbation"),
            meanings=PROBES,
            swatches={name: f"var(--c{SERIES.index(colour)})" for name, colour in colours.items()},
            success_chart=success_chart(dict(list(rows_by_task.items())[: CHARTED + 1]), colours, "task"),
            charted=CHARTED,
            pairs=pairs,
            probed=probed,
            probes=instructed,
            probe_chart=probe_chart(instructed_pairs) if instructed else "",
            probe_films=films.other_instruction(evaluations),
            align_chart=_losses([s for s in stages if s.stage == "align"], colours, "alignment loss"),
            finetune_chart=_losses([s for s in stages if s.stage != "align"], colours, "fine-tuning loss"),
            stages=stages,
            latencies=latencies,
            parts=tables.where_time_goes(main),
            instructions=names,
            films={name: films.successes(main, name) for name in main.policies},
            failing=failing,
            failed=sum(row.failed for members in failing.values() for row in members.values()),
            judged=len(episodes),
            shown_kinds=[kind for kind in meanings if counts[kind]],
            kind_counts=counts,
            kind_meanings=meanings,
            failure_films=films.failures(evaluations, meanings),
            planned=len(main.wanted),
            evaluation=main,
            hertz=simulator.fps,
            image_size=contract.image_size,
            change=lambda episode: tables.aside(episode, main.protocol.suite),
        ),
    )


def _page() -> Template:
    page = Environment(
        loader=PackageLoader("apprentice.evaluate.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    page.filters.update(
        percent=percent, points=points, duration=duration, milliseconds=milliseconds, thousands=thousands
    )
    page.filters.update(millions=millions)
    page.globals.update(interval=interval, points_interval=points_interval)
    return page.get_template("report.html.jinja")


def milliseconds(seconds: float) -> str:
    """A short time."""
    return f"{1000 * seconds:.3g}\u00a0ms"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def thousands(number: float) -> str:
    """An integer with thin spaces between groups of three digits."""
    return f"{round(number):,}".replace(",", "\u202f")


def millions(number: float) -> str:
    """A number of parameters."""
    return f"{number / 1e6:.2f}\u00a0M"


def _colours(names: list[str]) -> dict[str, str]:
    """A colour for each policy and run; the usual ones always have the same."""
    usual = {TWO_STAGE: 0, "align": 0, ONLY_FT: 1, EXPERT: 2}
    others = [name for name in dict.fromkeys(names) if name not in usual]
    return {
        **{name: SERIES[usual[name]] for name in names if name in usual},
        **{name: SERIES[3 + n % 3] for n, name in enumerate(others)},
    }


def _losses(stages: list[TrainingRun], colours: dict[str, str], label: str) -> str:
    curves = {stage.name: (stage.seen, stage.loss, stage.held_out) for stage in stages if len(stage.loss)}
    return loss_chart(curves, colours, label) if curves else ""
