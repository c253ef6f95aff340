"""Experts on our own reader and loop, against LeRobot's reader, LeRobot's schedule and a plain loop of PyTorch."""

import dataclasses
import json
import multiprocessing
import re
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.configs.default import DatasetConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.datasets.factory import make_dataset
from lerobot.policies.factory import make_policy, make_pre_post_processors
from safetensors.torch import load_file
from tests.experts.zoo import make_clip
from tests.support import CAMERAS, make_batch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import default_collate

from apprentice import cli
from apprentice.common.errors import UserError
from apprentice.data.contract import Contract
from apprentice.data.mixture import open_mixture
from apprentice.distill import expert, trainer
from apprentice.distill.caches.cache import cached_images
from apprentice.distill.expert import ExpertConfig, built, configured, prepared, processors, train_expert
from apprentice.distill.runs import checkpoint
from apprentice.distill.runs.tracking import Clock
from apprentice.distill.samples import Samples
from apprentice.experts import load_expert
from apprentice.experts.kinds import EXPERTS

FRAMES = np.array([0, 3, 10, 11, 17, 22, 23, 35])  # of three episodes, their ends among them
SEER = {"width": "48", "layers": "1", "heads": "2", "chunk_size": "4"}
EYES = {"pretrained_backbone_weights": "null"}
DENOISING = {"horizon": "8", "n_action_steps": "4", "num_train_timesteps": "6"}
SMALL: dict[str, dict[str, str]] = {
    "seer": SEER,
    "seer_full": {
        **{"n_obs_steps": "3", "chunk_size": "2", "width": "32", "layers": "1", "heads": "2", "mae": "null"},
        **{"clip": "null", "image_size": "32", "vision_width": "32", "vision_layers": "1", "vision_heads": "2"},
        **{"text_width": "16", "text_layers": "1", "text_heads": "2", "text_features": "16", "foresight_tokens": "4"},
        **{"foresight_layers": "1", "resampler_tokens": "2", "resampler_layers": "1"},
    },
    "act": {
        **{"chunk_size": "6", "n_action_steps": "6", "dim_model": "32", "n_heads": "2", "dim_feedforward": "32"},
        **{"n_encoder_layers": "1", "n_vae_encoder_layers": "1", **EYES},
    },
    "diffusion": {
        **{"down_dims": "[16, 32]", "diffusion_step_embed_dim": "16", "n_groups": "4", **DENOISING, **EYES},
        **{"spatial_softmax_num_keypoints": "4", "drop_n_last_frames": "3"},
    },
    "vqbet": {
        **{"n_obs_steps": "3", "n_action_pred_token": "2", "action_chunk_size": "4", "crop_shape": "null", **EYES},
        **{"n_vqvae_training_steps": "2", "vqvae_n_embed": "4", "vqvae_embedding_dim": "8", "gpt_n_layer": "1"},
        **{"vqvae_enc_hidden_dim": "8", "gpt_input_dim": "16", "gpt_output_dim": "16", "gpt_hidden_dim": "16"},
        **{"gpt_n_head": "2"},
    },
    "multi_task_dit": {
        **{"hidden_dim": "16", "num_layers": "1", "num_heads": "2", "timestep_embed_dim": "8", **DENOISING},
        **{"tokenizer_max_length": "16", "image_crop_shape": "null"},
    },
}


@pytest.fixture(autouse=True)
def own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APPRENTICE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(trainer, "LOG_EVERY", 1)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def configs(small_dataset: Path, clip: Path, tmp_path: Path) -> Any:
    """The configuration of a small policy of each kind."""

    def of(kind: str, /, **fields: Any) -> ExpertConfig:
        names = {"vision_encoder_name": str(clip), "text_encoder_name": str(clip)} if kind == "multi_task_dit" else {}
        small = {"set": {**SMALL[kind], **names}, "cameras": CAMERAS[:1] if kind == "vqbet" else ()}
        usual = {
            "kind": kind,
            "dataset": str(small_dataset),
            "out": str(tmp_path / "run"),
            "batch_size": 4,
            "track": "none",
        }
        return ExpertConfig(**{**usual, **small, "precision": "float32", **fields})

    return of


def weights(run: str) -> dict[str, torch.Tensor]:
    return load_file(Path(run) / "checkpoint" / "model.safetensors")


def same(one: str, other: str) -> bool:
    assert weights(one).keys() == weights(other).keys()
    return all(torch.equal(weights(one)[key], value) for key, value in weights(other).items())


def log(run: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in (Path(run) / "log.jsonl").read_text().splitlines()]


