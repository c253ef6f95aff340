"""The report: one self-contained page, and beside it the same numbers as JSON.

`write_report` reads folders that `evaluate` and the training stages wrote; it computes nothing but rates.
"""

import base64
import json
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from apprentice.errors import UserError
from apprentice.evaluate.charts import SERIES, loss_chart, probe_chart, success_chart
from apprentice.evaluate.findings import EXPERT, ONLY_FT, TWO_STAGE, findings, interval, percent
from apprentice.evaluate.results import ALL, Episode, Evaluation, Row, probe_rows, success_rows
from apprentice.files import read_json, write_json, write_text
from apprentice.libero.suites import tasks

FILMS = 6  # successes shown for each policy
FAILURES = 12  # failures shown


@dataclass(frozen=True)
class Stage:
    """What a training run cost and how its loss fell."""

    name: str
    stage: str
    seconds: float
    samples: int
    trainable_parameters: int
    total_parameters: int
    seen: np.ndarray  # (N,) samples
    loss: np.ndarray  # (N,)

    @classmethod
    def load(cls, name: str, run: Path) -> "Stage":
        """Read `cost.json` and `log.jsonl` of a run. Raises UserError if the run is not finished."""
        try:
            cost = read_json(run / "cost.json")
            log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        except FileNotFoundError as error:
            raise UserError(
                f"stage {name}: expected a finished run in {run}, found no {Path(error.filename).name}; "
                "fix: run the stage again, it goes on from where it stopped"
            ) from error
        return cls(
            name=name,
            seen=np.array([entry["samples"] for entry in log]),
            loss=np.array([entry.get("action_loss", entry["loss"]) for entry in log]),
            **cost,
        )


@dataclass(frozen=True)
class Film:
    """An episode to look at."""

    episode: Episode
    source: str  # data: address


def write_report(
    out: Path,
    evaluation: Path,
    *,
    runs: dict[str, Path] | None = None,
    probe: Path | None = None,
    title: str = "Apprentice",
) -> None:
    """Write the page, and `results.json` (and `probe.json`) beside it.

    Args:
        out: the HTML file to write.
        evaluation: folder written by `apprentice eval`.
        runs: folders of training stages by name; the fine-tuned ones are named as the policies are.
        probe: folder of the language probe, written by `apprentice eval --told`.
        title: stands above the headline.

    Raises UserError if a folder is missing, a stage is not finished, or there is no episode yet.
    """
    out = Path(out)
    main = Evaluation.load(evaluation)
    other = Evaluation.load(probe) if probe else None
    probes = probe_rows(other.episodes) if other else []
    rows = success_rows(main.episodes)
    if not rows:
        raise UserError(f"expected episodes in {evaluation}, found none; fix: run `apprentice eval`")
    stages = [Stage.load(name, run) for name, run in (runs or {}).items()]
    instructions = {task.index: task.instruction for task in tasks(main.protocol.suite)}
    policies = list(main.policies)
    colours = _colours([*policies, *(runs or {})])

    groups: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: -1 if row.task == ALL else row.task):
        groups.setdefault(_task_name(row.task, instructions), []).append(row)
    pairs: dict[str, list] = {}
    for told in probes:
        pairs.setdefault(f"told “{instructions[told.told]}”", []).append(told)

    write_json(out.parent / "results.json", [asdict(row) for row in rows])
    if probe:
        write_json(out.parent / "probe.json", [asdict(row) for row in probes])
    page = Environment(
        loader=PackageLoader("apprentice.evaluate", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page.filters.update(percent=percent, duration=duration, thousands=thousands, millions=millions)
    page.globals.update(interval=interval)
    write_text(
        out,
        page.get_template("report.html.jinja").render(
            title=title,
            today=date.today().isoformat(),
            findings=findings(rows, probes),
            rows=rows,
            overall=[row for row in rows if row.task == ALL],
            groups=groups,
            swatches={name: f"var(--c{SERIES.index(colour)})" for name, colour in colours.items()},
            success_chart=success_chart(groups, colours),
            probes=probes,
            probe_chart=probe_chart(pairs) if probes else "",
            probe_films=_probe_films(other) if other else [],
            align_chart=_losses([s for s in stages if s.stage == "align"], colours, "alignment loss"),
            finetune_chart=_losses([s for s in stages if s.stage != "align"], colours, "fine-tuning loss"),
            stages=stages,
            parts=_where_time_goes(main),
            instructions=instructions,
            films={name: _films(main, name) for name in policies},
            failures=_failures(main),
            failed=sum(not episode.success for episode in main.episodes),
            planned=len(main.wanted),
            evaluation=main,
        ),
    )


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


def _task_name(task: int | str, instructions: dict[int, str]) -> str:
    return "all tasks" if isinstance(task, str) else instructions[task]


def _colours(names: list[str]) -> dict[str, str]:
    """A colour for each policy and run; the usual ones always have the same."""
    usual = {TWO_STAGE: 0, "align": 0, ONLY_FT: 1, EXPERT: 2}
    others = [name for name in dict.fromkeys(names) if name not in usual]
    return {
        **{name: SERIES[usual[name]] for name in names if name in usual},
        **{name: SERIES[3 + n % 3] for n, name in enumerate(others)},
    }


def _losses(stages: list[Stage], colours: dict[str, str], label: str) -> str:
    curves = {stage.name: (stage.seen, stage.loss) for stage in stages if len(stage.loss)}
    return loss_chart(curves, colours, label) if curves else ""


def _where_time_goes(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Mean seconds of an episode, by policy and by what they were spent on."""
    table: list[dict[str, Any]] = []
    for name in evaluation.policies:
        own = [episode for episode in evaluation.episodes if episode.policy == name]
        if own:
            fields = ("seconds", "reset_seconds", "policy_seconds", "render_seconds", "physics_seconds", "steps")
            means = {field: float(np.mean([getattr(episode, field) for episode in own])) for field in fields}
            table.append({"policy": name, **means})
    return table


def _film(evaluation: Evaluation, episode: Episode) -> Film | None:
    path = evaluation.folder / "videos" / (episode.video or "none")
    if not path.is_file():
        return None
    return Film(episode, "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode())


def _films(evaluation: Evaluation, policy: str) -> list[Film]:
    """Some successes of a policy, by turns from every task."""
    own = [e for e in evaluation.episodes if e.policy == policy and e.success and e.video]
    own.sort(key=lambda episode: (episode.init_state, episode.task))
    return [film for film in (_film(evaluation, episode) for episode in own[:FILMS]) if film]


def _probe_films(evaluation: Evaluation) -> list[Film]:
    """The first episode of each policy and pair of tasks."""
    first = [episode for episode in evaluation.episodes if episode.init_state == 0 and episode.task != episode.told]
    return [film for film in (_film(evaluation, episode) for episode in first[:FILMS]) if film]


def _failures(evaluation: Evaluation) -> list[Film]:
    """Some failures, by turns from every policy and task; the student's first."""
    turns: dict[tuple[str, int], int] = {}
    order = []
    for episode in evaluation.episodes:
        if not episode.success and episode.video:
            turn = turns[episode.policy, episode.task] = turns.get((episode.policy, episode.task), 0) + 1
            order.append((turn, episode.policy != TWO_STAGE, episode.policy, episode.task, episode))
    order.sort(key=lambda entry: entry[:-1])
    return [film for film in (_film(evaluation, entry[-1]) for entry in order[:FAILURES]) if film]
