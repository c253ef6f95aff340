"""What `apprentice record` writes: the counts of an evaluation whose outcomes are known, and Wilson's interval."""

import json
from pathlib import Path

import pytest
from tests.evaluate.example_evaluation import EPISODES, FAILS, TASKS, write_evaluation

from apprentice.common.errors import UserError
from apprentice.evaluate.report.measured import read, record

ROOT = Path(__file__).parents[2]
Z = 1.959964


def test_a_line_holds_what_was_counted(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "eval", suite="libero_goal_swap")
    file = tmp_path / "results" / "libero_goal.jsonl"
    record(tmp_path / "eval", file=file, train_seed=3)
    lines = {line.role: line for line in read(file)}
    assert list(lines) == ["expert", "only-ft", "two-stage"]
    for role, failed in FAILS.items():
        line = lines[role]
        assert (line.suite, line.variant, line.layouts, line.train_seed) == ("libero_goal", "swap", "test", 3)
        assert line.by_task == {str(task): (EPISODES, EPISODES - len(failed[task])) for task in TASKS}
        assert line.episodes == len(TASKS) * EPISODES and sum(line.failures.values()) == sum(map(len, failed.values()))
        for bound in (line.low95, line.high95):  # the definition of Wilson's bounds
            deviation = abs(line.successes / line.episodes - bound)
            assert deviation == pytest.approx(Z * (bound * (1 - bound) / line.episodes) ** 0.5, abs=2e-4)

    record(tmp_path / "eval", file=file, train_seed=3)
    record(tmp_path / "eval", file=file, train_seed=4, command="apprentice eval ...")
    assert [line.train_seed for line in read(file)] == [3, 4] * 3
    assert read(file)[1].command == "apprentice eval ..."


def test_unfinished_or_unnamed_policies_are_refused(tmp_path: Path) -> None:
    evaluation = tmp_path / "eval"
    write_evaluation(evaluation, fails={"mine": FAILS["expert"]})
    with pytest.raises(UserError, match="--roles mine=expert"):
        record(evaluation, file=tmp_path / "r.jsonl")
    record(evaluation, file=tmp_path / "r.jsonl", roles={"mine": "expert"})
    log = tmp_path / "eval" / "episodes.jsonl"
    log.write_text("".join(line + "\n" for line in log.read_text().splitlines()[:-1]))
    with pytest.raises(UserError, match=r"expected all 60 episodes in .*, found 59"):
        record(evaluation, file=tmp_path / "r.jsonl", roles={"mine": "expert"})
    (tmp_path / "r.jsonl").write_text(json.dumps({"suite": "libero_goal"}) + "\n")
    with pytest.raises(UserError, match="line 1"):
        read(tmp_path / "r.jsonl")