def ours(config: ExpertConfig) -> tuple[Any, Samples]:
    """A fresh policy and its samples."""
    torch.manual_seed(config.seed)
    mixture = open_mixture(config.dataset)
    policy, _ = built(configured(config), mixture, config.cameras, None)
    rows = cached_images(mixture.datasets, list(policy.config.image_features))
    samples = Samples.of(mixture.datasets, policy.config, rows, torch.device("cpu"))
    samples.prepare = prepared(processors(policy, mixture, None)[0])
    return policy, samples


def theirs(config: ExpertConfig) -> tuple[Any, Any, TrainPipelineConfig]:
    """LeRobot's dataset and processor for the same policy, as lerobot-train makes them."""
    policy = configured(config)
    place = DatasetConfig("local/small", root=str(config.dataset), video_backend="pyav")
    pipeline = TrainPipelineConfig(dataset=place, policy=policy, steps=config.steps)
    dataset = make_dataset(pipeline)
    if config.cameras:
        policy = built(policy, open_mixture(config.dataset), config.cameras, None)[0].config
    torch.manual_seed(config.seed)
    pipeline.policy = make_policy(policy, dataset.meta).config
    return dataset, make_pre_post_processors(policy, dataset_stats=dataset.meta.stats)[0], pipeline


def test_every_kind_of_expert_can_be_trained() -> None:
    kinds = ExpertConfig.__annotations__["kind"].__args__[0].__args__
    assert set(kinds) == set(EXPERTS) == set(SMALL)


@pytest.mark.parametrize("kind", SMALL)
def test_a_batch_is_lerobots(configs: Any, kind: str) -> None:
    config = configs(kind)
    _, samples = ours(config)
    dataset, before, _ = theirs(config)
    drop = {"diffusion": 3, "multi_task_dit": 8 - 4 - 2 + 1}.get(kind, 0)  # the last frames of each episode
    assert len(samples) == 36 - 3 * drop
    index = FRAMES[np.isin(FRAMES, samples.frames)]
    batch = default_collate([dataset[int(frame)] for frame in index])
    batch |= {key: batch[key].float() / 255 for key in CAMERAS}
    wanted, found = before(batch), samples.share(np.searchsorted(samples.frames, index), 0, 1)
    assert found["task"] == wanted["task"]
    keys = {key for key, value in found.items() if isinstance(value, torch.Tensor)}
    observed = {key for key in wanted if key.startswith(("observation", "action")) and wanted[key] is not None}
    assert keys == observed - (set(wanted) & {f"{CAMERAS[1]}{end}" for end in ("", "_is_pad") if config.cameras})
    for key in keys:
        assert torch.equal(found[key], wanted[key]), key


@pytest.mark.parametrize("kind", SMALL)
def test_it_trains_and_teaches(configs: Any, small_dataset: Path, kind: str) -> None:
    steps = 3 if kind == "vqbet" else 1
    config = configs(kind, steps=steps, validate=1, validate_every=1)
    folder = train_expert(config)
    teacher = load_expert(folder, torch.device("cpu"))
    assert teacher.policy.config.type == kind
    contract = Contract.load(folder)
    assert contract.horizon == teacher.horizon and contract.rotation == 180
    if teacher.n_obs_steps == 1:
        batch = make_batch(small_dataset, [0, 20])
        assert torch.allclose(teacher.decoded(teacher.encode(batch)), teacher.own_actions(batch), atol=1e-4)
    seen = [entry for entry in log(config.out) if "validation_loss" in entry]
    assert len(seen) == steps - (kind == "vqbet")  # a VQ-BeT's first phase has another loss
    assert seen[-1]["best_validation_loss"] == min(entry["validation_loss"] for entry in seen)
    assert json.loads((Path(config.out) / "cost.json").read_text())["samples"] == 4 * steps


def test_its_weights_are_those_of_a_plain_loop_with_an_average(configs: Any) -> None:
    noiseless = {"shift": "0", "jitter": "0", "position_noise_mm": "0", "angle_noise_rad": "0"}
    still = {**SEER, **noiseless, "scheduler_warmup_steps": "2"}
    config = configs("seer", steps=6, ema=0.9, set=still, balance="frame")
    train_expert(config)
    policy, samples = ours(config)
    dataset, before, _ = theirs(config)
    # Fused as ours: Adam blows up the rounding of gradients that are next to zero.
    optimizer = torch.optim.AdamW(policy.get_optim_params(), lr=5e-4, weight_decay=1e-4, fused=True)
    scheduler = policy.config.get_scheduler_preset().build(optimizer, 6)
    average = AveragedModel(policy)
    average.n_averaged.fill_(1)  # it begins with what it is given
    for step in range(6):
        batch = default_collate([dataset[int(frame)] for frame in samples.order(step, 4, seed=0)])
        loss = policy.train()(before(batch | {key: batch[key].float() / 255 for key in CAMERAS}))[0]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        average.multi_avg_fn = get_ema_multi_avg_fn(min(0.9, (1 + step) / (10 + step)))
        average.update_parameters(policy)
    for name, value in weights(config.out).items():
        assert torch.allclose(value, average.module.state_dict()[name], atol=1e-6), name


