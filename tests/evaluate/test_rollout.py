"""Closed loop on the real simulator, with small real policies whose weights are random."""

import io
import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

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
from tests.starting import start

from apprentice.common import pool
from apprentice.common.errors import UserError
from apprentice.evaluate import rollout
from apprentice.evaluate.episode.job import EpisodeJob
from apprentice.evaluate.episode.runner import inspect, run_episode
from apprentice.evaluate.episode.trace import Trace
from apprentice.evaluate.results import Evaluation, probe_rows, read_episodes
from apprentice.evaluate.rollout import evaluate
from apprentice.serve.checkpoint import Checkpoint, inspect_checkpoint
from apprentice.simulators.libero.convention import contract as libero_contract

CPU = torch.device("cpu")
IMAGES = ("observation.images.image", "observation.images.image2")
SETTING = {"suite": "libero_goal", "tasks": [1], "episodes": 2, "max_steps": 12}


def write_act(folder, seed, contract=None, actions=7, **config):
    """The smallest ACT, with random weights, as a checkpoint folder."""
    torch.manual_seed(seed)
    act = ACTConfig(
        **{"chunk_size": 8, "n_action_steps": 4, "dim_model": 32, "n_heads": 2, "dim_feedforward": 32, **config},
        n_encoder_layers=1,
        use_vae=False,
        pretrained_backbone_weights=None,
        device="cpu",
        input_features={key: PolicyFeature(FeatureType.VISUAL, (3, 128, 128)) for key in IMAGES}
        | {"observation.state": PolicyFeature(FeatureType.STATE, (8,))},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (actions,))},
    )
    statistics = {"observation.state": {"mean": torch.zeros(8), "std": torch.ones(8)}}
    statistics["action"] = {"mean": torch.zeros(actions), "std": torch.full((actions,), 0.4)}
    statistics |= {key: {"mean": torch.full((3, 1, 1), 0.5), "std": torch.ones(3, 1, 1)} for key in IMAGES}
    ACTPolicy(act).save_pretrained(folder)
    for processor in make_pre_post_processors(act, dataset_stats=statistics):
        processor.save_pretrained(folder)
    if contract:
        contract.save(folder)
    return folder


def retyped(folder, **fields):
    """The folder, its configuration changed."""
    (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | fields))
    return folder


@pytest.fixture(scope="session")
def policies(tmp_path_factory):
    root = tmp_path_factory.mktemp("policies")
    return {name: write_act(root / name, seed) for seed, name in enumerate(("expert", "two-stage"))}


@pytest.fixture(scope="session")
def evaluation(policies, tmp_path_factory):
    """A folder in which everything was run by two processes."""
    folder = tmp_path_factory.mktemp("evaluation")
    evaluate(policies, out_dir=folder, workers=2, **SETTING)
    return Evaluation.load(folder)


def outcome(episode):
    """What must not depend on where and when an episode ran."""
    return replace(episode, seconds=0, reset_seconds=0, policy_seconds=0, render_seconds=0, physics_seconds=0)


def same_trace(content, evaluation, episode):
    """Whether an episode did the same, however long it took."""
    again, before = Trace.load(io.BytesIO(content)), Trace.load(evaluation.folder / "traces" / episode.trace)
    return all(np.array_equal(getattr(again, name), getattr(before, name)) for name in ("states", "actions"))


def observation(seed=0):
    rng = np.random.default_rng(seed)
    images = {key: rng.integers(0, 256, (128, 128, 3), dtype=np.uint8) for key in IMAGES}
    return images | {"observation.state": rng.normal(size=8).astype(np.float32)}


def test_every_episode_once_and_filmed(evaluation, policies):
    assert [(e.policy, e.init_state, e.steps) for e in evaluation.episodes] == [
        (name, state, 12) for state in (0, 1) for name in policies
    ]
    for episode in evaluation.episodes:
        parts = episode.reset_seconds + episode.policy_seconds + episode.render_seconds + episode.physics_seconds
        assert episode.seconds == pytest.approx(parts, abs=0.01)
        with av.open(str(evaluation.folder / "videos" / episode.video)) as film:
            frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
        assert len(frames) == 12 / 4 + 1
        assert np.abs(frames[0].astype(int) - frames[-1]).mean() > 0.5, "nothing moved"
        trace = Trace.load(evaluation.folder / "traces" / episode.trace)
        assert trace.states.shape == (13, 8) and trace.actions.shape == (12, 7)
        assert trace.plan_steps.tolist() == [0, 4, 8]
        assert trace.plan_seconds.sum() == pytest.approx(episode.policy_seconds, abs=0.01)
    table = pq.read_table(evaluation.folder / "episodes.parquet")
    assert table["steps"].to_pylist() == [12] * 4 and len(table["actions"].to_pylist()[3]) == 12


