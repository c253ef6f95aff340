"""A robot plugin for LeRobot: a hand without an arm, simulated. With this folder on the path, LeRobot finds it.

Two cameras, 8 states and 7 actions, laid out as in LIBERO. An action moves the hand by what it says: nothing has mass.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from lerobot.robots import Robot, RobotConfig
from numpy.typing import NDArray

AXES = ("x", "y", "z", "rx", "ry", "rz")
STATES = (*(f"{axis}.pos" for axis in AXES), "finger_left.pos", "finger_right.pos")
ACTIONS = (*(f"{axis}.vel" for axis in AXES), "gripper.pos")
STEP = np.array([0.05] * 3 + [0.5] * 3)  # m and rad, of an action of 1
OPEN = 0.04  # m, each finger
BOWL = np.array([0.12, -0.08])  # m, on the table


@RobotConfig.register_subclass("point")
@dataclass(kw_only=True)
class PointConfig(RobotConfig):
    """`size` of the images in px; `log`, where each action goes as a line of JSON, with the state that it led to."""

    size: int = 64
    log: Path | None = None


class Point(Robot):
    """Table of 0.6 m x 0.6 m, seen from above and from the hand."""

    config_class = PointConfig
    name = "point"

    def __init__(self, config: PointConfig):
        super().__init__(config)
        self.config = config
        self.state = np.array([0.0, 0.0, 0.2, 0.0, 0.0, 0.0, OPEN, -OPEN])
        self._connected = False

    @cached_property
    def observation_features(self) -> dict[str, Any]:
        shape = (self.config.size, self.config.size, 3)
        return dict.fromkeys(STATES, float) | {"image": shape, "image2": shape}

    @cached_property
    def action_features(self) -> dict[str, Any]:
        return dict.fromkeys(ACTIONS, float)

    @property
    def is_connected(self) -> bool:
        return self._connected

    def connect(self, calibrate: bool = True) -> None:
        self._connected = True

    def disconnect(self) -> None:
        self._connected = False

    @property
    def is_calibrated(self) -> bool:
        return True

    def calibrate(self) -> None:
        """Nothing to do."""

    def configure(self) -> None:
        """Nothing to do."""

    def get_observation(self) -> dict[str, Any]:
        """States by name, images uint8 (H, W, 3)."""
        hand = self.state[:2]
        images = {"image": self._picture(BOWL, hand), "image2": self._picture(BOWL - hand)}
        return dict(zip(STATES, self.state.tolist(), strict=True)) | images

    def send_action(self, action: dict[str, float]) -> dict[str, float]:
        """Move by one action; +1 closes the gripper in 8 of them."""
        values = np.array([action[name] for name in ACTIONS])
        self.state[:6] = np.clip(self.state[:6] + np.clip(values[:6], -1, 1) * STEP, -np.pi, np.pi)
        self.state[:3] = np.clip(self.state[:3], -0.3, 0.3)
        finger = np.clip(self.state[6] - values[6] * OPEN / 8, 0, OPEN)
        self.state[6:] = finger, -finger
        if self.config.log:
            with self.config.log.open("a") as file:
                file.write(json.dumps({"action": values.tolist(), "state": self.state.tolist()}) + "\n")
        return action

    def _picture(self, *places: NDArray[np.float64]) -> NDArray[np.uint8]:
        """A grey table with a square at each place (m from the middle), the last the brightest."""
        size = self.config.size
        picture = np.full((size, size, 3), 90, dtype=np.uint8)
        for number, place in enumerate(places):
            row, column = ((np.clip(place, -0.25, 0.25) + 0.3) / 0.6 * size).astype(int)
            picture[row - 4 : row + 4, column - 4 : column + 4] = (220, 80 * number, 40)
        return picture
