"""The SO-101 twin behind the interface of `simulators.base`, whose docstrings say what each of these gives.

Imports of MuJoCo and NumPy stand inside: names of suites must be known at once.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from apprentice.common.errors import UserError
from apprentice.simulators import opengl
from apprentice.simulators.base import Check, Demonstrator, Observation, Observer
from apprentice.simulators.so101.suites import (
    CARRIED,
    FPS,
    INSTRUCTIONS,
    OTHER_WORDS,
    SUITES,
    VARIANTS,
    Task,
    check_simulator,
    tasks,
)

if TYPE_CHECKING:
    import numpy as np

    from apprentice.data.contract import Contract
    from apprentice.simulators.so101.simulator.env import TwinEnv

TEST_SEED = 3_000_000_000  # of test states: beyond the seeds of collection and of fresh layouts
STATES = 50


class Twin:
    """`simulators.base.Simulator`."""

    name = "SO-101 twin"
    suites: Mapping[str, int] = SUITES
    variants: Mapping[str, str] = VARIANTS
    fps = FPS
    test_states = STATES
    fast_version: int | None = None  # "exact" draws shadows as well
    checked: Sequence[str] = tuple(SUITES)
    doctor: str | None = "apprentice.simulators.so101.doctor:doctor"

    @property
    def failures(self) -> Mapping[str, str]:
        from apprentice.simulators.so101.failures import MEANINGS

        return MEANINGS

    def task_count(self, suite: str) -> int:
        return len(INSTRUCTIONS)

    def tasks(self, suite: str) -> list[Task]:
        return tasks(suite)

    def task(self, suite: str, index: int, variant: int | None = None) -> Task:
        if variant is not None:
            raise UserError(
                "expected no variant: each episode of the SO-101 twin draws its layout anyway, found variant "
                f"{variant}; fix: leave --variants out"
            )
        return tasks(suite)[index]

    def paraphrases(self, instruction: str) -> Sequence[str]:
        return OTHER_WORDS.get(instruction, ())

    def check_drawing(self) -> None:
        opengl.check_drawing()

    def versions(self) -> dict[str, str]:
        from apprentice.simulators.so101.units import versions

        check_simulator()
        return versions()

    def contract(self, suite: str, size: int, render: str) -> "Contract":
        from apprentice.simulators.so101.units import contract

        return contract(size, render)

    def environment(self, suite: str, task: int, variant: int | None = None, *, render: str, size: int) -> "TwinEnv":
        check_simulator()
        from apprentice.simulators.so101.simulator.env import environment

        return environment(suite, task, render=render, size=size)

    def begin(
        self, env: "TwinEnv", *, seed: int, init_state: int | None, settle_steps: int, moved: int | None = None
    ) -> None:
        drawn = seed if init_state is None else TEST_SEED + 1000 * env.task + init_state
        env.reset(drawn, settle_steps=settle_steps, moved=moved)

    def can_move(self, suite: str, task: int) -> bool:
        return task in CARRIED

    def observer(self, env: "TwinEnv", task: int) -> Observer:
        from apprentice.simulators.so101.failures import FailureObserver

        return FailureObserver(env, task)

    def film(self, observation: Observation) -> "np.ndarray":
        from apprentice.simulators.so101.units import CAMERAS

        return observation[CAMERAS[0]]

    def demonstrator(self) -> Demonstrator:
        check_simulator()
        from apprentice.simulators.so101.demonstrator.scripted import Scripted

        return Scripted()

    def usual(self, suite: str) -> None:
        return None

    def examine(self, suite: str, render: str) -> list[Check]:
        check_simulator()
        from apprentice.simulators.so101.examination import examine

        return examine(suite, render)

    def setting(self, suite: str, render: str) -> str:
        from apprentice.simulators.so101.examination import setting

        return setting(suite, render)


TWIN = Twin()
