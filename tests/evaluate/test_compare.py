"""Two policies on the same episodes; what keeps two evaluations from being compared; one table of a run."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from example_evaluation import EPISODES, FAILS, TASKS, write_evaluation

from apprentice.cli import main
from apprentice.common.errors import UserError
from apprentice.common.files import checked, fingerprint
from apprentice.common.intervals import mcnemar, tango
from apprentice.evaluate.compare import compare, paired, summary
from apprentice.evaluate.episode.trace import Trace, write_table
from apprentice.evaluate.protocol import Protocol, differences
from apprentice.evaluate.results import Evaluation


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_evaluation(tmp_path_factory.mktemp("runs") / "a")


@pytest.fixture
def other(run, tmp_path):
    return shutil.copytree(run, tmp_path / "b")


def change(folder, **fields):
    """Write an evaluation's protocol anew, as if it had been run so."""
    found = Evaluation.load(folder)
    replace(found, protocol=replace(found.protocol, **fields)).save()


def test_pairs_are_counted_task_by_task_the_worst_first(run):
    evaluation = Evaluation.load(run)
    a, b = ([e for e in evaluation.episodes if e.policy == name] for name in ("two-stage", "only-ft"))
    rows = paired(a, b)
    fails_a, fails_b = ({(t, s) for t in TASKS for s in FAILS[name][t]} for name in ("two-stage", "only-ft"))
    only_a, only_b = len(fails_b - fails_a), len(fails_a - fails_b)
    total = rows[0]
    assert (total.task, total.pairs, total.a, total.b) == ("all", 60, 57, 51)
    assert (total.only_a, total.only_b) == (only_a, only_b) == (8, 2)
    assert (total.low95, total.high95, total.p) == (*tango(only_b, only_a, 60), mcnemar(only_a, only_b))
    assert [row.task for row in rows[1:]] == [8, 1, 4]
    assert [row.difference for row in rows[1:]] == pytest.approx([-4 / 20, -3 / 20, 1 / 20])
    assert paired(a, b[1:])[0].pairs == 59


