"""LIBERO behind the interface of `simulators.base`, whose docstrings say what each of these gives.

Imports of MuJoCo, NumPy and LIBERO stand inside: names of suites must be known at once.
"""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

from apprentice.simulators import opengl
from apprentice.simulators.base import Check, Demonstrator, Observation, Observer, Usual
from apprentice.simulators.libero import FAST_VERSION, PACKAGES
from apprentice.simulators.libero.simulator.paraphrases import paraphrases
from apprentice.simulators.libero.simulator.suites import PERTURBATIONS, STEP_LIMITS, Task, goals, task_count, tasks

if TYPE_CHECKING:
    import numpy as np

    from apprentice.data.contract import Contract
    from apprentice.simulators.libero.simulator.env import LiberoEnv

FRESH_START = 0.015  # m: the hand of a fresh layout starts as far from home as in the test states (5 to 9 mm deviation)


class Libero:
    """`simulators.base.Simulator`."""

    name = "LIBERO"
    suites: Mapping[str, int] = STEP_LIMITS
    variants: Mapping[str, str] = {kind: f"{what} (LIBERO-PRO {kind})" for kind, what in PERTURBATIONS.items()}
    fps = 20
    test_states = 50
    fast_version: int | None = FAST_VERSION
    checked: Sequence[str] = ("libero_goal", "libero_spatial", "libero_object", "libero_10", "libero_90")
    doctor: str | None = "apprentice.simulators.libero.dataset.doctor:doctor"

    @property
    def failures(self) -> Mapping[str, str]:
        from apprentice.simulators.libero.evaluation.failures import MEANINGS

        return MEANINGS

    def task_count(self, suite: str) -> int:
        return task_count(suite)

    def tasks(self, suite: str) -> list[Task]:
        return tasks(suite)

    def task(self, suite: str, index: int, variant: int | None = None) -> Task:
        from apprentice.simulators.libero.simulator.variants import find_task

        return find_task(suite, index, variant)

    def paraphrases(self, instruction: str) -> list[str]:
        return paraphrases(instruction)

    def check_drawing(self) -> None:
        opengl.check_drawing()

    def versions(self) -> dict[str, str]:
        return {name: version(name) for name in PACKAGES}

    def contract(self, suite: str, size: int, render: str) -> "Contract":
        from apprentice.simulators.libero.convention import contract

        return contract(size, render)

    def environment(self, suite: str, task: int, variant: int | None = None, *, render: str, size: int) -> "LiberoEnv":
        from apprentice.simulators.libero.simulator.env import environment

        return environment(suite, task, variant, render=render, size=size)

    def begin(
        self, env: "LiberoEnv", *, seed: int, init_state: int | None, settle_steps: int, moved: int | None = None
    ) -> None:
        from apprentice.simulators.libero.evaluation.moved_objects import Start, carried, reset_moved

        start = Start(seed, init_state, FRESH_START if init_state is None else 0.0, settle_steps)
        if moved is None:
            start.reset(env)
        else:
            reset_moved(env, carried(env.goals_of(moved)), start)

    def can_move(self, suite: str, task: int) -> bool:
        from apprentice.simulators.libero.evaluation.moved_objects import carried

        return bool(carried(goals(tasks(suite)[task].bddl)))

    def observer(self, env: "LiberoEnv", task: int) -> Observer:
        from apprentice.simulators.libero.evaluation.failures import FailureObserver

        return FailureObserver(env, env.goals_of(task))

    def film(self, observation: Observation) -> "np.ndarray":
        from apprentice.simulators.libero.convention import SCENE

        return observation[SCENE][:, ::-1]  # images are mirrored by convention

    def demonstrator(self) -> Demonstrator:
        from apprentice.simulators.libero.demonstrator.scripted import Scripted

        return Scripted()

    def usual(self, suite: str) -> Usual:
        from apprentice.simulators.libero.evaluation.references import reference

        found = reference(suite)
        return Usual(found.states[0], found.colours, limit=1.0, moving=3, least=0.1)

    def examine(self, suite: str, render: str) -> list[Check]:
        from apprentice.simulators.libero.evaluation.examination import examine

        return examine(suite, render)

    def setting(self, suite: str, render: str) -> str:
        from apprentice.simulators.libero.evaluation.examination import setting

        return setting(suite, render)


LIBERO = Libero()
