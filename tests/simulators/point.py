"""A second simulator, as small as one can be: a point that is pushed over a plane. Everything in it is NumPy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from apprentice.data.contract import Contract
from apprentice.simulators.base import Check, Demonstration, Observation, Record, Usual

CAMERAS = ("observation.images.above", "observation.images.aside")
HEIGHT, WIDTH, FPS = 48, 64, 30
NEAR = 0.1  # of the half side of the plane
PLACES = {"left": (-0.6, 0.0), "right": (0.6, 0.0), "top": (0.0, 0.6)}
STILL, MISSED = "never moved", "missed the place"


@dataclass(frozen=True)
class PointTask:
    suite: str
    index: int
    instruction: str


@dataclass(frozen=True)
class PointState:
    state: np.ndarray  # (4,) place and velocity


class PointEnv:
    """A point with a velocity. Actions (2,) are accelerations; the state (4,) is place and velocity."""

    def __init__(self, suite: str, task: int):
        self.suite, self.task = suite, task
        self.max_steps = POINT.suites[suite]
        self.state: np.ndarray = np.zeros(4)

    def step(self, action: np.ndarray) -> bool:
        velocity = 0.8 * self.state[2:] + 0.008 * np.clip(action, -1, 1)
        self.state = np.concatenate([np.clip(self.state[:2] + velocity, -1, 1), velocity])
        return self.success_of(self.task)

    def observe(self) -> Observation:
        return {
            CAMERAS[0]: self._drawn(self.state[:2], (230, 90, 40)),
            CAMERAS[1]: self._drawn(self.state[1::-1], (40, 90, 230)),
            "observation.state": self.proprioception(),
        }

    def _drawn(self, place: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
        picture = np.full((HEIGHT, WIDTH, 3), 30 if self.suite == "point" else 120, np.uint8)
        row, column = int((1 - place[1]) / 2 * (HEIGHT - 9)), int((1 + place[0]) / 2 * (WIDTH - 9))
        picture[row : row + 8, column : column + 8] = colour
        return picture

    def proprioception(self) -> np.ndarray:
        return self.state.astype(np.float32)

    def success_of(self, task: int) -> bool:
        return bool(np.linalg.norm(self.state[:2] - list(PLACES.values())[task]) < NEAR)

    def capture(self) -> PointState:
        return PointState(self.state.copy())

    def restore(self, snapshot: PointState) -> None:
        self.state = snapshot.state.copy()

    resume = restore

    def close(self) -> None: ...


class PointObserver:
    def __init__(self, env: PointEnv):
        self._env, self._start = env, env.state[:2].copy()

    def observe(self, action: np.ndarray) -> None:
        assert action.shape == (2,)

    def kind(self) -> str:
        return MISSED if np.linalg.norm(self._env.state[:2] - self._start) > NEAR else STILL


@dataclass
class PointWatcher:
    usable: bool = True
    holding: bool = False
    mistake: int | None = None

    def observe(self, action: np.ndarray) -> None: ...


@dataclass
class PointNoise:
    deviation: float
    rng: np.random.Generator

    def disturbed(self, action: np.ndarray) -> np.ndarray:
        return action + self.rng.normal(0, self.deviation, 2)


class PointDemonstrator:
    start_noise = 0.3
    robot_type = "point"
    state_names = ("x", "y", "vx", "vy")
    action_names = ("ax", "ay")

    def begin(self, env: PointEnv, seed: int) -> None:
        env.state = np.concatenate([np.random.default_rng(seed).uniform(-0.3, 0.3, 2), np.zeros(2)])

    def demonstrate(self, env: PointEnv, seed: int) -> Demonstration:
        self.begin(env, seed)
        return self._solved(env)

    def take_over(self, env: PointEnv, seed: int, action: np.ndarray) -> Demonstration:
        return self._solved(env)

    def watch(self, env: PointEnv) -> PointWatcher:
        return PointWatcher()

    def noise(self, deviation: float, rng: np.random.Generator) -> PointNoise:
        return PointNoise(deviation, rng)

    def state(self, arrays: Mapping[str, np.ndarray]) -> PointState:
        return PointState(**arrays)

    def _solved(self, env: PointEnv) -> Demonstration:
        record, place = Record(), np.array(list(PLACES.values())[env.task])
        for _ in range(env.max_steps):
            action = np.clip(4 * (place - env.state[:2]) - 4 * env.state[2:], -1, 1).astype(np.float32)
            record.snapshots.append(env.capture())
            record.actions.append(action)
            record.executed.append(action)
            record.successes.append(env.step(action))
            if record.successes[-1]:
                return Demonstration(record, None)
        return Demonstration(record, "goal not reached")


@dataclass
class Point:
    name: str = "Point"
    suites: Mapping[str, int] = field(default_factory=lambda: {"point": 40, "point_fog": 40})
    variants: Mapping[str, str] = field(default_factory=lambda: {"fog": "fog"})
    fps: int = FPS
    test_states: int = 4
    fast_version: int | None = None
    checked: Sequence[str] = ()
    doctor: str | None = None
    failures: Mapping[str, str] = field(default_factory=lambda: {STILL: "It stood.", MISSED: "It went elsewhere."})

    def task_count(self, suite: str) -> int:
        return len(PLACES)

    def tasks(self, suite: str) -> list[PointTask]:
        return [PointTask(suite, index, f"push the point to the {place}") for index, place in enumerate(PLACES)]

    def task(self, suite: str, index: int, variant: int | None = None) -> PointTask:
        return self.tasks(suite)[index]

    def paraphrases(self, instruction: str) -> list[str]:
        return [instruction.replace("push", verb) for verb in ("move", "bring")]

    def check_drawing(self) -> None: ...

    def versions(self) -> dict[str, str]:
        return {"point": "1.0"}

    def contract(self, suite: str, size: int, render: str) -> Contract:
        return Contract(
            cameras=CAMERAS,
            image_size=(HEIGHT, WIDTH),
            state=("x m", "y m", "vx m/s", "vy m/s"),
            action=("ax", "ay"),
            fps=FPS,
            render=render,
            versions=self.versions(),
        )

    def environment(self, suite: str, task: int, variant: int | None = None, *, render: str, size: int) -> PointEnv:
        return PointEnv(suite, task)

    def begin(
        self, env: PointEnv, *, seed: int, init_state: int | None, settle_steps: int, moved: int | None = None
    ) -> None:
        rng = np.random.default_rng([seed, 0 if init_state is None else init_state])
        env.state = np.concatenate([rng.uniform(-0.2, 0.2, 2), np.zeros(2)])
        if moved is not None:
            env.state[0] += 0.1

    def can_move(self, suite: str, task: int) -> bool:
        return task != 2

    def observer(self, env: PointEnv, task: int) -> PointObserver:
        return PointObserver(env)

    def film(self, observation: Observation) -> np.ndarray:
        return observation[CAMERAS[0]]

    def demonstrator(self) -> PointDemonstrator:
        return PointDemonstrator()

    def usual(self, suite: str) -> Usual | None:
        return None

    def examine(self, suite: str, render: str) -> list[Check]:
        return []

    def setting(self, suite: str, render: str) -> str:
        return ""


POINT: Any = Point()
