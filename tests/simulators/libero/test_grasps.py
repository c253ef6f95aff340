"""What a policy is shown around a grasp, by the simulator's truth: LIBERO-Object's butter is a flat box, 17 mm high."""

from collections.abc import Iterator

import numpy as np
import pytest

from apprentice.simulators.libero.demonstrator.controller import CLOSE, UP, Controller, Record, Style
from apprentice.simulators.libero.demonstrator.demonstrator import START_NOISE, demonstrate, solve
from apprentice.simulators.libero.demonstrator.grasping import plan_grasps
from apprentice.simulators.libero.demonstrator.skills import lift_off, take
from apprentice.simulators.libero.simulator.env import LiberoEnv

BUTTER = "butter_1"


@pytest.fixture(scope="module")
def butter() -> Iterator[LiberoEnv]:
    env = LiberoEnv("libero_object", 6)
    yield env
    env.close()


@pytest.fixture(scope="module")
def plain(butter: LiberoEnv) -> Record:
    """A demonstration without noise."""
    butter.reset(seed=5, start_noise=START_NOISE)
    episode = solve(butter, Style(speed=0.8), np.random.default_rng(0))
    assert episode.failure is None
    return episode.record


def columns(record: Record) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions (T, 3) of the hand, openings (T,) between the fingers and actions (T, 7)."""
    states = np.array([snapshot.state for snapshot in record.snapshots], dtype=float)
    return states[:, :3], states[:, 6] - states[:, 7], np.array(record.actions)


def closing(actions: np.ndarray) -> int:
    """The first step that closes the fingers."""
    return int(np.argmax(actions[:, 6] == CLOSE))


def test_the_last_3_cm_are_slow_and_the_hand_stands_when_it_closes(plain: Record) -> None:
    positions, _, actions = columns(plain)
    first = closing(actions)
    last = np.flatnonzero(np.linalg.norm(positions - positions[first], axis=1) > 0.03)
    last = last[last < first].max() + 1
    speeds = np.linalg.norm(np.diff(positions, axis=0), axis=1)  # m a step
    assert speeds[:last].max() > 0.008  # it is not slow everywhere
    assert speeds[last:first].max() < 0.0024
    assert speeds[first - 1 : first + 5].max() < 0.001
    idle = np.abs(actions[last:first, :6]).max(axis=1) < 0.05
    assert idle.sum() <= 3  # what hovers open teaches to hover


def test_the_lift_begins_slowly_once_the_fingers_stand(plain: Record) -> None:
    positions, openings, actions = columns(plain)
    first = closing(actions)
    lift = first + int(np.argmax(actions[first:, 2] > 0.1))
    held = openings[lift + 10]
    assert abs(openings[lift] - held) < 0.0005 and openings[lift - 2] - held < 0.003  # seen in the state; at once
    heights = positions[lift : lift + 6, 2] - positions[lift, 2]
    assert 0.004 < heights[5] < 0.011 and np.diff(heights).max() < 0.0024
    assert (positions[lift + 25, 2] - positions[lift, 2]) > 0.06


@pytest.mark.parametrize("seed", [1, 2])
def test_it_never_waits_with_the_object_in_the_hand(butter: LiberoEnv, seed: int) -> None:
    record = demonstrate(butter, seed).record
    _, openings, actions = columns(record)
    shut = np.diff(openings, append=openings[-1]) > -0.0006  # fingers that still close may take their time
    waits = (actions[:, 6] == CLOSE) & shut & (np.abs(actions[:, :6]).max(axis=1) < 0.05)
    waits[: closing(actions) + 2] = False  # fingers that begin to close
    assert waits.sum() > 0 or actions[:, 6].max() == CLOSE
    assert not (waits[2:] & waits[1:-1] & waits[:-2]).any()


def test_the_grasp_is_in_the_middle_of_what_holds(butter: LiberoEnv) -> None:
    """A miss by 3 mm in height or 5 mm sideways is forgiven; one by 10 mm upwards, as it passes the box, is not."""
    butter.reset(seed=0)
    geometry = butter.geometry()
    grasp = plan_grasps(geometry, BUTTER)[0]
    u, v = grasp.rotation[:, 0], grasp.rotation[:, 1]
    for miss, forgiven in ((0.003 * UP, True), (-0.003 * UP, True), (0.005 * (u + v), True), (0.010 * UP, False)):
        butter.reset(seed=0)
        height = geometry.position(BUTTER)[2]
        hand = Controller(butter, Style(), np.random.default_rng(0), 200)
        hand.go(grasp.position + miss + 0.06 * UP, grasp.rotation, near=0.008, turned=0.06)
        take(hand, grasp.position + miss, grasp.rotation)
        assert np.linalg.norm(hand.position - grasp.position - miss) < 0.003
        lift_off(hand, hand.position, grasp.rotation)
        hand.go(hand.position + 0.04 * UP, grasp.rotation, near=0.01)
        assert (geometry.position(BUTTER)[2] > height + 0.05 and geometry.held(BUTTER)) == forgiven