def test_one_process_finds_what_two_found(evaluation, policies):
    """Here in this process, in another order, and with episodes of another policy in between."""
    torch.set_num_threads(1)
    for episode in reversed(evaluation.episodes):
        job = EpisodeJob(
            episode.policy,
            str(policies[episode.policy]),
            episode.checkpoint,
            episode.task,
            episode.instructed,
            episode.init_state,
            evaluation.protocol,
        )
        again, files = run_episode(job)
        assert outcome(again) == outcome(episode)
        film = f"videos/{episode.video}"
        assert files[film] == (evaluation.folder / film).read_bytes()
        assert same_trace(files[f"traces/{episode.trace}"], evaluation, episode)


def test_finished_episodes_are_not_run_again(evaluation, policies):
    before = evaluation.log.read_bytes()
    evaluate(policies, out_dir=evaluation.folder, **SETTING)
    assert evaluation.log.read_bytes() == before


def test_a_killed_run_goes_on(evaluation, policies, tmp_path, monkeypatch):
    """Killed with its workers while it runs; a torn last line is left by hand."""
    process = start(evaluate, policies, out_dir=tmp_path, **SETTING | {"workers": 1})
    log = tmp_path / "episodes.jsonl"
    deadline = time.monotonic() + 500
    while not read_episodes(log) and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    kept = read_episodes(log)
    assert 1 <= len(kept) < len(evaluation.episodes)
    with log.open("a") as stream:
        stream.write('{"policy": "expert", "che')
    monkeypatch.setattr(rollout, "spread", support.spread_here)
    evaluate(policies, out_dir=tmp_path, **SETTING)
    finished = Evaluation.load(tmp_path).episodes
    assert [outcome(e) for e in finished] == [outcome(e) for e in evaluation.episodes]
    assert finished[: len(kept)] == kept
    assert len(read_episodes(log)) == len(finished)


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (KeyboardInterrupt(), "1 of 4 episodes done, all of them kept in"),
        (UserError("policy a hung"), r"policy a hung\n1 of 4 episodes are done and kept in"),
    ],
)
def test_however_it_ends_what_is_finished_is_kept(end, message, evaluation, tmp_path, monkeypatch):
    def interrupted(run, jobs, workers, ray):
        yield evaluation.episodes[0], {"videos/a.mp4": b"film"}
        raise end

    monkeypatch.setattr(rollout, "spread", interrupted)
    begun = replace(evaluation, folder=tmp_path, episodes=[])
    begun.save()
    with pytest.raises(type(end), match=message):
        rollout._run([None] * 4, begun, 2)
    assert Evaluation.load(tmp_path).episodes == evaluation.episodes[:1]
    assert (tmp_path / "videos" / "a.mp4").read_bytes() == b"film"


def test_a_chunk_is_what_select_action_gives_step_by_step(policies):
    policy = Checkpoint("expert", policies["expert"], CPU)
    chunk = policy.plan(observation(), "put the bowl on the stove")
    policy.every_step, policy.n_action_steps = True, 1
    policy.reset(0)
    single = [policy.plan(observation(), "put the bowl on the stove") for _ in range(4)]
    assert chunk.shape == (4, 7)
    np.testing.assert_allclose(chunk, np.concatenate(single), atol=1e-6)


def test_unusable_actions_name_policy_and_instruction(tmp_path):
    policy = Checkpoint("six", write_act(tmp_path / "six", 0, actions=6), CPU, action_dim=7)
    with pytest.raises(UserError, match=r"policy six, instruction 'open the drawer': .* found shape \(4, 6\)"):
        policy.plan(observation(), "open the drawer")
    policy = Checkpoint("nan", write_act(tmp_path / "nan", 0), CPU)
    policy.policy.model.action_head.bias.data[2] = float("nan")
    with pytest.raises(UserError, match=r"policy nan, .* expected 4 finite actions of size 7, found \[.*nan"):
        policy.plan(observation(), "open the drawer")


def once(run, jobs, workers, ray):
    return (result for _, result in pool._pooled(run, list(enumerate(jobs)), 1, None))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            "nan",
            r"policy worse, libero_goal task 1, initial state 0: .*expected 4 finite actions of size 7, found \[.*nan",
        ),
        ("hang", r"one that hung \(limit 0:00:02\) at .*broken.py:\d+ in predict_action_chunk while it did .*worse"),
        ("die", r"one that crashed \(SIGABRT\) at .*broken.py:\d+ in predict_action_chunk while it did .*worse"),
    ],
)
def test_a_plugins_policy_that_breaks_is_named(how, message, tmp_path, monkeypatch):
    """A process that dies or hangs is one of the pool's, but not begun again, which takes as long once more."""
    monkeypatch.syspath_prepend(Path(__file__).parent / "plugin")
    monkeypatch.setattr(rollout, "spread", support.spread_here if how == "nan" else once)
    folder = write_act(tmp_path / "worse", 0)
    with pytest.raises(UserError, match=message):
        evaluate({"worse": retyped(folder, type="broken", how=how)}, out_dir=tmp_path, **SETTING | {"episodes": 1})


