"""What the simulator did where its references were made, for `examination.py` to compare with.

    python -m apprentice.simulators.libero.evaluation.references  # with the simulator installed here: 2 minutes
    python -m apprentice.simulators.libero.evaluation.references libero_10  # of one suite

Of one task of each suite: where things lie in the first initial state once they settled, small pictures of it, and a
demonstration that succeeds, with the robot's way through it.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from apprentice.common.errors import UserError
from apprentice.common.files import fingerprint, replacing
from apprentice.common.progress import console
from apprentice.simulators.libero import PACKAGES
from apprentice.simulators.libero.convention import CAMERAS
from apprentice.simulators.libero.demonstrator.controller import Style
from apprentice.simulators.libero.demonstrator.demonstrator import solve
from apprentice.simulators.libero.simulator.env import LiberoEnv
from apprentice.simulators.libero.simulator.suites import initial_states, tasks

FILE = Path(__file__).with_name("references.npz")
TASKS = {"libero_goal": 8, "libero_spatial": 0, "libero_object": 0, "libero_10": 2, "libero_90": 0}  # a short one each
RENDERS = ("fast", "exact")
SIDE = 32  # px: averages over 4 x 4, which leave out how a driver smooths edges
AFTER_SUCCESS = 3  # steps of the demonstration that are kept
LOOK_EVERY = 10  # steps


@dataclass(frozen=True)
class Take:
    """What the simulator did with a demonstration's actions.

    Attributes:
        qpos: (nq,) m and rad, once everything settled.
        images: (2, SIDE, SIDE, 3) uint8, of both cameras then.
        states: (T, 8) proprioception before each action.
        success: the goal held at some step.
    """

    qpos: np.ndarray
    images: np.ndarray
    states: np.ndarray
    success: bool


@dataclass(frozen=True)
class Reference:
    """A suite's reference.

    Attributes:
        task: index of the task that is played.
        content: `content_of` the suite.
        actions: (T, 7), which succeed.
        qpos, states: as in `Take`.
        images: (2, 2, SIDE, SIDE, 3) uint8: fast and exact, both cameras.
        colours: (2, 3) mean level, 0 to 1, of both cameras' images over the demonstration.
        versions: of PACKAGES where it was made.
    """

    task: int
    content: str
    actions: np.ndarray
    qpos: np.ndarray
    states: np.ndarray
    images: np.ndarray
    colours: np.ndarray
    versions: dict[str, str]


def reference(suite: str) -> Reference:
    """The reference of a suite, or of the one that it varies (libero_goal for libero_goal_swap)."""
    suite = standard(suite)
    with np.load(FILE, allow_pickle=False) as arrays:
        about = json.loads(str(arrays["about"]))
        own = {name: arrays[f"{suite}.{name}"] for name in ("actions", "qpos", "states", "images", "colours")}
    return Reference(TASKS[suite], about[suite], versions=about["versions"], **own)


def standard(suite: str) -> str:
    """The standard suite that a suite varies; its own name if it is one. Raises UserError if there is none."""
    found = [name for name in TASKS if suite == name or suite.startswith(f"{name}_")]
    if not found:
        raise UserError(f"expected a suite of {', '.join(TASKS)}, found {suite!r}; fix: name one of them")
    return found[0]


def versions() -> dict[str, str]:
    """Of the packages that decide physics, pictures and tasks."""
    return {name: version(name) for name in PACKAGES}


def content_of(suite: str) -> str:
    """Hash of a suite's instructions, goals and initial states."""
    parts = [(t.instruction, t.bddl.read_bytes(), initial_states(suite, t.index).tobytes()) for t in tasks(suite)]
    return fingerprint(*(part for task in parts for part in task))


def play(env: LiberoEnv, actions: np.ndarray) -> Take:
    """Put an environment into its task's first initial state, and execute actions (T, 7)."""
    env.reset(seed=0, init_state=0)
    qpos, images = env.data.qpos.copy(), small_images(env)
    states, success = [], False
    for action in actions:
        states.append(env.proprioception())
        success = env.step(action) or success
    return Take(qpos, images, np.array(states), success)


def small_images(env: LiberoEnv) -> np.ndarray:
    """What both cameras see, averaged to (2, SIDE, SIDE, 3)."""
    seen = env.observe()
    pictures = [Image.fromarray(seen[camera]).resize((SIDE, SIDE), Image.Resampling.BOX) for camera in CAMERAS]
    return np.array([np.asarray(picture) for picture in pictures])


def build(suites: Sequence[str]) -> None:
    """Write the references of these suites, and keep those of others. Raises UserError if a demonstration fails."""
    arrays, about = _written()
    for suite in suites or TASKS:
        own = _made(suite, TASKS[suite])
        arrays |= {f"{suite}.{name}": array for name, array in own.items()}
        about |= {"versions": versions(), suite: content_of(suite)}
        with replacing(FILE) as fresh:
            np.savez_compressed(fresh, about=np.array(json.dumps(about)), **arrays)  # type: ignore[arg-type]
        console.print(f"{suite} {TASKS[suite]}: {len(own['actions'])} steps")


def _written() -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    if not FILE.exists():
        return {}, {}
    with np.load(FILE, allow_pickle=False) as stored:
        arrays = dict(stored)
    return arrays, json.loads(str(arrays.pop("about")))


def _made(suite: str, task: int) -> dict[str, np.ndarray]:
    """A demonstration, replayed, and what the cameras see at its start, drawn both ways."""
    fast = LiberoEnv(suite, task)
    fast.reset(seed=0, init_state=0)
    episode = solve(fast, Style(), np.random.default_rng(0))
    if episode.failure:
        raise UserError(
            f"expected a demonstration of {suite} {task}, found {episode.failure}; fix: choose another task"
        )
    end = episode.record.successes.index(True) + AFTER_SUCCESS
    levels = []
    for snapshot in episode.record.snapshots[:end:LOOK_EVERY]:
        fast.restore(snapshot)
        levels.append(small_images(fast).mean(axis=(1, 2)) / 255)
    actions = np.round(episode.record.executed[:end], 3).astype(np.float32)
    take = play(fast, actions)
    if not take.success:
        raise UserError(
            f"expected actions for {suite} {task} to succeed again, found that they fail; fix: another task"
        )
    fast.close()
    exact = LiberoEnv(suite, task, render="exact")
    exact.reset(seed=0, init_state=0)
    images = np.array([take.images, small_images(exact)])
    exact.close()
    series = {"actions": actions, "qpos": take.qpos, "states": take.states, "colours": np.mean(levels, axis=0)}
    return {"images": images} | {name: array.astype(np.float32) for name, array in series.items()}


if __name__ == "__main__":
    build(sys.argv[1:])
