"""The training loop: shares of a step, the moving average, what stops it, and what it leaves behind."""

import dataclasses
import importlib
import json
import os
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from tests.support import make_student
from torch import nn

from apprentice.common.errors import UserError
from apprentice.data.dataset import open_dataset
from apprentice.distill import trainer
from apprentice.distill.caches.cache import cached
from apprentice.distill.learner import Learner, decay
from apprentice.distill.runs import checkpoint
from apprentice.distill.runs.checkpoint import Trainee, damage
from apprentice.distill.runs.tracking import Clock, tracked
from apprentice.distill.samples import Samples
from apprentice.distill.stages import StageConfig, align
from apprentice.policy.modeling_apprentice import ApprenticePolicy

pytestmark = pytest.mark.usefixtures("own_places")


def weights(run: str) -> dict[str, torch.Tensor]:
    return load_file(Path(run) / "checkpoint" / "model.safetensors")


def log(run: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in (Path(run) / "log.jsonl").read_text().splitlines()]


def same(one: str, other: str) -> bool:
    return all(torch.equal(weights(one)[key], value) for key, value in weights(other).items())


@pytest.mark.parametrize(("stage", "n_obs_steps"), [("align", 1), ("align", 2), ("finetune", 1), ("finetune", 2)])
def test_shares_of_a_step_have_its_loss_and_its_gradients(
    small_dataset: Path, small_expert: Path, small_vlm: Path, stage: str, n_obs_steps: int
) -> None:
    """Although episodes end, or begin, in some shares and not in others."""
    student = make_student(small_dataset, small_expert, small_vlm, n_obs_steps=n_obs_steps, latent_weight=0.5)
    student.set_stage(stage)
    dataset = open_dataset(small_dataset)
    samples = Samples(dataset, student.config, cached(student, dataset), torch.device("cpu"))
    index = np.array([0, 10, 1, 9, 11, 22, 12, 20])
    results = []
    for shares in (1, 4):
        student.train().zero_grad()
        loss = torch.stack([student(samples.share(index, n, shares, seed=7))[0] for n in range(shares)]).mean()
        loss.backward()
        results.append([loss, *(p.grad for p in student.parameters() if p.grad is not None)])
    assert len(results[0]) > 5
    for one, many in zip(*results, strict=True):
        assert torch.allclose(one, many, rtol=1e-4, atol=1e-6)


def test_accumulated_steps_are_those_of_whole_batches(config: StageConfig, tmp_path: Path) -> None:
    align(config)
    parts = dataclasses.replace(config, accumulate=4, out=str(tmp_path / "parts"))
    align(parts)
    assert [entry["loss"] for entry in log(parts.out)] == pytest.approx([e["loss"] for e in log(config.out)], abs=1e-5)
    with pytest.raises(UserError, match=r"in 3 equal parts each, found 8 samples; fix: --batch-size=6"):
        align(dataclasses.replace(config, accumulate=3, out=str(tmp_path / "uneven")))


def test_the_average_is_one_and_comes_and_goes() -> None:
    module = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.AdamW(module.parameters())
    learner = Learner(module, "align", optimizer, decay(40))
    trainee = Trainee(learner, module, optimizer, Accelerator(), ema=0.75)
    expected = module.weight.detach().clone()
    for step in range(40):
        with torch.no_grad():
            module.weight.add_(1.0)
        trainee.follow(step)
        share = min(0.75, (1 + step) / (10 + step))
        expected = share * expected + (1 - share) * module.weight.detach()
    now = module.weight.detach().clone()
    with trainee.averaged():
        assert torch.allclose(module.weight, expected) and not torch.allclose(module.weight, now)
    assert torch.equal(module.weight, now)


def test_held_out_episodes_are_not_trained_on_and_their_loss_is_logged(config: StageConfig) -> None:
    config = dataclasses.replace(config, validate=1, validate_every=4, ema=0.5)
    policy = ApprenticePolicy.from_pretrained(align(config))
    dataset = open_dataset(config.dataset)
    samples = Samples(dataset, policy.config, cached(policy, dataset), torch.device("cpu"))
    rest, held = samples.split(1)
    assert list(held.frames) == list(range(11, 23)) and set(rest.frames) | set(held.frames) == set(range(36))
    entries = log(config.out)
    assert ["validation_loss" in entry for entry in entries] == [False, False, False, True, False, True]
    policy.set_stage("align")
    with torch.no_grad():
        loss = policy.eval()(held[np.arange(12)])[0].item()
    assert entries[-1]["validation_loss"] == pytest.approx(loss, rel=2e-2)  # caches are in bfloat16
    with pytest.raises(UserError, match="fewer than 3 episodes"):
        samples.split(3)


def test_numbers_that_are_not_finite_stop_it_and_good_weights_stay(
    config: StageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "SAVE_EVERY", 0.0)
    with pytest.raises(UserError, match=r"finite numbers at step \d, found .* fix: a smaller --learning-rate"):
        align(dataclasses.replace(config, learning_rate=1e30, steps=60))
    assert all(value.isfinite().all() for value in weights(config.out).values())
    assert all(np.isfinite(entry["loss"]) for entry in log(config.out))


