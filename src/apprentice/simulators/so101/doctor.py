"""Does a dataset of the twin still do what it shows? Its actions are replayed, from the seeds that it keeps.

A dataset without `meta/collection.json`, such as one of a real arm, has no seeds: its scene cannot be made again.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from apprentice.common.errors import UserError
from apprentice.common.pool import spread
from apprentice.common.progress import Meter
from apprentice.common.result import Result
from apprentice.data.contract import FILE, Contract
from apprentice.data.dataset import column, open_dataset
from apprentice.data.images import images
from apprentice.simulators.collection.episode_jobs import Setting, scenes
from apprentice.simulators.collection.likeness import ORIENTATIONS, best_view, likeness
from apprentice.simulators.findings import Finding, agrees, told
from apprentice.simulators.so101.simulator.env import environment
from apprentice.simulators.so101.suites import check_simulator
from apprentice.simulators.so101.units import CAMERAS, contract

STATE, ACTION, EXECUTED = "observation.state", "action", "executed"
COMPARED = 4  # images of an episode, spread over it
SAME = 0.5  # degrees, or hundredths of the gripper's way, that states may differ by
ALIKE = 0.5  # correlation below which two images do not show the same


@dataclass(frozen=True)
class Trial:
    """A recorded episode to replay."""

    setting: Setting
    states: np.ndarray  # (T, 6)
    actions: np.ndarray  # (T, 6), as executed
    steps: np.ndarray  # (K,) whose images are compared
    images: np.ndarray  # (K, 2, H, W, 3)
    render: str


@dataclass(frozen=True)
class Replayed:
    apart: float  # largest difference of states, in LeRobot's units
    success: bool
    alike: np.ndarray  # (2, 2, 4): recorded camera, drawn camera, orientation


def doctor(dataset: Path | str, episodes: int = 6, workers: int = 2) -> Result:
    """Replay episodes of a dataset of the twin, and print a table of checks.

    Args:
        dataset: a LeRobotDataset folder.
        episodes: how many to replay, spread evenly over the dataset.
        workers: processes.

    Raises UserError if the dataset was not collected in the twin.
    """
    return told(dataset, examine(Path(dataset), episodes, workers))


def examine(root: Path, episodes: int, workers: int) -> list[Finding]:
    """The checks of a dataset. Raises UserError."""
    check_simulator()
    trials = _trials(root, episodes)
    outcomes: list[Replayed] = []
    with Meter("replay", len(trials)) as meter:
        for outcome in spread(_replay, trials, workers):
            outcomes.append(outcome)
            meter.advance()
    kept = Contract.load(root / "meta") if (root / "meta" / FILE).exists() else Contract()
    ours = contract(trials[0].images.shape[-2], trials[0].render)
    versions = ", ".join(f"{name} {version}" for name, version in ours.versions.items())
    alike = np.mean([outcome.alike for outcome in outcomes], axis=0)
    return [agrees("contract", kept, ours, versions), *_view_checks(alike), *_replay_checks(outcomes)]


def _trials(root: Path, episodes: int) -> list[Trial]:
    dataset = open_dataset(root)
    features, collected = dataset.meta.features, root / "meta" / "collection.json"
    if missing := [key for key in (*CAMERAS, STATE, ACTION) if key not in features]:
        raise UserError(
            f"expected the features of an SO-101 in {root}, found no {', '.join(missing)}; fix: rename yours"
        )
    if not collected.exists():
        raise UserError(
            f"expected {collected}, which keeps each episode's seed, found none; fix: collect in the twin (what a real "
            "arm recorded cannot be replayed here)"
        )
    lengths = np.asarray(dataset.meta.episodes["length"])
    settings = scenes(root)
    if len(settings) != len(lengths):
        raise UserError(
            f"expected the {len(settings)} episodes that {collected} lists, found {len(lengths)}; fix: collect again"
        )
    states, actions = column(dataset, STATE), column(dataset, EXECUTED if EXECUTED in features else ACTION)
    pictures = [images(dataset, camera) for camera in CAMERAS]
    trials = []
    for episode in sorted({int(e) for e in np.linspace(0, len(lengths) - 1, max(episodes, 1))}):
        begin, length = int(lengths[:episode].sum()), int(lengths[episode])
        steps = np.linspace(0, length - 1, COMPARED).astype(int)
        trials.append(
            Trial(
                setting=settings[episode],
                states=states[begin : begin + length],
                actions=actions[begin : begin + length],
                steps=steps,
                images=np.stack([each[begin + steps] for each in pictures], 1),
                render=Contract.of_dataset(root).render or "fast",
            )
        )
    return trials


def _replay(trial: Trial) -> Replayed:
    """Replay one episode in a worker."""
    setting = trial.setting
    env = environment(setting.suite, setting.task, render=trial.render, size=trial.images.shape[-2])
    env.reset(setting.seed)
    if setting.start is not None:
        env.resume(setting.start)
    apart, alike, success = 0.0, [], False
    for step, action in enumerate(trial.actions):
        apart = max(apart, float(np.abs(env.proprioception() - trial.states[step]).max()))
        if step in trial.steps:
            drawn = env.observe()
            recorded = trial.images[list(trial.steps).index(step)]
            alike.append([[likeness(picture, drawn[camera]) for camera in CAMERAS] for picture in recorded])
        success = env.step(action)
    return Replayed(apart, success, np.mean(alike, axis=0))


def _view_checks(alike: np.ndarray) -> list[Finding]:
    """Which camera each column shows, and which side is up, from likenesses (2, 2, 4)."""
    views = [best_view(alike[camera], camera) for camera in range(2)]
    names = ("the front camera", "the wrist's camera")
    shown_by = ", ".join(names[camera] for camera, _ in views)
    likenesses = ", ".join(f"{alike[camera][view]:.2f}" for camera, view in enumerate(views))
    right = [camera for camera, _ in views] == [0, 1] and all(alike[c].max() >= ALIKE for c in range(2))
    turned = [f"{names[camera]} is {ORIENTATIONS[side]}" for camera, side in views if side]
    found, fix = f"{shown_by} (correlation {likenesses})", "rename or record the image columns again"
    mend = "turn or flip the images once, where they are recorded"
    return [
        Finding("cameras", right, ", ".join(names), found, fix),
        Finding("orientation", not turned, "upright images", "; ".join(turned) or "upright", mend),
    ]


def _replay_checks(outcomes: list[Replayed]) -> list[Finding]:
    """The recorded actions must lead where they led, and succeed."""
    successes, apart = sum(outcome.success for outcome in outcomes), max(outcome.apart for outcome in outcomes)
    fix = "the simulator or the recording changed: install what recorded it, or collect again"
    expected, found = f"states within {SAME:g} degrees", f"{apart:.2g} degrees off at most"
    succeeded = f"{successes} of {len(outcomes)} succeed"
    return [
        Finding("states", apart <= SAME, expected, found, fix),
        Finding("replay", successes == len(outcomes), "every episode succeeds", succeeded, fix),
    ]