def test_checkpoints_that_do_not_fit_are_refused_before_anything_runs(policies, tmp_path):
    environment = libero_contract(128, "fast")
    with pytest.raises(UserError, match=r"policy x: .* found no config.json, model.safetensors"):
        inspect_checkpoint("x", tmp_path, environment)
    upside_down = write_act(tmp_path / "a", 0, contract=environment.having(rotation=0))
    with pytest.raises(UserError, match="rotation: the environment has 180, policy x has 0"):
        inspect_checkpoint("x", upside_down, environment)
    config = json.loads((policies["expert"] / "config.json").read_text())
    config["input_features"]["observation.images.front"] = config["input_features"].pop(IMAGES[0])
    (upside_down / "config.json").write_text(json.dumps(config))
    (upside_down / "contract.json").unlink()
    with pytest.raises(UserError, match=r"expected inputs among .* found observation.images.front"):
        inspect_checkpoint("x", upside_down, environment)
    unknown = retyped(write_act(tmp_path / "b", 0), type="pi9")
    with pytest.raises(UserError, match=r"policy x: expected a policy of .* found type pi9"):
        evaluate({"x": unknown}, out_dir=tmp_path, **SETTING)
    with pytest.raises(UserError, match="expected 1 to 50 episodes"):
        evaluate(policies, out_dir=tmp_path, **{**SETTING, "episodes": 51})
    with pytest.raises(UserError, match="expected tasks 0 to 9 of libero_goal, found 10"):
        evaluate(policies, out_dir=tmp_path, **{**SETTING, "tasks": [10]})


def test_a_policy_server_is_evaluated_like_its_checkpoint(policies, evaluation):
    running = Running(policies["expert"])
    cards = {"expert": inspect("expert", running.address, libero_contract(128, "fast"), evaluation.protocol)}
    assert cards["expert"] == evaluation.policies["expert"]
    before = evaluation.episodes[0]
    job = EpisodeJob("expert", running.address, before.checkpoint, 1, 1, 0, evaluation.protocol, film="none")
    episode, files = run_episode(job)
    running.stop()
    assert outcome(episode) == replace(outcome(before), video=None)
    assert same_trace(files[f"traces/{episode.trace}"], evaluation, episode)


def test_one_checkpoint_a_task_is_evaluated_as_one_policy(policies, evaluation, tmp_path, monkeypatch):
    monkeypatch.setattr(rollout, "spread", support.spread_here)
    file = tmp_path / "experts.yaml"
    file.write_text(f"put the bowl on the stove: {policies['expert']}\nopen the drawer: {policies['two-stage']}\n")
    evaluate({"expert": file}, out_dir=tmp_path, **SETTING)
    played = Evaluation.load(tmp_path).episodes
    before = [episode for episode in evaluation.episodes if episode.policy == "expert"]
    assert [replace(outcome(e), checkpoint="", video="", trace="") for e in played] == [
        replace(outcome(e), checkpoint="", video="", trace="") for e in before
    ]
    assert Evaluation.load(tmp_path).policies["expert"].type == "act, one a task"
    for one, other in zip(played, before, strict=True):
        assert same_trace((tmp_path / "traces" / one.trace).read_bytes(), evaluation, other)
    with pytest.raises(
        UserError, match=r"policy expert: expected one of .*'open the drawer', found 'put the bowl on top"
    ):
        evaluate({"expert": file}, out_dir=tmp_path, **SETTING | {"tasks": [1, 4]})


def test_language_probe_looks_at_both_goals(policies, evaluation, monkeypatch):
    """The goal of the other task is made to hold after three steps; that ends the episode."""
    from apprentice.simulators.libero.simulator.env import LiberoEnv

    asked = []

    def success_of(self, task):
        asked.append(task)
        return len(asked) == 3

    settled = []
    reset = LiberoEnv.reset
    monkeypatch.setattr(LiberoEnv, "reset", lambda self, **how: settled.append(how) or reset(self, **how))
    monkeypatch.setattr(LiberoEnv, "success_of", success_of)
    protocol = replace(evaluation.protocol, instructed=((1, 8),), settle_steps=3, seed=5)
    checkpoint = evaluation.policies["expert"].checkpoint
    job = EpisodeJob("expert", str(policies["expert"]), checkpoint, 1, 8, 0, protocol, film="none")
    episode, files = run_episode(job)
    assert settled == [{"seed": 5, "init_state": 0, "start_noise": 0.0, "settle_steps": 3}] and episode.seed == 5
    assert list(files) == [f"traces/{episode.trace}"] and episode.video is None
    assert asked == [8, 8, 8]
    assert (episode.instruction, episode.steps) == ("put the bowl on the plate", 3)
    assert (episode.success, episode.instructed_success) == (False, True)
    (row,) = probe_rows([episode])
    assert (row.task, row.instructed, row.did_instructed, row.did_task, row.did_neither) == (1, 8, 1, 0, 0)
