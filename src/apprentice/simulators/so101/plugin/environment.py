"""The twin as an environment of LeRobot: `lerobot-eval --env.type=so101_twin --env.task=block,drawer`.

`--env.suite` chooses the level of faults; `--env.width` the size of the images, 640 for those of a real camera.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE

from apprentice.common.errors import UserError
from apprentice.simulators.so101.suites import FPS, INSTRUCTIONS, MOST_STEPS, REAL, TASK_NAMES, check_simulator
from apprentice.simulators.so101.units import CAMERAS, image_size

VIEWS = tuple(camera.rpartition(".")[2] for camera in CAMERAS)
STATE, PIXELS = "agent_pos", "pixels"
DEGREES = 180.0  # that a joint's target may be at most


def task_named(name: str) -> int:
    """The number of a task, from one of TASK_NAMES, its number, or its instruction. Raises UserError."""
    known = {**{said: n for n, said in enumerate(TASK_NAMES)}, **{said: n for n, said in enumerate(INSTRUCTIONS)}}
    known |= {str(number): number for number in range(len(TASK_NAMES))}
    if name.strip() not in known:
        raise UserError(f"expected a task of {', '.join(TASK_NAMES)}, found {name!r}; fix: name one of them")
    return known[name.strip()]


class TwinGym(gym.Env):
    """One task; `reset(seed=...)` draws layout and faults."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": FPS}  # noqa: RUF012

    def __init__(self, suite: str, task: int, width: int, most_steps: int):
        check_simulator()
        from apprentice.simulators.so101.simulator.env import TwinEnv

        self.twin = TwinEnv(suite, task, size=width)
        self.render_mode = "rgb_array"
        self.task = self.task_description = INSTRUCTIONS[task]
        self._max_episode_steps, self._steps = most_steps, 0
        shape, box = (*image_size(width), 3), gym.spaces.Box
        self.observation_space = gym.spaces.Dict(
            {
                STATE: box(-np.inf, np.inf, (6,), np.float64),
                PIXELS: gym.spaces.Dict({view: box(0, 255, shape, np.uint8) for view in VIEWS}),
            }
        )
        self.action_space = box(-DEGREES, DEGREES, (6,), np.float32)
        self._seen: dict[str, np.ndarray] = {}

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        self.twin.reset(int(self.np_random.integers(2**31)) if seed is None else seed)
        self._steps = 0
        return self._observation(), {"is_success": False}

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        success = self.twin.step(action)
        self._steps += 1
        over = self._steps >= self._max_episode_steps
        return self._observation(), float(success), success, over, {"is_success": success}

    def render(self) -> np.ndarray:
        """What the front camera saw last (H, W, 3)."""
        return self._seen[CAMERAS[0]]

    def close(self) -> None:
        self.twin.close()

    def _observation(self) -> dict:
        self._seen = self.twin.observe()
        state = self._seen["observation.state"].astype(np.float64)
        return {STATE: state, PIXELS: {view: self._seen[key] for view, key in zip(VIEWS, CAMERAS, strict=True)}}


@EnvConfig.register_subclass("so101_twin")
@dataclass
class TwinEnvConfig(EnvConfig):
    """`task`: one or more of drawer, cups, blocks, sponge, block, with commas between; `suite`: level of faults."""

    task: str | None = ",".join(TASK_NAMES)
    suite: str = REAL
    fps: int = FPS
    width: int = 128
    episode_length: int = MOST_STEPS
    features: dict[str, PolicyFeature] = field(default_factory=dict)
    features_map: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = (*image_size(self.width), 3)
        images = {f"{PIXELS}/{view}": PolicyFeature(FeatureType.VISUAL, shape) for view in VIEWS}
        vectors = {ACTION: PolicyFeature(FeatureType.ACTION, (6,)), STATE: PolicyFeature(FeatureType.STATE, (6,))}
        self.features = vectors | images
        self.features_map = {ACTION: ACTION, STATE: OBS_STATE}
        self.features_map |= {f"{PIXELS}/{view}": f"{OBS_IMAGES}.{view}" for view in VIEWS}

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        return {}

    def create_envs(self, n_envs: int, use_async_envs: bool = False) -> dict[str, dict[int, gym.vector.VectorEnv]]:
        """A vector environment a task, by the task's number. Raises UserError for an unknown task."""
        chosen = [task_named(name) for name in (self.task or "").split(",")]
        return {"so101_twin": {task: self._vector(task, n_envs, use_async_envs) for task in chosen}}

    def _vector(self, task: int, count: int, use_async: bool) -> gym.vector.VectorEnv:
        mode = gym.vector.AutoresetMode.SAME_STEP
        make: Callable[[], gym.Env] = partial(TwinGym, self.suite, task, self.width, self.episode_length)
        if use_async and count > 1:
            return gym.vector.AsyncVectorEnv([make] * count, autoreset_mode=mode, context="forkserver")
        return gym.vector.SyncVectorEnv([make] * count, autoreset_mode=mode)