def killed_after(monkeypatch: pytest.MonkeyPatch, config: StageConfig, saves: int) -> None:
    """A run that saves at every step and ends after so many of them."""
    done = []

    def save(*arguments: Any) -> None:
        checkpoint.save(*arguments)
        done.append(arguments)
        if len(done) == saves:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Clock, "due", lambda self, every: True)
        patch.setattr(trainer, "save", save)
        align(config)


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    config: StageConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = dataclasses.replace(config, ema=0.9)
    align(config)
    other = dataclasses.replace(config, out=str(tmp_path / "other"))
    killed_after(monkeypatch, other, 3)
    run = Path(other.out)
    kept = shutil.copytree(run, tmp_path / "kept")
    for harm, file, says in (
        (cut, "model.safetensors", "bytes instead of"),
        (flip, "training_state/state.safetensors", "is not what was written"),
        (Path.unlink, "contract.json", "is missing"),
        (flip, "manifest.json", "no readable"),
    ):
        shutil.rmtree(run)
        shutil.copytree(kept, run)
        harm(run / "checkpoint" / file)
        capsys.readouterr()
        align(other)
        assert (
            f"{says}" in (printed := capsys.readouterr().out) and "continuing from the checkpoint before it" in printed
        )
        assert same(config.out, other.out) and damage(run / "checkpoint.damaged") and not (run / "previous").exists()
        assert [entry["loss"] for entry in log(other.out)] == [entry["loss"] for entry in log(config.out)]


def test_a_student_that_is_damaged_is_not_trained_on(config: StageConfig, tmp_path: Path) -> None:
    align(dataclasses.replace(config, steps=1))
    flip(Path(config.out) / "checkpoint" / "model.safetensors")
    with pytest.raises(UserError, match=r"expected a whole checkpoint .* model\.safetensors is not what was written"):
        align(dataclasses.replace(config, student=config.out, out=str(tmp_path / "next")))


def test_killed_after_its_last_checkpoint_it_trains_no_further(
    config: StageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_after(monkeypatch, config, 6)
    before = weights(config.out)
    assert not (Path(config.out) / "cost.json").exists()
    align(config)
    assert all(torch.equal(before[key], value) for key, value in weights(config.out).items())
    cost = json.loads((Path(config.out) / "cost.json").read_text())
    assert cost["samples"] == 48 and cost["seconds"] == log(config.out)[-1]["seconds"]


def test_success_in_closed_loop_is_logged_and_its_time_is_none_of_training(config: StageConfig) -> None:
    seen, spent = [], []

    def rollout(student: Path, folder: Path) -> float:
        start = time.monotonic()
        ApprenticePolicy.from_pretrained(student)
        seen.append(folder.name)
        time.sleep(2)
        spent.append(time.monotonic() - start)
        return len(seen) / 4

    align(dataclasses.replace(config, rollouts=1, rollout_every=4), rollout)
    assert seen == ["000004", "000006"]
    assert [entry.get("success") for entry in log(config.out)] == [None, None, None, 0.25, None, 0.5]
    seconds = [entry["seconds"] for entry in log(config.out)]
    assert seconds[4] - seconds[3] < spent[0]


class Library(SimpleNamespace):
    """A tracker that breaks at its second line."""

    def __init__(self) -> None:
        self.lines: list[Any] = []

    def init(self, **settings: Any) -> "Library":
        self.settings = settings
        return self

    def log(self, entry: dict[str, float], step: int) -> None:
        if len(self.lines) == 1:
            raise OSError("no disk")
        self.lines.append((entry, step))


def test_a_tracker_gets_the_log_and_never_stops_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    library = Library()
    monkeypatch.setitem(sys.modules, "wandb", library)  # type: ignore[arg-type]
    with tracked("wandb", tmp_path / "run", {"steps": 3}) as tell:
        for step in range(3):
            tell({"step": step, "loss": 1.0})
    assert library.lines == [({"loss": 1.0}, 0)]
    assert library.settings["mode"] == "offline" and library.settings["config"] == {"steps": 3}
    assert "continuing without wandb: no disk" in capsys.readouterr().out
    for kind, printed in (("trackio", ""), ("wandb", "continuing without wandb"), ("none", "")):
        monkeypatch.setitem(sys.modules, kind, None)  # type: ignore[arg-type]
        with tracked(kind, tmp_path / "run", {}) as tell:
            tell({"step": 0})
        assert capsys.readouterr().out.startswith(printed) and bool(printed) == (kind == "wandb")


@pytest.mark.skipif(importlib.util.find_spec("trackio") is None, reason="trackio is not installed")
def test_trackio_keeps_the_curves_on_this_machine(tmp_path: Path) -> None:
    for steps in ([0, 1], [2]):  # killed, and on
        with tracked("trackio", tmp_path / "run", {"steps": 3}) as tell:
            for step in steps:
                tell({"step": step, "loss": 1.0 / (1 + step)})
    import trackio

    names = [run.name for run in trackio.Api().runs("apprentice")]
    assert names.count(f"{tmp_path.name}-run") == 1
