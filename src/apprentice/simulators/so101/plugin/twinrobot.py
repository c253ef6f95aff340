"""The twin as a robot of LeRobot: `lerobot-rollout --robot.type=so101_twin --robot.scene=block`.

It has the features of `so101_follower`, with cameras `front` and `wrist`. Time passes when an action is sent: 1/30 s.
LeRobot finds the class of a configuration by its name without "Config", in a module of that name: hence this file's.
"""

import logging
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from lerobot.robots import Robot, RobotConfig

from apprentice.simulators.so101.plugin.environment import VIEWS, task_named
from apprentice.simulators.so101.suites import REAL, check_simulator
from apprentice.simulators.so101.units import CAMERAS, NAMES, image_size

if TYPE_CHECKING:
    from apprentice.simulators.so101.simulator.env import TwinEnv

logger = logging.getLogger(__name__)


@RobotConfig.register_subclass("so101_twin")
@dataclass(kw_only=True)
class TwinRobotConfig(RobotConfig):
    """`scene`: drawer, cups, blocks, sponge or block; `suite`: level of faults; `seed`: of layout and faults."""

    scene: str = "block"
    suite: str = REAL
    seed: int = 0
    width: int = 640


class TwinRobot(Robot):
    """An SO-101 follower that is simulated."""

    config_class = TwinRobotConfig
    name = "so101_twin"

    def __init__(self, config: TwinRobotConfig):
        super().__init__(config)
        self.config = config
        self.twin: TwinEnv | None = None
        self.success = False  # did the scene's goal hold at some step?

    @cached_property
    def observation_features(self) -> dict[str, Any]:
        return dict.fromkeys(NAMES, float) | dict.fromkeys(VIEWS, (*image_size(self.config.width), 3))

    @cached_property
    def action_features(self) -> dict[str, Any]:
        return dict.fromkeys(NAMES, float)

    @property
    def is_connected(self) -> bool:
        return self.twin is not None

    def connect(self, calibrate: bool = True) -> None:
        """Put the arm into its scene. Raises UserError without MuJoCo."""
        check_simulator()
        from apprentice.simulators.so101.simulator.env import TwinEnv

        self.twin = TwinEnv(self.config.suite, task_named(self.config.scene), size=self.config.width)
        self.twin.reset(self.config.seed)
        self.success = False

    def disconnect(self) -> None:
        if self.twin is not None:
            logger.info(
                "%s: the goal of scene %s %s", self.name, self.config.scene, "held" * self.success or "never held"
            )
            self.twin.close()
            self.twin = None

    @property
    def is_calibrated(self) -> bool:
        return True

    def calibrate(self) -> None:
        """Nothing to do."""

    def configure(self) -> None:
        """Nothing to do."""

    def get_observation(self) -> dict[str, Any]:
        """Joints by name, images uint8 (H, W, 3) by camera."""
        seen = self._connected().observe()
        joints = dict(zip(NAMES, seen["observation.state"].tolist(), strict=True))
        return joints | {view: seen[key] for view, key in zip(VIEWS, CAMERAS, strict=True)}

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        """Run one action for 1/30 s."""
        self.success |= self._connected().step(np.array([float(action[name]) for name in NAMES]))
        return action

    def _connected(self) -> "TwinEnv":
        if self.twin is None:
            raise ConnectionError(f"{self.name} is not connected")
        return self.twin
