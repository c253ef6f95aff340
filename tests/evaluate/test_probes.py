"""Probes change one thing and leave the rest of an episode as it is."""

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from apprentice.common.errors import UserError
from apprentice.evaluate.episode import runner
from apprentice.evaluate.episode.job import EpisodeJob
from apprentice.evaluate.episode.probes import (
    BLACK,
    BLACK_AGENT,
    BLACK_WRIST,
    EMPTY,
    MOVED,
    PARAPHRASE,
    PLAIN,
    PROBES,
    said,
)
from apprentice.evaluate.episode.trace import Trace
from apprentice.evaluate.protocol import Protocol
from apprentice.evaluate.results import Episode, Evaluation, success_rows
from apprentice.serve.policy_card import PolicyCard
from apprentice.simulators.failures import NEVER_REACHED
from apprentice.simulators.libero.convention import CAMERAS
from apprentice.simulators.libero.evaluation.moved_objects import FAR, NEAR, Start, reset_moved
from apprentice.simulators.libero.interface import FRESH_START, LIBERO
from apprentice.simulators.libero.simulator.env import LiberoEnv, environment
from apprentice.simulators.libero.simulator.paraphrases import paraphrases

BOWL, STOVE_ON, BOWL_ON_STOVE = "akita_black_bowl_1", 7, 1
INSTRUCTION = "put the bowl on the stove"


class Standing:
    """A policy that does nothing and remembers what it was given."""

    n_action_steps = 4

    def __init__(self) -> None:
        self.given: list[tuple[dict[str, np.ndarray], str]] = []

    def reset(self, seed: int) -> None: ...

    def close(self) -> None: ...

    def plan(self, observation: dict[str, np.ndarray], instruction: str) -> np.ndarray:
        self.given.append((observation, instruction))
        return np.zeros((4, 7), np.float32)


def protocol(**fields: Any) -> Protocol:
    return Protocol.with_installed_versions(
        **{"suite": "libero_goal", "tasks": (BOWL_ON_STOVE,), "episodes": 1, "instructed": (), "step_limit": 4}
        | {"image_size": 64, "render": "fast", "probes": tuple(PROBES)}
        | fields
    )


@pytest.fixture(scope="module")
def played() -> dict[str, tuple[Episode, dict[str, np.ndarray], str]]:
    """An episode of each probe: its outcome, and the first observation and the words that the policy was given."""
    episodes = {}
    with pytest.MonkeyPatch.context() as patch:
        for probe in PROBES:
            policy = Standing()
            patch.setattr(runner, "load", lambda *_, policy=policy: policy)
            job = EpisodeJob("p", "", "c", BOWL_ON_STOVE, BOWL_ON_STOVE, 0, protocol(), film="none", probe=probe)
            episodes[probe] = (runner.run_episode(job)[0], *policy.given[0])
    return episodes


def test_every_probe_changes_its_own_thing_alone(
    played: dict[str, tuple[Episode, dict[str, np.ndarray], str]],
) -> None:
    _, plain, words = played[PLAIN]
    assert words == INSTRUCTION
    for probe, (episode, observation, given) in played.items():
        assert (episode.probe, episode.failure, episode.instruction) == (probe, NEVER_REACHED, given)
        assert (given == words) == (probe not in (PARAPHRASE, EMPTY))
        np.testing.assert_allclose(observation["observation.state"], plain["observation.state"], atol=1e-6)
        for key in ("observation.images.image", "observation.images.image2"):
            difference = np.abs(observation[key].astype(int) - plain[key])
            if probe in BLACK and CAMERAS[BLACK[probe]] == key:
                assert not observation[key].any()
            elif probe == MOVED:
                assert key == CAMERAS[BLACK[BLACK_WRIST]] or difference.max() > 60, "the bowl is not seen elsewhere"
            else:
                assert not difference.any()
    assert played[PARAPHRASE][2] in paraphrases(INSTRUCTION) and played[EMPTY][2] == ""
    assert played[BLACK_AGENT][1]["observation.images.image2"].any()
    assert len({episode.key for episode, *_ in played.values()}) == len({e.stem for e, *_ in played.values()}) == 6


