"""Kinds of failure on LIBERO's own scene: one short scripted episode is judged by the goals of several tasks."""

import time
from collections.abc import Callable

import numpy as np
import pytest

from apprentice.simulators.libero.demonstrator.articulated import open_drawer
from apprentice.simulators.libero.demonstrator.controller import UP, Controller, Style
from apprentice.simulators.libero.demonstrator.dragging import lead
from apprentice.simulators.libero.demonstrator.skills import pick
from apprentice.simulators.libero.evaluation.failures import (
    DROPPED,
    ELSEWHERE,
    KINDS,
    MISSED,
    NEVER_REACHED,
    RECENT,
    TIMED_OUT,
    WRONG_OBJECT,
    FailureObserver,
)
from apprentice.simulators.libero.simulator.env import LiberoEnv, environment
from apprentice.simulators.libero.simulator.geometry import Geometry

OPEN_DRAWER, BOWL_ON_STOVE, PUSH_PLATE, CHEESE_IN_BOWL, STOVE_ON, BOWL_ON_PLATE = 0, 1, 5, 6, 7, 8
BOWL, PLATE, DRAWER = "akita_black_bowl_1", "plate_1", "wooden_cabinet_1_middle_region"
BACK = np.array([0.08, 0.0])  # m, towards the robot


class Episode:
    """A hand in a fresh scene, watched for the goals of all tasks."""

    def __init__(self, env: LiberoEnv, monkeypatch: pytest.MonkeyPatch):
        env.reset(seed=0, init_state=0)
        self.hand, self.geometry = Controller(env, Style(), np.random.default_rng(0), 10_000), env.geometry()
        self.observers = {task: FailureObserver(env, env.goals_of(task)) for task in range(10)}
        step = LiberoEnv.step

        def watched(env: LiberoEnv, action: np.ndarray) -> bool:
            success = step(env, action)
            for observer in self.observers.values():
                observer.observe(action)
            return success

        monkeypatch.setattr(LiberoEnv, "step", watched)

    def kinds(self, *tasks: int) -> list[str]:
        return [self.observers[task].kind() for task in tasks]


@pytest.fixture
def episode(monkeypatch: pytest.MonkeyPatch) -> Episode:
    return Episode(environment("libero_goal", 1, render="fast", size=128), monkeypatch)


def test_a_hand_that_stays_has_reached_nothing(episode: Episode) -> None:
    episode.hand.stay(3)
    assert episode.kinds(*range(10)) == [NEVER_REACHED] * 10
    assert NEVER_REACHED in KINDS


def test_a_hand_that_goes_there_and_does_not_close(episode: Episode) -> None:
    hand = episode.hand
    low, high = episode.geometry.bounds(BOWL)
    hand.go(np.array([*(low + high)[:2] / 2, high[2] + 0.01]), hand.rotation, near=0.01)
    assert episode.kinds(BOWL_ON_STOVE, STOVE_ON) == [TIMED_OUT, NEVER_REACHED], "it has only just come"
    hand.stay(RECENT)
    assert episode.kinds(BOWL_ON_STOVE, STOVE_ON) == [MISSED, NEVER_REACHED]


def test_a_bowl_that_is_held_dropped_or_not_asked_for(episode: Episode) -> None:
    hand = episode.hand
    pick(hand, episode.geometry, BOWL)
    hand.go(hand.position + 0.1 * UP, hand.rotation, near=0.02)
    assert episode.kinds(BOWL_ON_STOVE, BOWL_ON_PLATE) == [TIMED_OUT, TIMED_OUT]
    assert episode.kinds(STOVE_ON, CHEESE_IN_BOWL) == [WRONG_OBJECT, WRONG_OBJECT]
    hand.open(hand.position, hand.rotation)
    hand.stay(12)
    assert episode.kinds(BOWL_ON_STOVE, BOWL_ON_PLATE, STOVE_ON) == [DROPPED, DROPPED, WRONG_OBJECT]


def test_a_bowl_that_is_set_down_beside_its_place(episode: Episode) -> None:
    hand, geometry = episode.hand, episode.geometry
    pick(hand, geometry, BOWL)
    hand.go(lambda: hand.position - 0.06 * UP, hand.rotation, near=0.001, steps=40, until=lambda: geometry.rests(BOWL))
    hand.release(0.08 * UP)
    hand.stay(12)
    assert episode.kinds(BOWL_ON_STOVE, BOWL_ON_PLATE, STOVE_ON) == [ELSEWHERE, ELSEWHERE, WRONG_OBJECT]


@pytest.mark.parametrize(
    ("act", "task"),
    [
        (lambda hand, geometry: open_drawer(hand, geometry, DRAWER, until=-0.06), OPEN_DRAWER),
        (lambda hand, geometry: lead(hand, geometry, PLATE, geometry.position(PLATE)[:2] - BACK, 0.01), PUSH_PLATE),
    ],
    ids=["a drawer half open", "a plate pushed too short"],
)
def test_what_is_pulled_or_pushed_and_left(
    act: Callable[[Controller, Geometry], None], task: int, episode: Episode
) -> None:
    act(episode.hand, episode.geometry)
    episode.hand.go(episode.hand.position + 0.05 * UP, episode.hand.rotation, near=0.02, steps=20)
    episode.hand.stay(12)
    assert episode.kinds(task, STOVE_ON) == [ELSEWHERE, WRONG_OBJECT]


def test_observing_costs_next_to_nothing(episode: Episode) -> None:
    """Against a bare control step; an episode also draws and plans."""
    observer, env = episode.observers[BOWL_ON_STOVE], episode.hand.env
    episode.observers = {}
    spent = {}
    for name, run in (("observe", lambda: observer.observe(np.zeros(7))), ("step", lambda: env.step(np.zeros(7)))):
        start = time.process_time()
        for _ in range(40):
            run()
        spent[name] = time.process_time() - start
    assert spent["observe"] < 0.05 * spent["step"]
