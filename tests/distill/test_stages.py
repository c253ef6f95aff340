"""Both stages on a small real dataset: what trains, what stays, what survives a kill."""

import dataclasses
import json
import multiprocessing
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from apprentice.common.errors import UserError
from apprentice.data.batch import EXPERT_LATENTS
from apprentice.data.dataset import open_dataset
from apprentice.distill import trainer
from apprentice.distill.caches.cache import cached
from apprentice.distill.learner import decay
from apprentice.distill.samples import Samples, order
from apprentice.distill.stages import StageConfig, align, finetune
from apprentice.policy.modeling_apprentice import ApprenticePolicy
from apprentice.simulators.libero.convention import contract as libero_contract


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APPRENTICE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def config(small_dataset: Path, small_expert: Path, small_vlm: Path, tmp_path: Path) -> StageConfig:
    paths = {"dataset": small_dataset, "expert": small_expert, "vlm": small_vlm, "out": tmp_path / "run"}
    return StageConfig(**{k: str(v) for k, v in paths.items()}, steps=6, batch_size=8)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {key for key in before if not torch.equal(before[key], after[key])}


def test_align_moves_ours_alone_and_finetune_spares_vision_and_head(config: StageConfig, tmp_path: Path) -> None:
    start = dataclasses.replace(config, steps=0, out=str(tmp_path / "start"))
    untouched = ApprenticePolicy.from_pretrained(align(dataclasses.replace(start, steps=1, learning_rate=0.0)))
    aligned = align(config)
    ours = changed(untouched.state_dict(), ApprenticePolicy.from_pretrained(aligned).state_dict())
    assert {name.split(".")[0] for name in ours} == {"action_tokens", "state_encoder", "mapper"}

    tuned = finetune(dataclasses.replace(config, student=str(aligned), out=str(tmp_path / "tuned")))
    moved = changed(weights(aligned), weights(tuned))
    assert {name.split(".")[0] for name in moved} == {"action_tokens", "state_encoder", "mapper", "decoder", "vlm"}
    language = {name for name in moved if name.startswith("vlm")}
    assert all(".language_model." in name and "embed_tokens" not in name for name in language)
    frozen = {name for name in weights(tuned) if name.startswith("vlm")} - language
    assert any("vision_tower" in name for name in frozen) and any("projector" in name for name in frozen)


def test_alignment_loss_falls_and_log_and_cost_tell_it(config: StageConfig) -> None:
    align(dataclasses.replace(config, steps=60, learning_rate=1e-2, balance="frame"))
    log = [json.loads(line) for line in (Path(config.out) / "log.jsonl").read_text().splitlines()]
    assert log[-1]["loss"] < 0.8 * log[0]["loss"]
    cost = json.loads((Path(config.out) / "cost.json").read_text())
    policy = ApprenticePolicy.from_pretrained(Path(config.out) / "checkpoint")
    policy.set_stage("align")
    assert cost["trainable_parameters"] == sum(p.numel() for p in policy.parameters() if p.requires_grad)
    assert cost["samples"] == 60 * 8


def test_latents_are_learnt_in_units_of_the_experts(config: StageConfig) -> None:
    dataset = open_dataset(config.dataset)
    policy = ApprenticePolicy.from_pretrained(align(dataclasses.replace(config, steps=1, learning_rate=0.0)))
    samples = Samples(dataset, policy.config, cached(policy, dataset), policy.vlm.device)
    wanted = samples[np.arange(len(samples))][EXPERT_LATENTS].double().numpy()
    np.testing.assert_allclose(policy.latent_offset.numpy(), wanted.mean(0), atol=1e-5)
    np.testing.assert_allclose(policy.latent_scale.numpy(), wanted.std(0), atol=1e-5)
    for parameter in policy.mapper[-1].parameters():
        parameter.data.zero_()  # a student that knows the mean alone
    with torch.no_grad():
        assert policy(samples[np.arange(len(samples))])[0].item() == pytest.approx(1, abs=1e-3)


