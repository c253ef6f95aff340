"""Variants of tasks, as LIBERO's own parser reads them."""

from pathlib import Path

import pytest
from libero.libero import get_libero_path
from libero.libero.envs.bddl_utils import robosuite_parse_problem

from apprentice.common.errors import UserError
from apprentice.simulators.libero.simulator.suites import SUITES, Task, tasks
from apprentice.simulators.libero.simulator.variants import GROCERIES, variant_task


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APPRENTICE_CACHE", str(tmp_path))


def parsed(task: Task) -> dict:
    return robosuite_parse_problem(str(task.bddl))


@pytest.mark.parametrize(("suite", "index"), [("libero_object", 0), ("libero_goal", 8), ("libero_10", 1)])
def test_a_world_is_complete_and_speaks_of_what_is_there(suite: str, index: int) -> None:
    task = tasks(suite)[index]
    for seed in range(5):
        variant = variant_task(task, seed)
        assert (
            variant_task(task, seed) == variant and variant_task(task, seed + 1) != variant
        ) or suite == "libero_goal"
        problem, before = parsed(variant), parsed(task)
        things = {name for names in problem["objects"].values() for name in names}
        fixtures = {name for names in problem["fixtures"].values() for name in names}
        assert len(things) == sum(map(len, before["objects"].values())) and problem["fixtures"] == before["fixtures"]
        for predicate in problem["goal_state"]:
            for name in predicate[1:]:
                assert name in things or any(name.startswith(f"{owner}_") for owner in things | fixtures)
        wanted = {name for predicate in problem["goal_state"] for name in predicate[1:]} & things
        for name in wanted:
            if (noun := GROCERIES.get(name.rsplit("_", 1)[0])) is not None:
                assert noun in variant.instruction


def test_things_that_only_their_place_tells_apart_are_refused() -> None:
    with pytest.raises(UserError, match="several akita_black_bowl; fix: a task that does not tell them apart"):
        variant_task(tasks("libero_spatial")[0], 0)


@pytest.mark.parametrize(("suite", "index"), [("libero_10", 6), ("libero_90", 34)])
def test_what_gives_a_place_its_name_is_not_exchanged(suite: str, index: int) -> None:
    task = tasks(suite)[index]
    for seed in range(5):
        assert variant_task(task, seed).instruction == task.instruction


def test_no_world_is_one_of_libero_pro() -> None:
    """Its suites lie beside LIBERO's own, some files of which it repeats."""
    contents: dict[bool, set[str]] = {True: set(), False: set()}
    for path in Path(get_libero_path("bddl_files")).rglob("*.bddl"):
        contents[path.parent.name in SUITES].add(" ".join(path.read_text().split()))
    pro = contents[False] - contents[True]
    assert len(pro) > 400
    for suite, index in (("libero_object", 0), ("libero_object", 3), ("libero_goal", 8), ("libero_10", 1)):
        for seed in range(3):
            assert " ".join(variant_task(tasks(suite)[index], seed).bddl.read_text().split()) not in pro
