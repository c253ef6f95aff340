"""Does a dataset still do what it shows? Its actions are replayed in LIBERO, and faults are named.

Where the seed of an episode is known (`apprentice collect` keeps it) the scene is made again and the task must succeed.
A published dataset has none: objects then lie elsewhere, but the hand still starts where it started and must go where
it went, and the pictures must show the same room from the same side. A fault that is found is repaired, and the replay
repeated: only a fault that explains everything is named, and what remains is the simulator's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from apprentice.common.errors import UserError
from apprentice.common.pool import spread
from apprentice.common.progress import Meter
from apprentice.common.result import Result
from apprentice.data.contract import FILE, Contract
from apprentice.data.dataset import column, instructions, open_dataset
from apprentice.data.images import images
from apprentice.simulators.collection.episode_jobs import Setting, scenes
from apprentice.simulators.collection.likeness import ORIENTATIONS, best_view, likeness
from apprentice.simulators.findings import Finding, agrees, told
from apprentice.simulators.libero.convention import CAMERAS
from apprentice.simulators.libero.convention import contract as convention
from apprentice.simulators.libero.dataset.diagnosis import (
    Fault,
    Replay,
    deviation,
    diagnose,
    followed,
    label_fault,
)
from apprentice.simulators.libero.simulator.env import SETTLE, LiberoEnv, environment
from apprentice.simulators.libero.simulator.suites import SUITES
from apprentice.simulators.libero.simulator.suites import tasks as tasks_of

LIBEROS = "LIBERO's conventions"
STATE, ACTION, EXECUTED = "observation.state", "action", "executed"
SHAPES = {STATE: (8,), ACTION: (7,)}
COMPARED = 4  # images of an episode that are compared, all from its first third: nothing has been moved yet
PASSES = 4  # replays of an episode, each with what was found in the one before repaired
TRACKED = 0.02  # m that the hand may leave its recorded path in a scene that is not the recorded one
ALIKE = 0.5  # correlation below which two images do not show the same
FOLLOWS = 0.7  # correlation of motions below which actions do not drive this hand


@dataclass(frozen=True)
class Trial:
    """A recorded episode to replay, in its scene, or in one of all whose task has its instruction if nobody kept it."""

    scenes: tuple[Setting, ...]
    known: bool
    states: np.ndarray  # (T, 8)
    actions: np.ndarray  # (T, 7), as executed
    compared: np.ndarray  # (K,) steps whose images are compared
    images: np.ndarray  # (K, 2, H, W, 3)
    render: str


@dataclass(frozen=True)
class Replayed:
    states: np.ndarray  # (T, 8)
    success: bool
    alike: np.ndarray  # (2, 2, 4): recorded camera, drawn camera, orientation


def doctor(dataset: Path | str, episodes: int = 6, workers: int = 2) -> Result:
    """Replay episodes of a LIBERO dataset, and print a table of checks.

    Args:
        dataset: a LeRobotDataset folder.
        episodes: how many to replay, spread evenly over the dataset.
        workers: processes.

    Raises UserError if the dataset is none of LIBERO.
    """
    return told(dataset, examine(Path(dataset), episodes, workers))


def examine(root: Path, episodes: int, workers: int) -> list[Finding]:
    """The checks of a dataset. Raises UserError."""
    trials, labels = _trials(root, episodes)
    # What info.json alone claims is not asked: published datasets call their 20 Hz 10, and the replay tells the rate.
    contract = Contract.load(root / "meta") if (root / "meta" / FILE).exists() else Contract()
    fault = Fault()
    with Meter("replay", len(trials)) as meter:
        for attempt in range(PASSES):
            meter.done = 0
            outcomes = _replayed([_repaired(trial, fault) for trial in trials], workers, meter)
            replays = [Replay(*_repaired_arrays(t, fault), o.states) for t, o in zip(trials, outcomes, strict=True)]
            rest = diagnose(replays)
            if rest == Fault() or attempt == PASSES - 1:
                break
            fault = fault.then(rest)
    labelled = fault.then(replace(label_fault(labels, [t.actions for t in trials]), columns=Fault().columns))
    alike = np.mean([outcome.alike for outcome in outcomes], axis=0)
    ours = convention(trials[0].images.shape[-2], trials[0].render)
    versions = ", ".join(f"{name} {version}" for name, version in ours.versions.items())
    return [
        agrees("simulator", Contract(versions=contract.versions), ours, versions if contract.versions else LIBEROS),
        agrees("contract", replace(contract, versions={}), ours, LIBEROS),
        _state_check(fault),
        _gripper_check(labelled),
        _action_check(labelled, followed(replays)),
        *_view_checks(alike),
        _success_check(outcomes, replays, fault) if trials[0].known else _path_check(replays, fault),
    ]


def _trials(root: Path, episodes: int) -> tuple[list[Trial], list[np.ndarray]]:
    """What to replay, and the actions (T, 7) to learn from. Raises UserError if this is no LIBERO dataset."""
    dataset = open_dataset(root)
    features = dataset.meta.features
    if missing := [key for key in (*CAMERAS, STATE, ACTION) if key not in features]:
        raise UserError(
            f"expected the features of LeRobot's LIBERO datasets in {root}, found no {', '.join(missing)}; "
            "fix: rename yours (only LIBERO datasets can be replayed here)"
        )
    if wrong := {
        key: features[key]["shape"] for key, shape in SHAPES.items() if tuple(features[key]["shape"]) != shape
    }:
        raise UserError(f"expected the shapes {SHAPES} in {root}, found {wrong}; fix: record LIBERO's own")
    lengths = np.asarray(dataset.meta.episodes["length"])
    states, actions, texts = column(dataset, STATE), column(dataset, ACTION), instructions(dataset)
    executed = column(dataset, EXECUTED) if EXECUTED in features else actions
    recorded, pictures = _scenes(root, len(lengths)), [images(dataset, camera) for camera in CAMERAS]
    trials, labels = [], []
    for episode in sorted({int(e) for e in np.linspace(0, len(lengths) - 1, max(episodes, 1))}):
        begin = int(lengths[:episode].sum())
        span = slice(begin, begin + int(lengths[episode]))
        compared = np.linspace(0, lengths[episode] // 3, COMPARED).astype(int)
        trials.append(
            Trial(
                scenes=(recorded[episode],) if recorded else _scenes_named(texts[begin]),
                known=bool(recorded),
                states=states[span],
                actions=executed[span],
                compared=compared,
                images=np.stack([each[begin + compared] for each in pictures], 1),
                render=Contract.of_dataset(root).render or "fast",
            )
        )
        labels.append(actions[span])
    return trials, labels


def _scenes(root: Path, episodes: int) -> list[Setting]:
    """That of each episode, or none if nobody kept them."""
    path = root / "meta" / "collection.json"
    if not path.exists():
        return []
    found = scenes(root)
    if len(found) != episodes:
        raise UserError(
            f"expected the {len(found)} episodes that {path} lists, found {episodes}; fix: remove that file, "
            "to check the dataset without its seeds"
        )
    return found


@cache
def _scenes_named(instruction: str) -> tuple[Setting, ...]:
    """Any of each task with this instruction, those of the test suites first. Raises UserError."""
    named = [task for suite in SUITES for task in tasks_of(suite) if task.instruction == instruction]
    found = [Setting(task.suite, task.index, None, 0, 0.0) for task in named]
    if not found:
        raise UserError(
            f"expected an instruction of the suites {', '.join(SUITES)}, found {instruction!r}; "
            "fix: write it as LIBERO does (only LIBERO datasets can be replayed here)"
        )
    return tuple(found)


def _repaired(trial: Trial, fault: Fault) -> Trial:
    states, actions = _repaired_arrays(trial, fault)
    return replace(trial, states=states, actions=actions)


def _repaired_arrays(trial: Trial, fault: Fault) -> tuple[np.ndarray, np.ndarray]:
    return fault.repaired(trial.states, trial.actions)


def _replayed(trials: Sequence[Trial], workers: int, meter: Meter) -> list[Replayed]:
    outcomes: dict[int, Replayed] = {}
    for index, outcome in spread(_replay, list(enumerate(trials)), workers):
        outcomes[index] = outcome
        meter.advance()
    return [outcomes[index] for index in range(len(trials))]


def _replay(job: tuple[int, Trial]) -> tuple[int, Replayed]:
    """Replay one episode in a worker, in that of its possible scenes which looks most like it."""
    index, trial = job
    scene = max(trial.scenes, key=lambda s: _first_look(trial, s).max()) if trial.scenes[1:] else trial.scenes[0]
    env = _begun(trial, scene)
    states, alike, success = [], [], False
    for step, action in enumerate(trial.actions):
        states.append(env.proprioception())
        near = np.linalg.norm(states[-1][:3] - trial.states[step, :3]) < TRACKED
        if step in trial.compared and (near or step == 0):
            alike.append(_likenesses(env, trial.images[list(trial.compared).index(step)]))
        success = env.step(action)
    return index, Replayed(np.array(states), success, np.mean(alike, axis=0))


def _first_look(trial: Trial, scene: Setting) -> np.ndarray:
    return _likenesses(_begun(trial, scene), trial.images[0])


def _begun(trial: Trial, scene: Setting) -> LiberoEnv:
    """The environment at the episode's start; in a scene that is not known, at its hand's start if within reach."""
    env = environment(scene.suite, scene.task, scene.variant, render=trial.render, size=trial.images.shape[-2])
    env.reset(seed=scene.seed, start_noise=scene.start_noise)
    if scene.start is not None:
        env.resume(scene.start)
    if not trial.known:
        now, then = env.proprioception(), trial.states[0]
        turn = (Rotation.from_rotvec(then[3:6]) * Rotation.from_rotvec(now[3:6]).inv()).as_rotvec()
        if np.abs(then[:3] - now[:3]).max() < 0.2 and np.abs(turn).max() < 0.8:
            env.move_hand(then[:3] - now[:3], turn)
            env.step(SETTLE)
    return env


def _likenesses(env: LiberoEnv, images: np.ndarray) -> np.ndarray:
    """Likenesses (2, 2, 4) of recorded images (2, H, W, 3) to what the cameras see now."""
    drawn = env.observe()
    return np.array([[likeness(picture, drawn[camera]) for camera in CAMERAS] for picture in images])


def _state_check(fault: Fault) -> Finding:
    expected = "x y z, axis-angle, two fingers"
    if fault.columns == Fault().columns:
        return Finding("state", True, expected, "in order", "")
    found = f"columns look permuted: {expected} are found in columns {' '.join(map(str, fault.columns))}"
    return Finding("state", False, expected, found, f"reorder: state[:, {list(fault.columns)}]")


def _gripper_check(fault: Fault) -> Finding:
    if fault.gripper == 1:
        return Finding("gripper", True, "+1 closes", "+1 closes", "")
    flipped = "sign looks flipped: +1 opens"
    return Finding("gripper", False, "+1 closes", flipped, "negate the last column of the actions")


def _action_check(fault: Fault, follows: float) -> Finding:
    expected = "full action: 0.05 m, 0.5 rad"
    move, turn = fault.translation, fault.rotation
    if follows < FOLLOWS:
        found = f"the hand does not go where it went (correlation {follows:.2f})"
        return Finding("actions", False, expected, found, "record relative actions in the world's frame, in this order")
    if move == turn == 1:
        return Finding("actions", True, expected, f"the hand follows (correlation {follows:.2f})", "")
    found = f"actions look scaled by {move:g}"
    if move != turn:
        found = f"translations look scaled by {move:g}, rotations by {turn:g}"
    return Finding("actions", False, expected, found, f"divide translations by {move:g} and rotations by {turn:g}")


def _view_checks(alike: np.ndarray) -> list[Finding]:
    """Which camera each column shows, and which side is up, from likenesses (2, 2, 4)."""
    views = [best_view(alike[camera], camera) for camera in range(2)]
    names = ("the scene's camera", "the wrist's camera")
    cameras = ", ".join(names[found] for found, _ in views)
    strange = [names[camera] for camera in range(2) if alike[camera].max() < ALIKE]
    turned = [f"{names[found]} is {ORIENTATIONS[side]}" for found, side in views if side]
    likenesses = ", ".join(f"{alike[camera][view]:.2f}" for camera, view in enumerate(views))
    if strange:
        seen = Finding(
            "cameras", False, ", ".join(names), f"{' and '.join(strange)} shows something else", "record again"
        )
    elif [found for found, _ in views] != [0, 1]:
        what = "cameras look swapped" if [found for found, _ in views] == [1, 0] else "one camera is there twice"
        seen = Finding("cameras", False, ", ".join(names), f"{what}: {cameras}", "rename the image columns")
    else:
        seen = Finding("cameras", True, ", ".join(names), f"{cameras} (correlation {likenesses})", "")
    fix = "turn or flip the images once, where they are recorded"
    upright = Finding("orientation", not turned, "images as LeRobot's", "; ".join(turned) or "upright", fix)
    return [seen, upright]


def _success_check(outcomes: list[Replayed], replays: list[Replay], fault: Fault) -> Finding:
    """In the recorded scene the recorded actions must succeed."""
    successes, worst = sum(outcome.success for outcome in outcomes), max(map(deviation, replays))
    found = f"{successes} of {len(outcomes)} succeed{_after(fault)}, {1000 * worst:.1f} mm from the recorded path"
    fix = "the simulator, its assets or the recording changed: install what recorded it, or collect again"
    return Finding("replay", successes == len(outcomes), "every episode succeeds", found, fix)


def _path_check(replays: list[Replay], fault: Fault) -> Finding:
    """In another scene the hand must go where it went, until it touches something."""
    middle = float(np.median([deviation(replay) for replay in replays]))
    expected = f"the hand within {1000 * TRACKED:.0f} mm until it closes"
    found = f"{1000 * middle:.1f} mm in the median of {len(replays)} episodes{_after(fault)}; no seeds to test success"
    fix = "the simulator or the robot's controller changed: install what recorded it"
    return Finding("replay", middle < TRACKED, expected, found, fix)


def _after(fault: Fault) -> str:
    return "" if fault == Fault() else " once the faults above are repaired"