def test_fine_tuning_near_the_expert_ends_nearer_to_it(config: StageConfig, tmp_path: Path) -> None:
    start = dataclasses.replace(config, student=str(align(config)), steps=30, learning_rate=3e-3, out="")
    dataset = open_dataset(config.dataset)
    distances = []
    for weight in (0.0, 10.0):
        policy = ApprenticePolicy.from_pretrained(
            finetune(dataclasses.replace(start, latent_weight=weight, out=str(tmp_path / f"weight{weight}")))
        )
        policy.set_stage("align")
        rows = cached(policy, dataset)
        batch = Samples(dataset, policy.config, rows, policy.vlm.device)[np.arange(16)]
        with torch.no_grad():
            distances.append(policy(batch)[0].item())
    assert distances[1] < 0.9 * distances[0]


@pytest.mark.parametrize("stage", ["align", "finetune"])
def test_a_killed_run_ends_like_one_that_was_not(config: StageConfig, tmp_path: Path, stage: str) -> None:
    run = {"align": align, "finetune": finetune}[stage]
    config = dataclasses.replace(config, steps=60)
    whole = run(config)
    other = dataclasses.replace(config, out=str(tmp_path / "killed"))

    def begin() -> None:
        trainer.SAVE_EVERY = 0.1
        run(other)

    process = multiprocessing.get_context("fork").Process(target=begin)  # to import it all again takes long
    process.start()
    state = Path(other.out) / "checkpoint" / "training_state" / "progress.json"
    while not state.exists():
        assert process.is_alive(), "the run ended before it could be killed"
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (Path(other.out) / "cost.json").exists()
    assert changed(weights(whole), weights(run(other))) == set()
    steps = [json.loads(line)["step"] for line in (Path(other.out) / "log.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps)) and steps[-1] == 59


def test_every_epoch_sees_every_sample_once() -> None:
    chain = np.concatenate([order(step, 4, 10, seed=3) for step in range(5)])
    assert sorted(chain[:10]) == sorted(chain[10:]) == list(range(10))
    assert list(chain[:10]) != list(chain[10:])


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    rate = decay(100)
    assert rate(0) == pytest.approx(0.1) and rate(9) == 1.0 and rate(55) == pytest.approx(0.5) and rate(100) == 0.0


def drop_camera(root: Path) -> None:
    path = root / "meta" / "info.json"
    info = json.loads(path.read_text())
    del info["features"]["observation.images.image2"]
    path.write_text(json.dumps(info))
    (root / "meta" / "contract.json").unlink()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("camera", r"cameras: .* has \(.*image2'\), .* has \('observation\.images\.image',\); fix: rename"),
        ("state", r"observation\.state: .* reads \(8,\), .* has \(9,\)"),
        ("size", r"image_size: .* has \(64, 64\), .* has \(96, 96\); fix: render or record"),
        ("rotation", r"rotation: the student has 180, .* has 0; fix: rotate"),
    ],
)
def test_a_dataset_that_does_not_fit_is_refused(config: StageConfig, tmp_path: Path, fault: str, message: str) -> None:
    from tests.support import make_dataset

    aligned = align(dataclasses.replace(config, steps=1))
    shape = {"state": {"state": 9}, "size": {"size": 96}}.get(fault, {})
    other = make_dataset(tmp_path / "other", episodes=1, **shape)
    if fault == "camera":
        drop_camera(other)
    elif fault == "rotation":
        libero_contract(64, "fast").having(rotation=0).save(other / "meta")
    else:
        (other / "meta" / "contract.json").unlink()
    tuned = dataclasses.replace(config, student=str(aligned), dataset=str(other), out=str(tmp_path / "tuned"))
    with pytest.raises(UserError, match=message):
        finetune(tuned)
    if fault != "rotation":  # an expert without a contract is held against the data as well
        fresh = dataclasses.replace(tuned, student="", out=str(tmp_path / "fresh"))
        with pytest.raises(UserError, match=message):
            finetune(fresh)
