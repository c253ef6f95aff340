"""A simulator that is registered by one line is evaluated, probed, compared, reported, served and collected from."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACTPolicy
from lerobot.policies.factory import make_pre_post_processors
from tests import support
from tests.serve.running import Running
from tests.simulators.point import CAMERAS, HEIGHT, MISSED, POINT, STILL, WIDTH

from apprentice.common.errors import UserError
from apprentice.data.contract import Contract
from apprentice.data.dataset import column, open_dataset
from apprentice.evaluate import correct as correcting
from apprentice.evaluate import rollout
from apprentice.evaluate.compare import compare
from apprentice.evaluate.episode.job import EpisodeJob
from apprentice.evaluate.episode.probes import BLACK_WRIST, MOVED, PROBES
from apprentice.evaluate.episode.runner import run_episode
from apprentice.evaluate.episode.trace import Trace
from apprentice.evaluate.report.measured import record
from apprentice.evaluate.report.report import write_report
from apprentice.evaluate.results import Evaluation, probe_rows
from apprentice.simulators.base import SIMULATORS, simulator_of, suites, suites_with, variant_of
from apprentice.simulators.collection import episode_jobs
from apprentice.simulators.collection.collect import collect
from apprentice.simulators.collection.config import CollectConfig
from apprentice.simulators.collection.doctor import recorded_in

SETTING = {"suite": "point", "tasks": [0, 2], "episodes": 2, "max_steps": 9, "workers": 1}


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(SIMULATORS, "point", "tests.simulators.point:POINT")
    for module in (rollout, episode_jobs):
        monkeypatch.setattr(module, "spread", support.spread_here)
    yield


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two small ACTs with random weights."""
    root = tmp_path_factory.mktemp("policies")
    return {name: str(write_act(root / name, seed)) for seed, name in enumerate(("expert", "two-stage"))}


def write_act(folder: Path, seed: int, actions: int = 2) -> Path:
    torch.manual_seed(seed)
    act = ACTConfig(
        chunk_size=6,
        n_action_steps=3,
        dim_model=32,
        n_heads=2,
        dim_feedforward=32,
        n_encoder_layers=1,
        use_vae=False,
        pretrained_backbone_weights=None,
        device="cpu",
        input_features={key: PolicyFeature(FeatureType.VISUAL, (3, HEIGHT, WIDTH)) for key in CAMERAS}
        | {"observation.state": PolicyFeature(FeatureType.STATE, (4,))},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (actions,))},
    )
    statistics = {"observation.state": {"mean": torch.zeros(4), "std": torch.ones(4)}}
    statistics["action"] = {"mean": torch.zeros(actions), "std": torch.ones(actions)}
    statistics |= {key: {"mean": torch.full((3, 1, 1), 0.5), "std": torch.ones(3, 1, 1)} for key in CAMERAS}
    ACTPolicy(act).save_pretrained(folder)
    for processor in make_pre_post_processors(act, dataset_stats=statistics):
        processor.save_pretrained(folder)
    POINT.contract("point", 0, "fast").save(folder)
    return folder


def test_its_suites_are_found_beside_the_others() -> None:
    assert simulator_of("point_fog") is POINT and simulator_of("libero_goal") is not POINT
    assert {"point", "libero_goal"} <= set(suites())
    assert variant_of("point_fog") == ("point", "fog") and variant_of("point") == ("point", "")
    with pytest.raises(UserError, match=r"expected a suite of libero_spatial, .*point, point_fog, found 'pont'; fix"):
        simulator_of("pont")
    assert next(suites_with({"push the point to the top", "push the point to the left"})) == ("point", [0, 2])


