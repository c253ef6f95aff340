"""Variants of tasks and other words: collected, interrupted, the same again, and replayed."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests import support

from apprentice.common.errors import UserError
from apprentice.common.files import read_json
from apprentice.data.dataset import instructions, open_dataset
from apprentice.simulators.collection import episode_jobs
from apprentice.simulators.collection.collect import collect
from apprentice.simulators.collection.config import CollectConfig
from apprentice.simulators.collection.episode_jobs import CollectJob, scenes
from apprentice.simulators.libero.dataset.doctor import examine
from apprentice.simulators.libero.simulator.env import LiberoEnv
from apprentice.simulators.libero.simulator.layout import HIGH, LOW
from apprentice.simulators.libero.simulator.paraphrases import paraphrases
from apprentice.simulators.libero.simulator.suites import tasks
from apprentice.simulators.libero.simulator.variants import find_task

TASK = tasks("libero_object")[0]


def test_episodes_take_turns_in_variants_and_the_seed_decides_the_words() -> None:
    jobs = [CollectJob("libero_object", 0, n, 7, "fast", 128, variants=2, reworded=True) for n in range(6)]
    variants = [find_task("libero_object", 0, job.variant) for job in jobs]
    assert variants[0] != variants[1] and variants == variants[:2] * 3
    assert all(job.instruction in paraphrases(variant.instruction) for job, variant in zip(jobs, variants, strict=True))
    assert len({job.instruction for job in jobs}) > 2
    others = {CollectJob("libero_object", 0, 0, seed, "fast", 128, variants=2).variant for seed in range(5)}
    assert len(others) == 5
    assert CollectJob("libero_object", 1, 0, 7, "fast", 128, variants=2).variant not in (jobs[0].variant, None)
    plain = CollectJob("libero_object", 0, 0, 7, "fast", 128)
    assert plain.variant is None and plain.instruction == TASK.instruction


def test_variants_go_on_after_an_interruption_and_replay(
    tmp_path: Path, in_this_process: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "demonstrations"
    config = CollectConfig(suite="libero_object", episodes=2, out=out, tasks=[0], variants=2, reworded=True)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(episode_jobs, "spread", support.interrupted_here)
        collect(config)
    second = out.with_name(f".{out.name}.episodes") / "00_0001.npz"
    before = dict(np.load(second))
    in_this_process()
    with pytest.raises(UserError, match="'variants': 2"):
        collect(replace(config, variants=1))
    summary = collect(config)

    dataset, kept = open_dataset(out), read_json(out / "meta" / "collection.json")
    assert kept == {**summary, "per_task": {str(task): found for task, found in summary["per_task"].items()}}
    last = {key: dataset.hf_dataset[key][-len(before["action"]) :] for key in ("observation.state", "action")}
    for key, values in last.items():
        np.testing.assert_array_equal(np.array(values), before[key])
    different = kept["per_task"]["0"]["instructions"]
    assert list(dict.fromkeys(instructions(dataset))) == different and TASK.instruction not in different
    assert [scene.variant for scene in scenes(out)] == kept["per_task"]["0"]["variants"] == [0, 1]
    assert all(check.passed for check in examine(out, 2, 1))


@pytest.mark.parametrize(
    ("suite", "task", "found"),
    [
        ("libero_spatial", 0, "akita_black_bowl"),
        ("libero_90", 37, "libero_90 task 37, 'put the white bowl to the right of the plate', found none"),
    ],
)
def test_what_has_no_variant_is_said_before_anything_is_done(suite: str, task: int, found: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=found):
        collect(CollectConfig(suite=suite, episodes=1, out=tmp_path / "out", tasks=[task], variants=1))
    assert not list(tmp_path.iterdir())


def test_things_stand_apart_anywhere_within_reach_and_the_seed_decides_where() -> None:
    env = LiberoEnv("libero_object", 0, variant=0)
    with pytest.raises(UserError, match="of a variant"):
        env.reset(seed=0, init_state=0)
    geometry, places = env.geometry(), []
    for seed in (0, 1, 2, 3, 0):
        env.reset(seed=seed)
        bounds = [np.array(geometry.bounds(name))[:, :2] - geometry.base()[:2] for name in geometry.root]
        assert all((low > LOW - 0.01).all() and (high < HIGH + 0.01).all() for low, high in bounds)
        places.append(np.array([box.mean(axis=0) for box in bounds]))
        for (low, high), (other_low, other_high) in itertools.combinations(bounds, 2):
            assert (low > other_high).any() or (high < other_low).any()
    varies = np.std(places, axis=0)
    assert (varies > 0.01).all() and (varies.mean(axis=0) > 0.05).all()  # m
    np.testing.assert_array_equal(places[0], places[-1])
    env.close()