def test_killed_it_goes_on_to_the_same_weights(configs: Any, tmp_path: Path) -> None:
    config = configs("seer", steps=30, validate=1, validate_every=10, gripper_change_factor=2.0)
    train_expert(config)
    other = dataclasses.replace(config, out=str(tmp_path / "killed"))

    def run() -> None:
        trainer.SAVE_EVERY = 0.1
        train_expert(other)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    state = Path(other.out) / "checkpoint" / "training_state" / "progress.json"
    while not state.exists():
        assert process.is_alive(), "the run ended before it could be killed"
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (Path(other.out) / "cost.json").exists()
    train_expert(other)
    assert same(config.out, other.out)
    assert log(other.out)[-1]["best_step"] == log(config.out)[-1]["best_step"]


@pytest.mark.parametrize("kind", ["vqbet", "seer_full"])
def test_what_it_keeps_outside_its_weights_goes_on(
    configs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A VQ-BeT counts the steps of its first phase, a full Seer's tokenizer decides the size of its vocabulary."""
    config = configs(kind, steps=4)
    train_expert(config)
    other = dataclasses.replace(config, out=str(tmp_path / "killed"))

    def save(*arguments: Any) -> None:
        checkpoint.save(*arguments)
        if arguments[2].step == 1:  # of the two steps of its first phase
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Clock, "due", lambda self, every: True)
        patch.setattr(trainer, "save", save)
        train_expert(other)
    train_expert(other)
    assert same(config.out, other.out)


def test_it_goes_on_from_other_weights_and_their_statistics(configs: Any, small_dataset: Path, tmp_path: Path) -> None:
    first = train_expert(configs("seer", steps=1))
    other = configs("seer", kind=None, set={"optimizer_lr": "0"}, init=str(first), steps=1, out=str(tmp_path / "next"))
    train_expert(other)
    assert same(str(first.parent), other.out)
    assert configured(other).chunk_size == 4 and configured(other).optimizer_lr == 0
    with pytest.raises(UserError, match=r"expected a act in .*, found a seer; fix: --kind=seer"):
        configured(dataclasses.replace(other, kind="act"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--set", "chunk=4"], r"expected a field of SeerConfig, found chunk; fix: --set chunk_size=\.\.\."),
        (["--set", "chunk_size=four"], "expected chunk_size to be of type int, found four"),
        (["--set", "chunk_size=2"], "n_action_steps in 1..chunk_size"),
        (["--set", "n_obs_steps=2"], "expected n_obs_steps 1"),
        (["--cameras", "front"], "expected cameras among observation.images.image"),
        (["--kind", "vqbet", "--set", "crop_shape=null"], "one image .* fix: --set another value, --cameras"),
        (["--validate", "3"], "fewer than 3 episodes"),
    ],
)
def test_what_does_not_fit_is_an_error_that_says_so(
    small_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: list[str], message: str
) -> None:
    words = ["train-expert", "--dataset", str(small_dataset), "--out", str(tmp_path / "run"), *settings]
    assert cli.main([*words, "--track", "none"]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_bfloat16_is_tried_once_and_kept(configs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []

    def probe(policy: Any, batch: Any) -> bool:
        found.append(len(batch["task"]))
        return True

    monkeypatch.setattr(expert, "bfloat16_is_faster", probe)
    config = configs("seer", precision="auto", steps=1)
    train_expert(config)
    assert found == [config.batch_size] and json.loads((Path(config.out) / "precision.json").read_text()) == {
        "bfloat16": True
    }


def test_weights_that_cannot_be_fetched_are_named_and_the_folder_stays_free(
    configs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a network, ACT's usual ResNet cannot be had; the same folder then takes another setting."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    config = configs("act", steps=1)
    with pytest.raises(UserError, match=r"go online once, or --set pretrained_backbone_weights=null"):
        train_expert(dataclasses.replace(config, set={k: v for k, v in config.set.items() if k not in EYES}))
    train_expert(config)
    with pytest.raises(UserError, match=r"expected the run of .* again, found another: seed was"):
        train_expert(dataclasses.replace(config, seed=1))


def test_a_folder_with_a_configuration_of_something_else_is_left_alone(configs: Any, tmp_path: Path) -> None:
    file = tmp_path / "run" / "config.json"
    file.parent.mkdir()
    file.write_text('{"model_type": "smolvlm"}')
    with pytest.raises(UserError, match=r"expected the run of .* again, found another: stage was None"):
        train_expert(configs("seer", steps=1))
    assert file.read_text() == '{"model_type": "smolvlm"}'
