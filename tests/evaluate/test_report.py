import json
import re
import shutil
from dataclasses import replace
from importlib.resources import files

import numpy as np
import pytest
from example_evaluation import CHANGED, EPISODES, FAILS, TASKS, fails_of, write_evaluation

from apprentice.common.errors import UserError
from apprentice.common.intervals import wilson
from apprentice.evaluate.compare import summary
from apprentice.evaluate.report.findings import findings, percent
from apprentice.evaluate.report.report import TrainingRun, duration, thousands, write_report
from apprentice.evaluate.results import Evaluation, ProbeRow, Row, failure_meanings, success_rows

REMOTE = re.compile(r"""(?:src|href|url|@import|fetch|import)\s*[=(]?\s*["']?(?:https?:)?//""")


def row(policy, successes, episodes=60):
    return Row(policy, "libero_goal", "all", episodes, successes, *wilson(successes, episodes), 1.0)


@pytest.fixture(scope="session")
def report(folders, tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "report.html"
    write_report(out, **folders)
    return out


def test_results_json_is_the_list_that_was_asked_for(report):
    results = json.loads((report.parent / "results.json").read_text())
    assert len(results) == len(FAILS) * (1 + len(TASKS))
    for entry in results:
        assert list(entry) == ["policy", "suite", "task", "episodes", "successes", "low95", "high95", "seconds"]
        tasks = TASKS if entry["task"] == "all" else [entry["task"]]
        fails = sum(len(FAILS[entry["policy"]][task]) for task in tasks)
        assert entry["episodes"] == EPISODES * len(tasks)
        assert entry["successes"] == entry["episodes"] - fails
        assert (entry["low95"], entry["high95"]) == wilson(entry["successes"], entry["episodes"])


def test_details_json_counts_what_was_changed_and_how_it_failed(report, folders):
    details = json.loads((report.parent / "details.json").read_text())
    assert list(details["perturbations"]) == ["as published", *CHANGED, "exchanged places (LIBERO-PRO swap)"]
    for probe, states in CHANGED.items():
        for found in details["probes"][probe]:
            lost = sum(len(set(states) - set(FAILS[found["policy"]][task])) for task in TASKS)
            pair = found["paired"]
            assert (pair["pairs"], pair["only_a"], pair["only_b"]) == (60, lost, 0)
            assert -pair["low95"] > lost / 60 > -pair["high95"] > 0
    one = {"policy": "two-stage", "against": "only-ft", "pairs": 60, "a": 51, "b": 57, "only_a": 2, "only_b": 8}
    assert any(one.items() <= pair.items() for pair in details["paired"])
    others = len(FAILS) - 1
    assert [pair["perturbation"] for pair in details["paired"][::others]] == list(details["perturbations"])
    for pair in details["paired"]:
        if pair["perturbation"] in ("as published", *CHANGED):
            a, b = (
                {(task, state) for task in TASKS for state in fails_of(policy, task, pair["perturbation"])}
                for policy in (pair["against"], pair["policy"])
            )
            assert (pair["only_a"], pair["only_b"]) == (len(b - a), len(a - b))
    for name, members in details["failures"].items():
        for row in members if name in ("as published", *CHANGED) else []:
            failed = [s for task in TASKS for s in fails_of(row["policy"], task, name)]
            assert row["failed"] == sum(row["kinds"].values()) == len(failed)
            assert row["kinds"].get("dropped", 0) == sum(s % 6 == 2 for s in failed)
    printed = [line.split()[:3] for line in summary(Evaluation.load(folders["evaluation"])).splitlines()]
    assert ["two-stage", "empty", "34/60"] in printed
    assert [(row["plans"], round(row["p50"], 4)) for row in details["latency"]] == [(18000, 0.0505)] * 3


def test_held_out_loss_stands_beside_the_other(folders):
    stage = TrainingRun.load("two-stage", folders["runs"]["two-stage"])
    assert stage.held_out[:, 0].tolist() == [64 * (step + 1) for step in (290, 590, 890, 1190, 1490)]
    np.testing.assert_allclose(stage.held_out[:, 1], 1.2 * stage.loss[29::30])


def test_what_is_left_of_it_when_the_tasks_are_perturbed_is_said(report, browser):
    browser.get(report.as_uri())
    low, high = wilson(57, 60)
    said = f"exchanged places (LIBERO-PRO swap) 57 of 60 ({100 * low:.0f} to {100 * high:.0f}"
    assert said in browser.find_element("css selector", "header").text
    rows = browser.find_elements("css selector", '#paired tr[data-perturbation="exchanged places (LIBERO-PRO swap)"]')
    assert [row.get_attribute("data-other") for row in rows] == [name for name in FAILS if name != "two-stage"]


def test_the_worst_task_stands_first(report, browser):
    browser.get(report.as_uri())
    rows = browser.find_elements("css selector", '#results tr[data-policy="two-stage"]')
    assert [row.get_attribute("data-task") for row in rows] == ["all", "4", "1", "8"]


def test_chromium_shows_the_numbers_of_results_json(report, browser):
    browser.get(report.as_uri())
    for entry in json.loads((report.parent / "results.json").read_text()):
        shown = f'#results tr[data-policy="{entry["policy"]}"][data-task="{entry["task"]}"]'
        (line,) = browser.find_elements("css selector", shown)
        fields = {e.get_attribute("data-field"): e for e in line.find_elements("css selector", "[data-field]")}
        assert int(fields["successes"].text) == entry["successes"]
        assert int(fields["episodes"].text) == entry["episodes"]
        assert float(fields["low95"].text) == pytest.approx(100 * entry["low95"], abs=0.0501)
        assert float(fields["high95"].text) == pytest.approx(100 * entry["high95"], abs=0.0501)
        assert float(fields["seconds"].get_attribute("data-value")) == entry["seconds"]
    for entry in json.loads((report.parent / "probe.json").read_text()):
        shown = f'#probes tr[data-policy="{entry["policy"]}"][data-task="{entry["task"]}"]'
        (line,) = browser.find_elements("css selector", shown)
        for field in ("episodes", "did_instructed", "did_task", "did_neither"):
            assert int(line.find_element("css selector", f"[data-field={field}]").text) == entry[field]
    details = json.loads((report.parent / "details.json").read_text())
    for name, members in details["failures"].items():
        for row in members:
            for kind, count in row["kinds"].items():
                line = f'#kinds tr[data-kind="{kind}"][data-perturbation="{name}"] td[data-policy="{row["policy"]}"]'
                found = browser.find_elements("css selector", line)
                assert [int(cell.text) for cell in found] == [count] or (count == 0 and not found)
    curves = " ".join(chart.text for chart in browser.find_elements("css selector", ".columns svg"))
    assert "two-stage, held out" in curves and "align, held out" not in curves
    charts = " ".join(chart.text for chart in browser.find_elements("css selector", "#success svg"))
    assert "57/60" in charts and "16/20" in charts


def test_chromium_plays_every_film(report, browser):
    browser.get(report.as_uri())
    sizes = browser.execute_async_script("""
        const done = arguments[arguments.length - 1];
        Promise.all([...document.querySelectorAll("video")].map(video => new Promise(resolve => {
            const answer = () => resolve([video.videoWidth, video.videoHeight, video.duration]);
            video.onloadedmetadata = answer, video.onerror = answer, video.preload = "metadata", video.load();
        }))).then(done)""")
    assert len(sizes) >= 3 * 3 + 60
    assert all(width == height == 256 and 2 < seconds < 10 for width, height, seconds in sizes)
    failures = browser.find_elements("css selector", "#failures figure")
    assert len(failures) == 60
    headings = [heading.text for heading in browser.find_elements("css selector", "#failures h3")]
    assert [heading.split(maxsplit=1)[0].lower() for heading in headings] == [
        kind.split()[0] for kind in failure_meanings("libero_goal")
    ]


@pytest.mark.parametrize("width", [360, 1200])
def test_chromium_finds_nothing_to_complain_about(report, browser, width):
    view = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", view)
    browser.get_log("browser"), browser.get_log("performance")
    browser.get(report.as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith("data:")] == [report.as_uri()]


def test_everything_has_a_name_for_those_who_do_not_see_it(report, browser):
    browser.get(report.as_uri())
    nameless = browser.execute_script("""
        return [...document.querySelectorAll("svg, video, table, .scroll, nav")].filter(thing =>
            !(thing.caption ? thing.caption.innerText : thing.getAttribute("aria-label") || "").trim()).length""")
    assert nameless == 0
    rows = "tbody tr:not(:has(> th[scope]))"
    assert browser.find_elements("css selector", rows) == []


@pytest.mark.parametrize("dark", [False, True])
def test_colours_stand_out(dark):
    """WCAG 2.2: text by 4.5, what is drawn by 3."""
    css = (files("apprentice.evaluate.report") / "report.css").read_text()
    light, night = (
        dict(re.findall(r"--(\w+): (#\w{6})", css[start:])[::-1]) for start in (0, css.index("@media screen"))
    )
    colours = night if dark else light
    for name in ("ink", "muted", "good", "bad", "link", *(f"c{n}" for n in range(6))):
        for ground in ("page", "card"):
            assert contrast(colours[name], colours[ground]) >= (3 if name[1:].isdigit() else 4.5), (name, ground)


def contrast(a, b):
    def luminance(colour):
        parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        return sum(
            w * (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4)
            for w, c in zip((0.2126, 0.7152, 0.0722), parts, strict=True)
        )

    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_the_page_names_no_other_host(report):
    assert not REMOTE.search(report.read_text())


@pytest.mark.parametrize(
    ("two_stage", "expert", "only_ft", "said", "unsaid"),
    [
        (57, 55, 51, ["no fewer than its expert", "only-ft did as well within the error"], ["made the difference"]),
        (57, 58, 57, ["about as many as its expert", "only-ft did as well"], ["within the error"]),
        (57, 57, 30, ["no fewer than its expert", "alignment made the difference"], ["did as well"]),
        (30, 57, 57, ["fewer than its expert", "only-ft did better", "falls short"], ["no fewer"]),
    ],
)
def test_findings_claim_no_more_than_the_episodes_allow(two_stage, expert, only_ft, said, unsaid):
    rows = [row("expert", expert), row("only-ft", only_ft), row("two-stage", two_stage)]
    text = " ".join(findings(rows, []))
    assert text.startswith(f"Two-stage solves {two_stage} of 60 episodes")
    assert all(phrase in text for phrase in said)
    assert not any(phrase in text for phrase in unsaid)


@pytest.mark.parametrize(
    ("instructed", "usual", "said"),
    [(18, 1, "It listens:"), (1, 18, "It does not listen:"), (0, 1, "keeps it from"), (11, 8, "not listen reliably")],
)
def test_findings_on_language(instructed, usual, said):
    probe = ProbeRow(
        "two-stage", "libero_goal", 1, 8, 20, instructed, usual, 20 - instructed - usual, *wilson(instructed, 20)
    )
    assert said in findings([row("two-stage", 50)], [probe])[-1]


def test_nothing_is_rounded_to_certainty():
    assert [percent(x).replace("\u00a0", " ") for x in (0, 0.001, 0.5, 0.996, 1)] == [
        "0 %",
        "0.1 %",
        "50 %",
        "99.6 %",
        "100 %",
    ]
    assert [duration(s) for s in (2.25, 45, 254, 6000)] == ["2.2 s", "45 s", "4 min", "1 h 40 min"]
    assert thousands(9130000) == "9\u202f130\u202f000"


def test_episodes_of_another_checkpoint_or_given_another_instruction_do_not_count(folders):
    from apprentice.evaluate.results import append_episode

    folder = folders["evaluation"].parent / "copy"
    shutil.copytree(folders["evaluation"], folder)
    before = Evaluation.load(folder)
    append_episode(before.log, replace(before.episodes[0], checkpoint="older"))
    append_episode(before.log, replace(before.episodes[0], conditions="other"))
    append_episode(before.log, before.episodes[0])
    assert Evaluation.load(folder).episodes == before.episodes
    assert success_rows([replace(e, instructed=8) for e in before.episodes if e.task == 1]) == []


def test_missing_pieces_are_named(folders, tmp_path):
    with pytest.raises(UserError, match="expected an evaluation in"):
        write_report(tmp_path / "r.html", tmp_path)
    spatial = write_evaluation(tmp_path, suite="libero_spatial")
    with pytest.raises(UserError, match=r"to be of libero_goal, .* found libero_spatial; fix: leave it out"):
        write_report(tmp_path / "r.html", folders["evaluation"], variants=[spatial])
    with pytest.raises(UserError, match=r"stage align: .* found no cost.json"):
        write_report(tmp_path / "r.html", folders["evaluation"], runs={"align": tmp_path})
