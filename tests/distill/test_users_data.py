"""Training on datasets as users have them: cameras of different sizes and other names, unread columns, other units."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from lerobot.configs import FeatureType
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACTPolicy
from lerobot.policies.factory import make_pre_post_processors
from lerobot.utils.feature_utils import dataset_to_policy_features
from safetensors.torch import load_file, save_file
from tests.data.test_recordings import TABLE, TOP, WRIST, record
from tests.serve.running import Running
from websockets.sync.client import connect

from apprentice.common.adapters import rename_map
from apprentice.common.errors import UserError
from apprentice.data.contract import Contract
from apprentice.data.dataset import column, open_dataset
from apprentice.data.items import observed
from apprentice.distill.check import expert_check
from apprentice.distill.stages import StageConfig, align, finetune
from apprentice.experts import load_expert
from apprentice.policy.modeling_apprentice import ApprenticePolicy
from apprentice.serve.checkpoint import inspect_checkpoint, read_inputs
from apprentice.serve.requests import Reader, Request
from apprentice.serve.server import PolicyServer
from apprentice.serve.wire import pack, unpack

CPU = torch.device("cpu")
FRONT = "observation.images.front"


def make_act(folder: Path, root: Path, **fields: Any) -> Path:
    """A small ACT with random weights, as lerobot-train writes it: every observation of the dataset is listed."""
    torch.manual_seed(0)
    meta = open_dataset(root).meta
    features = dataset_to_policy_features(meta.features)
    size = {"dim_model": 32, "n_heads": 2, "dim_feedforward": 32, "n_encoder_layers": 1, "use_vae": False}
    config = ACTConfig(
        **{
            **size,
            "chunk_size": 3,
            "n_action_steps": 3,
            "pretrained_backbone_weights": None,
            "device": "cpu",
            **fields,
        },
        input_features={k: f for k, f in features.items() if f.type is not FeatureType.ACTION},
        output_features={k: f for k, f in features.items() if f.type is FeatureType.ACTION},
    )
    ACTPolicy(config).save_pretrained(folder)
    for processor in make_pre_post_processors(config, dataset_stats=meta.stats):
        processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cameras of different sizes, efforts that are no numbers, two episodes of four frames."""
    return record(tmp_path_factory.mktemp("data") / "mixed", {TOP: (64, 96, 3), WRIST: (64, 64, 3)})