def test_the_command_prints_them(run, capsys):
    assert main(["compare", str(run), "--policies", "two-stage", "only-ft"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "libero_goal: A = two-stage, B = only-ft"
    assert lines[2].split()[:6] == ["all", "57/60", "51/60", "8", "2", "-10.0"]
    assert lines[3].split()[0] == "8" and lines[3].endswith("put the bowl on the plate")
    assert (run / "episodes.parquet").exists()


def test_results_are_printed_as_data(run, capsys):
    assert main(["compare", str(run), "--policies", "two-stage", "only-ft", "--json"]) == 0
    printed = capsys.readouterr()
    assert "A = two-stage" in printed.err
    (pair,) = json.loads(printed.out)["compared"]
    assert (pair["suite"], pair["a"], pair["b"]) == ("libero_goal", "two-stage", "only-ft")
    assert [row["task"] for row in pair["rows"]] == ["all", 8, 1, 4] and pair["rows"][0]["only_a"] == 8
    assert main(["rates", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    done = {row["policy"]: (row["successes"], row["episodes"]) for row in found["together"]}
    assert done["two-stage"] == (57, 60) and done["only-ft"] == (51, 60)
    assert found["runs"][0]["suite"] == "libero_goal"
    assert sum(row["successes"] for row in found["runs"][0]["rates"] if row["task"] in (1, 4, 8)) == 57 + 51 + 55


def test_same_names_in_two_runs_are_compared(run, other, capsys):
    compare([run, other])
    assert capsys.readouterr().out.count("B = ") == len(FAILS)
    with pytest.raises(UserError, match="expected --policies A B with A of expert, only-ft, two-stage"):
        compare([run])
    with pytest.raises(UserError, match="compare two at a time"):
        compare([run, run, run])


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("render", "exact", "render: .*a has fast, .*b has exact"),
        ("fast_version", None, r"fast_version: .*a has \d+, .*b has one before 7"),
        ("mujoco", "3.4.0", "mujoco: .*a has 3.3.*, .*b has 3.4.0"),
        ("n_action_steps", 2, "n_action_steps: .*a has what each checkpoint says, .*b has 2"),
        ("tasks", (1, 4), "tasks: "),
    ],
)
def test_other_protocols_are_refused_and_the_difference_is_named(run, other, field, value, said):
    versions = Evaluation.load(other).protocol.versions
    change(other, **({"versions": versions | {field: value}} if field in versions else {field: value}))
    with pytest.raises(UserError, match=said) as refused:
        compare([run, other])
    assert f"--across {field}" in str(refused.value)


def test_what_is_compared_may_differ(run, other, capsys):
    log = other / "episodes.jsonl"
    protocol = replace(Evaluation.load(other).protocol, render="exact")
    lines = [json.loads(line) | {"conditions": protocol.conditions} for line in log.read_text().splitlines()]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    change(other, render="exact")
    compare([run, other], policies=["expert", "expert"], across=["render"])
    assert "55/60" in capsys.readouterr().out


def test_a_run_that_stopped_early_is_named(other, capsys):
    log = other / "episodes.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-20]))
    compare([other], policies=["expert", "two-stage"])
    assert "has 160 of its 180 episodes; pairs" in capsys.readouterr().out
    change(other, until="two-stage>only-ft")
    compare([other], policies=["expert", "two-stage"])
    said = capsys.readouterr().out
    assert "it stops when two-stage>only-ft is decided" in said and "too sure" in said


def test_more_initial_states_are_no_difference(run):
    protocol = Evaluation.load(run).protocol
    assert differences(protocol, replace(protocol, episodes=50, until="b>a"), ("a", "b")) == []
    assert replace(protocol, episodes=50).conditions == protocol.conditions != replace(protocol, seed=1).conditions
    assert replace(protocol, episodes=50).hash != protocol.hash


def test_fields_that_are_not_set_leave_hashes_alone():
    """An evaluation that was written before a field was there keeps its hash: what is None is not in it."""
    versions = {"mujoco": "3.3.7", "robosuite": "1.4.0"}
    old = Protocol("libero_goal", (1,), 20, (), 300, 128, "fast", versions=versions)
    content = {"suite": "libero_goal", "step_limit": 300, "image_size": 128, "render": "fast", "settle_steps": 10}
    content |= {"soft_reset": True, "seed": 0, "versions": versions}
    assert old.conditions == fingerprint(json.dumps(content, sort_keys=True))
    assert replace(old, ensembling=0.0).conditions != old.conditions


def test_a_protocol_that_was_changed_by_hand_is_refused(other):
    content = json.loads((other / "protocol.json").read_text())
    content["protocol"]["episodes"] = 10
    (other / "protocol.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="what was hashed as"):
        Evaluation.load(other)
    content["protocol"]["gravity"] = 0
    (other / "protocol.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="gravity"):
        Evaluation.load(other)


def test_a_run_is_one_table(other):
    evaluation = Evaluation.load(other)
    trace = Trace.of([np.full(8, k) for k in range(4)], [np.full(7, k / 2) for k in range(3)], [(0, 0.5), (2, 0.25)])
    (other / "traces" / "all.npz").unlink()
    (other / "traces" / "a.npz").write_bytes(trace.to_bytes())
    evaluation.episodes[0] = replace(evaluation.episodes[0], trace="a.npz", seed=3)
    table = pq.read_table(write_table(evaluation))
    assert table.num_rows == len(FAILS) * len(TASKS) * EPISODES
    assert sum(table["success"].to_pylist()) == sum(e.success for e in evaluation.episodes)
    first = table.slice(0, 1).to_pylist()[0]
    assert first["seed"] == 3 and first["plan_steps"] == [0, 2] and first["plan_seconds"] == [0.5, 0.25]
    np.testing.assert_array_equal(first["states"], trace.states)
    np.testing.assert_array_equal(first["actions"], trace.actions)
    assert table["actions"].to_pylist()[1] is None
    assert checked(table.schema.metadata[b"protocol"].decode(), Protocol, "a protocol", "") == evaluation.protocol
    written = (other / "episodes.parquet").stat().st_mtime_ns
    write_table(evaluation)
    assert (other / "episodes.parquet").stat().st_mtime_ns == written
    evaluation.episodes.pop()
    assert pq.read_table(write_table(evaluation)).num_rows == table.num_rows - 1


def test_suites_are_added_up(run, capsys):
    assert main(["rates", str(run), str(run)]) == 0
    rows = [line.split()[:3] for line in capsys.readouterr().out.splitlines() if line.startswith("expert")]
    assert rows[-3:] == [["expert", "all", "110/120"], *[["expert", "libero_goal", "55/60"]] * 2]


def test_the_summary_has_the_suite_and_the_worst_tasks_first(run):
    lines = summary(Evaluation.load(run)).splitlines()
    rows = [line.split()[:3] for line in lines if line.startswith("only-ft")]
    assert rows == [["only-ft", *cells] for cells in (["all", "51/60"], ["1", "16/20"], ["8", "16/20"], ["4", "19/20"])]