def test_it_is_evaluated_probed_compared_and_reported(
    policies: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, other, fog = tmp_path / "run", tmp_path / "other", tmp_path / "fog"
    rollout.evaluate(policies, out_dir=run, probes=list(PROBES), **SETTING)
    rollout.evaluate(policies, out_dir=other, instruct={0: 1}, **{**SETTING, "tasks": None})
    rollout.evaluate(policies, out_dir=fog, layouts="fresh", **{**SETTING, "suite": "point_fog"})
    evaluation = Evaluation.load(run)
    assert evaluation.protocol.versions == {"point": "1.0"} and evaluation.protocol.fast_version is None
    assert len(evaluation.episodes) == len(policies) * 2 * (6 + 5), "nothing can be moved in the task 2"
    assert {episode.task for episode in evaluation.episodes if episode.probe == MOVED} == {0}
    assert {episode.failure for episode in evaluation.episodes} <= {STILL, MISSED, None}
    first = evaluation.episodes[0]
    trace = Trace.load(run / "traces" / str(first.trace))
    assert trace.states.shape == (10, 4) and trace.actions.shape == (9, 2)
    with av.open(str(run / "videos" / str(first.video))) as film:
        assert (film.streams.video[0].width, film.streams.video[0].height) == (342, 256)
        assert film.streams.video[0].average_rate == 2 * 30 / 3
    table = pq.read_table(run / "episodes.parquet")
    assert table.schema.field("states").type.value_type.list_size == 4
    capsys.readouterr()
    compare([run])
    said = capsys.readouterr().out
    assert said.startswith("point: A = expert, B = two-stage") and "push the point to the top" in said
    assert {row.instructed for row in probe_rows(Evaluation.load(other).episodes)} == {1}
    write_report(tmp_path / "page.html", run, probe=[other], variants=[fog])
    page, details = (tmp_path / "page.html").read_text(), json.loads((tmp_path / "details.json").read_text())
    assert "<dt>point</dt><dd>1.0</dd>" in page and "at 30 Hz" in page and "mujoco" not in page
    assert "48 \u00d7 64 px" in page
    assert "fog" in details["perturbations"] and BLACK_WRIST in details["probes"]
    record(fog, file=tmp_path / "point.jsonl")
    line = json.loads((tmp_path / "point.jsonl").read_text().splitlines()[0])
    assert (line["suite"], line["variant"], line["layouts"]) == ("point", "fog", "fresh")


def test_a_server_of_its_policy_does_as_the_policy(policies: dict[str, str], tmp_path: Path) -> None:
    """Pictures are sent as they are drawn, under LeRobot's own names, and actions come back in their size."""
    rollout.evaluate({"expert": policies["expert"]}, out_dir=tmp_path, film="none", **SETTING)
    (before, *_) = Evaluation.load(tmp_path).episodes
    running = Running(Path(policies["expert"]))
    protocol = Evaluation.load(tmp_path).protocol
    after, files = run_episode(EpisodeJob("expert", running.address, before.checkpoint, 0, 0, 0, protocol, film="none"))
    running.stop()
    ours, theirs = Trace.load(tmp_path / "traces" / str(before.trace)), tmp_path / "theirs.npz"
    theirs.write_bytes(files[f"traces/{after.trace}"])
    np.testing.assert_allclose(Trace.load(theirs).actions, ours.actions, atol=1e-6)


def test_policies_of_another_robot_are_refused(policies: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"action: the environment has \('ax', 'ay'\), policy x has"):
        other = write_act(tmp_path / "other", 0)
        contract = Contract.load(other)
        replace(contract, action=("dx 0.05m", "gripper")).save(other)
        rollout.evaluate({"x": str(other)}, out_dir=tmp_path / "run", **SETTING)
    with pytest.raises(UserError, match="policy x: expected actions of size 2, found 3"):
        other = write_act(tmp_path / "three", 0, actions=3)
        (other / "contract.json").unlink()
        rollout.evaluate({"x": str(other)}, out_dir=tmp_path / "run", **SETTING)


def test_it_is_collected_from_and_its_policies_are_corrected(policies: dict[str, str], tmp_path: Path) -> None:
    out, corrected = tmp_path / "demonstrations", tmp_path / "corrections"
    setting: dict[str, Any] = {"suite": "point", "tasks": [1], "workers": 1, "images": True}
    collect(CollectConfig(episodes=2, out=out, **setting))
    correcting.correct(
        correcting.CorrectConfig(
            policy=policies["expert"], episodes=1, out=corrected, steps=[4, 4], noise=0.1, **setting
        )
    )
    for root in (out, corrected):
        dataset = open_dataset(root)
        features = dataset.meta.features
        assert dataset.meta.fps == 30 and features[CAMERAS[0]]["shape"] == (HEIGHT, WIDTH, 3)
        assert features["action"]["names"] == ["ax", "ay"] and features["action"]["shape"] == (2,)
        assert recorded_in(root) is POINT
        Contract.of_dataset(root).check(POINT.contract("point", 0, "fast"), "dataset", "simulator")
    (scene,) = episode_jobs.scenes(corrected)
    np.testing.assert_allclose(column(open_dataset(corrected), "observation.state")[0], scene.start.state, atol=1e-6)
