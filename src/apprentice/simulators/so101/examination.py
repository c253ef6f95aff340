"""Is this the twin that results are compared with? A short motion and two pictures, against kept numbers."""

import os
import platform
from contextlib import closing
from pathlib import Path

import numpy as np

from apprentice.common.files import fingerprint
from apprentice.common.pool import spread
from apprentice.simulators.base import DIFFERS, INVALID, PASSED, Check
from apprentice.simulators.so101.simulator.env import TwinEnv
from apprentice.simulators.so101.suites import CLEAN, REAL
from apprentice.simulators.so101.units import CAMERAS, versions

FRAMES = 45
SAME, ELSEWHERE = 0.02, 0.5  # degrees: as on another processor; as with other physics
LEVELS, OTHER_LEVELS = 3.0, 12.0  # of 255, mean: as with another driver; as of another scene
STATE = np.array([30.0, -60.0, 45.0, 80.0, -60.0, 60.0])  # what the motion leads to, and what the twin reads then
EXPECTED_STATE = (30.264, -59.936, 45.029, 80.009, -59.736, 60.188)
EXPECTED_COLOURS = ((156.9, 142.3, 115.1), (152.0, 141.9, 139.0))


def examine(suite: str, render: str) -> list[Check]:
    """All checks; every suite has the arm and the scene of the clean one, and "exact" adds shadows alone."""
    ((state, colours),) = spread(_rehearse, [0], 1)
    return compare(state, colours)


def compare(state: np.ndarray, colours: np.ndarray) -> list[Check]:
    """What the twin did, a state (6,) and mean colours (2, 3), against what it did when its numbers were kept."""
    off = float(np.abs(state - EXPECTED_STATE).max())
    away = float(np.abs(colours - EXPECTED_COLOURS).max())
    return [
        Check(
            "motion",
            _graded(off, SAME, ELSEWHERE),
            f"joints within {SAME:g} degrees of the reference",
            f"{off:.2g} degrees off",
            "another MuJoCo or another arm: install the version that the contract names",
        ),
        Check(
            "picture",
            _graded(away, LEVELS, OTHER_LEVELS),
            f"mean levels within {LEVELS:g} of 255",
            f"{away:.1f} off",
            "another OpenGL driver? set MUJOCO_GL to egl or osmesa",
        ),
    ]


def setting(suite: str, render: str) -> str:
    """Hash of all that the answer depends on."""
    machine = [platform.node(), platform.machine(), os.environ.get("MUJOCO_GL", "")]
    code = sorted(Path(__file__).parent.rglob("*.py"))
    return fingerprint(suite, render, str(versions()), *machine, *code)


def _rehearse(task: int) -> tuple[np.ndarray, np.ndarray]:
    """In a worker: lead the arm to STATE, in the clean scene of seed 0."""
    with closing(TwinEnv(f"{REAL}_{CLEAN}", task)) as env:
        return play(env)


def play(env: TwinEnv) -> tuple[np.ndarray, np.ndarray]:
    """The state (6,) in LeRobot's units after the motion, and each camera's mean colours (2, 3)."""
    env.reset(0)
    start = env.to_action(env.start)
    for frame in range(1, FRAMES + 1):
        env.step(start + (STATE - start) * frame / FRAMES)
    seen = env.observe()
    return env.proprioception(), np.array([seen[camera].mean(axis=(0, 1)) for camera in CAMERAS])


def _graded(off: float, same: float, elsewhere: float) -> str:
    return PASSED if off <= same else DIFFERS if off <= elsewhere else INVALID
