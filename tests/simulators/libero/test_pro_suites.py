"""LIBERO-PRO's suites: complete, in LIBERO's order, and the instruction is the one in the BDDL file."""

import pytest

from apprentice.common.errors import UserError
from apprentice.simulators.libero.simulator.suites import FOUR, PERTURBATIONS, PRO, SUITES, initial_states, tasks


@pytest.mark.parametrize("suite", FOUR)
def test_a_perturbed_suite_is_the_suite_task_by_task(suite: str) -> None:
    usual = tasks(suite)
    for kind in PERTURBATIONS:
        perturbed = tasks(f"{suite}_{kind}")
        assert [task.bddl.name for task in perturbed] == [task.bddl.name for task in usual]
        assert all(task.bddl.exists() for task in perturbed)
        for index in (0, 9):
            assert len(initial_states(f"{suite}_{kind}", index)) == 50
        same = [a.instruction == b.instruction for a, b in zip(perturbed, usual, strict=True)]
        assert sum(same) == (0 if kind == "lan" else 10 if kind in ("object", "swap") else SAME_TASK[suite]), same
        assert PRO[f"{suite}_{kind}"] == SUITES[suite]


SAME_TASK = {"libero_spatial": 0, "libero_object": 0, "libero_goal": 0, "libero_10": 0}


def test_words_are_those_of_the_file() -> None:
    assert tasks("libero_goal_lan")[8].instruction == "place the bowl on top of the plate"
    assert tasks("libero_goal_task")[0].instruction == "open the bottom drawer of the cabinet"
    assert tasks("libero_goal_swap")[8].instruction == "put the bowl on the plate"


def test_others_are_not_there() -> None:
    with pytest.raises(UserError, match=r"libero_goal_swap.* found 'libero_goal_env'"):
        tasks("libero_goal_env")