@pytest.fixture(scope="module")
def act(mixed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_act(tmp_path_factory.mktemp("act") / "act", mixed)


@pytest.fixture(scope="module")
def config(mixed: Path, act: Path, small_vlm: Path, tmp_path_factory: pytest.TempPathFactory) -> StageConfig:
    folder = tmp_path_factory.mktemp("run")
    words = {"vlm": str(small_vlm), "expert": str(act), "dataset": str(mixed), "out": str(folder / "align")}
    return StageConfig(**words, steps=2, batch_size=4, gripper_state_dims=1, track="none")


@pytest.fixture(scope="module")
def aligned(config: StageConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("APPRENTICE_CACHE", str(tmp_path_factory.mktemp("cache")))
        return align(config)


def changed(root: Path, target: Path, key: str, change: Any) -> Path:
    """A copy of a dataset with other numbers in a column, and no statistics of them."""
    copy = Path(shutil.copytree(root, target))
    table = pd.read_parquet(copy / TABLE)
    table[key] = [np.float32(change(np.array(row))) for row in table[key]]
    table.to_parquet(copy / TABLE)
    (copy / "meta" / "stats.json").unlink()
    return copy


def test_cameras_of_different_sizes_teach_and_are_learned(aligned: Path, mixed: Path, act: Path) -> None:
    policy = ApprenticePolicy.from_pretrained(aligned)
    assert list(policy.config.input_features) == [TOP, WRIST, "observation.state"]
    assert policy.config.gripper_dims == 1 and policy.state_encoder.gripper.in_features == 1
    batch = observed(open_dataset(mixed)).batch(np.array([0, 5]))
    plans = policy.predict_action_chunk(batch)
    assert plans.shape == (2, 3, 6) and plans.isfinite().all()
    for key in (TOP, WRIST):  # it sees both
        assert (policy.predict_action_chunk({**batch, key: 255 - batch[key]}) - plans).abs().max() > 1e-6
    expert = load_expert(act, CPU)
    assert list(expert.inputs) == [TOP, WRIST, "observation.state"]
    torch.testing.assert_close(expert.decoded(expert.encode(batch)), expert.own_actions(batch))
    with pytest.raises(UserError, match=r"expected images of \(64, 96\) px .*top, found \(64, 64\); fix: let"):
        policy.predict_action_chunk({**batch, TOP: batch[WRIST]})


def test_nobody_asks_for_what_nobody_reads(
    aligned: Path, act: Path, tmp_path: Path, config: StageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APPRENTICE_CACHE", str(tmp_path / "cache"))
    plain = record(tmp_path / "plain", {TOP: (64, 96, 3), WRIST: (64, 64, 3)})
    info = json.loads((plain / "meta" / "info.json").read_text())
    del info["features"]["observation.effort"]
    (plain / "meta" / "info.json").write_text(json.dumps(info))
    pd.read_parquet(plain / TABLE).drop(columns="observation.effort").to_parquet(plain / TABLE)
    tuned = finetune(
        StageConfig(
            dataset=str(plain), out=str(tmp_path / "tuned"), student=str(aligned), steps=1, batch_size=4, track="none"
        )
    )
    assert (tuned / "model.safetensors").exists()
    read = [TOP, WRIST, "observation.state"]
    for folder in (aligned, act):
        assert list(PolicyServer(folder).reader.needed) == read
        assert read_inputs(json.loads((folder / "config.json").read_text())["input_features"]) == read


def test_other_names_and_sizes_from_dataset_to_robot(
    act: Path, small_vlm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APPRENTICE_CACHE", str(tmp_path / "cache"))
    root = record(tmp_path / "data", {FRONT: (128, 192, 3), WRIST: (64, 64, 3)})
    words = {"vlm": str(small_vlm), "expert": str(act), "dataset": str(root), "out": str(tmp_path / "run")}
    with pytest.raises(UserError, match=r"top: expert .* reads \(3, 64, 96\), the dataset has none"):
        align(StageConfig(**words | {"out": str(tmp_path / "no")}, steps=1, batch_size=4, track="none"))
    names, sizes = {FRONT: TOP}, {TOP: "64x96"}
    student = align(StageConfig(**words, rename=names, resize=sizes, steps=1, batch_size=4, track="none"))
    assert rename_map(student) == names
    policy = ApprenticePolicy.from_pretrained(student).eval()
    before, _ = make_pre_post_processors(policy.config, str(student))
    robot = {key: value[0] for key, value in observed(open_dataset(root)).batch(np.array([2])).items() if key != "task"}
    found = policy.predict_action_chunk(before({**robot, "task": "go"}))
    learned = observed(open_dataset(root, names, sizes)).batch(np.array([2]))
    torch.testing.assert_close(found, policy.predict_action_chunk(learned), atol=2e-2, rtol=0)

    inspect_checkpoint("student", student, Contract(cameras=(FRONT, WRIST), fps=20))
    with pytest.raises(UserError, match=r"cameras: the environment has .*, policy student has"):
        inspect_checkpoint("student", student, Contract(cameras=(WRIST, FRONT)))
    served = Running(student)
    state = robot["observation.state"].numpy()
    pictures = {key: robot[key].permute(1, 2, 0).numpy() for key in (FRONT, WRIST)}
    try:
        with connect(served.address, compression=None) as client:
            assert unpack(client.recv())["contract"]["cameras"] == [FRONT, WRIST]
            answers = []
            for name in (FRONT, TOP, "observation.images.else"):  # the robot's, the student's, nobody's
                images = {name: pictures[FRONT], WRIST: pictures[WRIST]}
                client.send(pack({**images, "observation.state": state, "prompt": "go"}))
                answers.append(client.recv())
    finally:
        served.stop()
    for answer in answers[:2]:
        np.testing.assert_allclose(unpack(answer)["actions"], found[0].numpy(), atol=1e-4)
    assert re.match(rf"expected {FRONT} or {TOP}, found observation.images.else, ", answers[2])


def test_cameras_that_exchange_names_are_renamed_once(aligned: Path) -> None:
    config = ApprenticePolicy.from_pretrained(aligned).config
    reader = Reader(config, {TOP: WRIST, WRIST: TOP})
    pictures = {key: np.zeros((64, width, 3), np.uint8) for key, width in ((TOP, 64), (WRIST, 96))}  # as the other's
    asked = reader.read(pack({**pictures, "observation.state": np.zeros(6, np.float32), "prompt": "go"}))
    assert isinstance(asked, Request) and {k: v.shape for k, v in asked.observation.items() if k in pictures} == {
        key: image.shape for key, image in pictures.items()
    }


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("observation.state", np.rad2deg, r"expected observation\.state in the units of the student"),
        ("action", lambda row: 10 * row, r"expected action in the units of the student"),
    ],
)
def test_other_units_are_refused(
    aligned: Path, mixed: Path, config: StageConfig, tmp_path: Path, key: str, change: Any, message: str
) -> None:
    other = changed(mixed, tmp_path / "other", key, change)
    tuned = StageConfig(dataset=str(other), out=str(tmp_path / "tuned"), student=str(aligned), steps=1, track="none")
    with pytest.raises(
        UserError, match="(?s)" + message + r", found other numbers .*column 0: the student learned from"
    ):
        finetune(tuned)
    fresh = StageConfig(
        dataset=str(other), out=str(tmp_path / "fresh"), vlm=config.vlm, expert=config.expert, steps=1, track="none"
    )
    with pytest.raises(UserError, match=message.replace("the student", "expert ")):
        align(fresh)


def test_a_constant_column_stays_what_it_was(
    mixed: Path, small_vlm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("APPRENTICE_CACHE", str(tmp_path / "cache"))
    still = np.array([1, 1, 1, 0, 1, 1])

    def constant(value: float, name: str) -> Path:
        return changed(mixed, tmp_path / name, "action", lambda row: row * still + value * (1 - still))

    root = constant(45.3, "data")
    expert_folder = make_act(tmp_path / "act", root)
    expert = load_expert(expert_folder, CPU)
    assert expert.action_affine()[1][3] == 0
    batch = observed(open_dataset(root)).batch(np.array([0, 3]))
    assert (expert.decoded(expert.encode(batch))[..., 3] - 45.3).abs().max() < 1e-4
    expert_check(str(expert_folder), str(root), frames=4)
    assert "fault of ours" not in capsys.readouterr().out
    words = {"vlm": str(small_vlm), "expert": str(expert_folder), "batch_size": 4, "track": "none"}
    tuned = finetune(StageConfig(dataset=str(root), out=str(tmp_path / "run"), **words, steps=2))
    policy = ApprenticePolicy.from_pretrained(tuned).eval()
    assert (policy.predict_action_chunk(batch)[..., 3] - 45.3).abs().max() < 1e-4
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert max(losses) < 10
    other = constant(45.4, "other")
    with pytest.raises(UserError, match=r"column 3: .* learned from 45\.3 alone, .* has 45\.4 to 45\.4"):
        finetune(StageConfig(dataset=str(other), out=str(tmp_path / "no"), **words, steps=1))


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_statistics_that_are_no_numbers_are_named(act: Path, tmp_path: Path, value: float) -> None:
    folder = Path(shutil.copytree(act, tmp_path / "act"))
    file = next(folder.glob("policy_preprocessor*.safetensors"))
    stats = load_file(file)
    stats["observation.state.std"][2] = value
    save_file(stats, file)
    with pytest.raises(UserError, match=r"expected finite statistics of observation\.state .* in column 2; fix"):
        load_expert(folder, CPU)


def test_one_joint(small_vlm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APPRENTICE_CACHE", str(tmp_path / "cache"))
    root = record(tmp_path / "data", {TOP: (64, 64, 3)}, state=1)
    words = {"vlm": str(small_vlm), "expert": str(make_act(tmp_path / "act", root)), "batch_size": 4, "track": "none"}
    student = align(StageConfig(dataset=str(root), out=str(tmp_path / "run"), **words, steps=1))
    tuned = finetune(
        StageConfig(dataset=str(root), out=str(tmp_path / "ft"), student=str(student), steps=1, track="none")
    )
    policy = ApprenticePolicy.from_pretrained(tuned).eval()
    plans = policy.predict_action_chunk(observed(open_dataset(root)).batch(np.array([0, 3])))
    assert plans.shape == (2, 3, 1) and column(open_dataset(root), "action").std() > 0
    with pytest.raises(UserError, match=r"expected --gripper-state-dims of 0 to 1, .*found 2"):
        align(StageConfig(dataset=str(root), out=str(tmp_path / "two"), **words, gripper_state_dims=2))