def test_a_seed_decides_the_words_and_the_place() -> None:
    assert len({said(PARAPHRASE, INSTRUCTION, seed, LIBERO) for seed in range(20)}) == len(paraphrases(INSTRUCTION))
    assert said(PARAPHRASE, INSTRUCTION, 3, LIBERO) == said(PARAPHRASE, INSTRUCTION, 3, LIBERO)
    env = environment("libero_goal", BOWL_ON_STOVE, render="fast", size=64)
    env.reset(seed=0, init_state=0)
    before, hand = places(env), env.proprioception()
    found = []
    for seed in (0, 1, 0):
        reset_moved(env, [BOWL], Start(seed, 0, 0.0, 10))
        found.append(places(env))
        assert NEAR - 0.005 < np.linalg.norm(found[-1][BOWL] - before[BOWL]) < FAR + 0.005
        others = [name for name in before if name != BOWL]
        assert max(np.abs(found[-1][name] - before[name]).max() for name in others) < 0.002
        np.testing.assert_allclose(env.proprioception(), hand, atol=1e-4)
    np.testing.assert_array_equal(found[0][BOWL], found[2][BOWL])
    assert np.linalg.norm(found[0][BOWL] - found[1][BOWL]) > 0.01


def places(env: LiberoEnv) -> dict[str, np.ndarray]:
    geometry = env.geometry()
    return {name: geometry.position(name) for name in geometry.domain.objects_dict}


def test_tasks_that_a_probe_does_not_suit_are_left_out(
    played: dict[str, tuple[Episode, dict[str, np.ndarray], str]], tmp_path: Any
) -> None:
    both = protocol(tasks=(BOWL_ON_STOVE, STOVE_ON), probes=(PLAIN, MOVED))
    assert both.variants == [(1, 1, PLAIN), (1, 1, MOVED), (7, 7, PLAIN)]
    assert both.conditions == protocol(probes=None).conditions, "plain episodes are not run again for a probe"
    with pytest.raises(UserError, match=r"expected probes among plain, .* found 'deaf'"):
        _ = protocol(probes=("deaf",)).variants
    evaluation = Evaluation(tmp_path, both, {"p": PolicyCard("act", "c", 4)}, [])
    evaluation.save()
    assert Evaluation.load(tmp_path).wanted == evaluation.wanted
    episodes = [replace(episode, success=probe == PLAIN) for probe, (episode, *_) in played.items()]
    assert [row.successes for row in success_rows(episodes)] == [1, 1]
    assert [row.successes for row in success_rows(episodes, MOVED)] == [0, 0]


def test_fresh_layouts_are_drawn_from_seeds_of_their_own() -> None:
    """What chooses between policies shares no start with the benchmark's states."""
    starts = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "load", lambda *_: Standing())
        for layouts in (None, "fresh"):
            how = replace(protocol(), layouts=layouts, step_limit=1)
            for number in (0, 1):
                job = EpisodeJob("p", "", "c", BOWL_ON_STOVE, BOWL_ON_STOVE, number, how, film="none")
                episode, files = runner.run_episode(job)
                trace = Trace.load(io.BytesIO(files[f"traces/{episode.trace}"]))
                starts[layouts, number, episode.conditions] = trace.states[0]
    assert len({state.tobytes() for state in starts.values()}) == 4
    assert len({conditions for *_, conditions in starts}) == 2
    env = environment("libero_goal", BOWL_ON_STOVE, render="fast", size=64)
    hands = []
    for start_noise in (0.0, FRESH_START):
        env.reset(seed=runner.FRESH_SEED, start_noise=start_noise)
        hands.append(env.proprioception())
    np.testing.assert_array_equal(hands[1], next(state for (kind, *_), state in starts.items() if kind == "fresh"))
    assert 0 < np.abs(hands[1] - hands[0])[:3].max() < FRESH_START + 0.005
