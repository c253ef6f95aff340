"""Runs: what may change when one goes on, what it keeps, what a kill leaves, and which settings are refused."""

import dataclasses
import json
import os
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from apprentice import cli
from apprentice.common.errors import UserError
from apprentice.distill import stages, trainer
from apprentice.distill.caches.store import entries
from apprentice.distill.learner import decay
from apprentice.distill.runs import checkpoint
from apprentice.distill.runs.best import Best
from apprentice.distill.runs.checkpoint import MANIFEST, Position
from apprentice.distill.runs.run import same_place
from apprentice.distill.runs.tracking import Clock
from apprentice.distill.samples import Samples, order
from apprentice.distill.stages import StageConfig, align, finetune, settled
from apprentice.policy.modeling_apprentice import ApprenticePolicy

RECIPES = Path(__file__).parents[2] / "recipes"


pytestmark = pytest.mark.usefixtures("own_places")


@pytest.fixture
def config(config: StageConfig) -> StageConfig:
    return dataclasses.replace(config, steps=4)


@pytest.fixture(scope="module")
def aligned(small_dataset: Path, small_expert: Path, small_vlm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose expert lies where it can be moved away."""
    place = tmp_path_factory.mktemp("aligned")
    expert = shutil.copytree(small_expert, place / "expert")
    paths = {"dataset": small_dataset, "expert": expert, "vlm": small_vlm, "out": place / "run"}
    align(StageConfig(**{k: str(v) for k, v in paths.items()}, steps=1, batch_size=4, track="none"))
    return place / "run"


def tuning(aligned: Path, config: StageConfig, **fields: Any) -> StageConfig:
    plain = {"vlm": "", "expert": "", "steps": 1, "batch_size": 4, "out": str(Path(config.out).with_name("tuned"))}
    return dataclasses.replace(config, student=str(aligned), **{**plain, **fields})


def log(run: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in (Path(run) / "log.jsonl").read_text().splitlines()]


def recorded(run: str, name: str = "config.json") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(run) / name).read_text())
    return found


def weights(run: str | Path, folder: str = "checkpoint") -> dict[str, torch.Tensor]:
    return load_file(Path(run) / folder / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def stopped(monkeypatch: pytest.MonkeyPatch, config: StageConfig, after: int, stage: Any = align) -> None:
    """A run that saves at every step and ends after so many of them."""

    def save(*arguments: Any) -> None:
        checkpoint.save(*arguments)
        if arguments[2].step == after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Clock, "due", lambda self, every: True)
        patch.setattr(trainer, "save", save)
        stage(config)


def indices(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The samples of each step from now on."""
    found: list[np.ndarray] = []
    draw = Samples.order

    def noted(self: Samples, *arguments: Any) -> np.ndarray:
        found.append(draw(self, *arguments))
        return found[-1]

    monkeypatch.setattr(Samples, "order", noted)
    return found


# ---- settings that contradict a student, or do nothing


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vlm": "another"}, r"found --vlm=.* in .*which stays as it is; fix: leave that out, or --student"),
        ({"scratch": True}, r"a student of --scratch, found --no-scratch"),
        ({"n_obs_steps": 4}, r"a student of --n-obs-steps=4, found --n-obs-steps=1"),
        ({"expert": "nowhere"}, r"the expert whose latents .* found nothing at nowhere; fix: .*--expert=FOLDER"),
    ],
)
def test_what_contradicts_a_student_is_refused(
    aligned: Path, config: StageConfig, fields: dict[str, Any], message: str
) -> None:
    tuned = tuning(aligned, config, **fields)
    with pytest.raises(UserError, match=message):
        finetune(tuned)
    assert not Path(tuned.out).exists()


def test_another_expert_is_refused_and_the_same_one_found_wherever_it_is(
    aligned: Path, config: StageConfig, small_expert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = shutil.copytree(small_expert, tmp_path / "other")
    content = bytearray((other / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (other / "model.safetensors").write_bytes(content)
    reads = tuning(aligned, config, latent_weight=1.0)
    with pytest.raises(UserError, match=r"found another in .*other; fix: name the folder where it is now"):
        settled("finetune", dataclasses.replace(reads, expert=str(other)))
    monkeypatch.chdir(tmp_path)
    place = aligned.with_name("expert")
    shutil.copytree(place, tmp_path / "moved")
    shutil.move(place, aligned.with_name("gone"))
    try:
        with pytest.raises(UserError, match=r"found nothing at .*expert; fix: .*--expert=FOLDER .*--policy\.expert"):
            finetune(reads)
        with pytest.raises(UserError, match="found nothing at"):
            _ = ApprenticePolicy.from_pretrained(aligned / "checkpoint").expert
        finetune(dataclasses.replace(reads, expert="moved"))
    finally:
        shutil.move(aligned.with_name("gone"), place)
    own = recorded(reads.out, "checkpoint/config.json")
    assert own["expert"] == "moved" and own["expert_place"] == str(tmp_path / "moved")
    assert recorded(reads.out)["expert"] == "moved"


def test_an_expert_is_found_from_another_folder(
    config: StageConfig, small_expert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by who loads the policy without our commands, such as lerobot-train."""
    shutil.copytree(small_expert, tmp_path / "act")
    monkeypatch.chdir(tmp_path)
    align(dataclasses.replace(config, expert="act", steps=1))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    policy = ApprenticePolicy.from_pretrained(Path(config.out) / "checkpoint")
    assert policy.expert.horizon == policy.config.chunk_size
    found = settled("finetune", tuning(Path(config.out), config, latent_weight=1.0))
    assert found.expert == str(tmp_path / "act")
    shutil.copytree(small_expert, elsewhere / "act")
    (elsewhere / "act" / "model.safetensors").write_bytes(b"of another expert")
    assert ApprenticePolicy.from_pretrained(Path(config.out) / "checkpoint").config.find_expert() == found.expert


def test_a_student_is_not_loaded_as_one_of_another_vlm(aligned: Path) -> None:
    config = ApprenticePolicy.from_pretrained(aligned / "checkpoint").config
    for name, value in (("vlm", "another"), ("scratch", True)):
        with pytest.raises(UserError, match=rf"expected {name} .* fix: leave --policy\.{name} out"):
            ApprenticePolicy.from_pretrained(
                aligned / "checkpoint", config=dataclasses.replace(config, **{name: value})
            )


def test_the_record_says_what_the_student_is(aligned: Path, config: StageConfig, small_vlm: Path) -> None:
    tuned = tuning(aligned, config, vlm=str(small_vlm), n_obs_steps=1)  # what it is anyway
    finetune(tuned)
    known = recorded(tuned.out)
    assert known["vlm"] == str(small_vlm) and known["expert"] == str(aligned.with_name("expert"))
    assert known["scratch"] is False and known["n_obs_steps"] == 1


@pytest.mark.parametrize(
    ("stage", "fields", "flag"),
    [
        ("align", {"latent_weight": 1.0}, "--latent-weight=1.0"),
        ("align", {"language_rate_factor": 1.0}, "--language-rate-factor=1.0"),
        ("finetune", {"align_loss": "l2"}, "--align-loss=l2"),
        ("finetune", {"cache_precision": "8-bit"}, "--cache-precision=8-bit"),
        ("align", {"validate_every": 10}, "--validate-every=10"),
        ("align", {"rollout_every": 10}, "--rollout-every=10"),
        ("align", {"keep": "best"}, "--keep=best"),
        ("align", {"patience": 2}, "--patience=2"),
    ],
)
def test_a_setting_that_does_nothing_is_refused(
    config: StageConfig, stage: str, fields: dict[str, Any], flag: str
) -> None:
    with pytest.raises(UserError, match=rf"expected settings that do something, found {flag}, but"):
        settled(stage, dataclasses.replace(config, **fields))
    settled("finetune" if "latent_weight" in fields else stage, config)


def test_a_student_that_is_none_is_named(
    config: StageConfig, small_dataset: Path, small_expert: Path, small_vlm: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun").mkdir()
    for place, found in (
        (tmp_path / "empty", "an empty folder"),
        (tmp_path / "nowhere", "no such folder"),
        (small_dataset, "a dataset"),
        (small_dataset / "meta", "no config.json"),
        (small_expert, "a policy of type seer"),
        (small_vlm, "another model"),
    ):
        with pytest.raises(UserError, match=f"^expected a student.*found {found}; fix: .*align as --student$"):
            settled("finetune", tuning(place, config))
    file = tmp_path / "begun" / "config.json"
    for stage in ("align", "finetune"):
        file.write_text(f'{{"stage": "{stage}"}}')
        again = f"found a run of {stage} that has no checkpoint yet; fix: .*apprentice {stage} ... --out .*begun$"
        with pytest.raises(UserError, match=again):
            settled("finetune", tuning(file.parent, config))
    file.write_text('{"stage": "train-expert"}')
    with pytest.raises(UserError, match=r"found a run of train-expert; fix: .*align as --student$"):
        settled("finetune", tuning(file.parent, config))
    for damaged in ("{", "[]", '{"type": "apprentice", "no_such_field": 1}', '{"type": "apprentice", "scratch": {}}'):
        (tmp_path / "empty" / "config.json").write_text(damaged)
        with pytest.raises(
            UserError, match=r"^expected a student's settings (in|at) .*config\.json, found.* fix: [^\n]*$"
        ):
            settled("finetune", tuning(tmp_path / "empty", config))


def test_no_recipe_has_a_setting_that_does_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(stages, "_own", lambda config: pytest.skip("not here"))
    seen = 0
    for file in sorted(RECIPES.glob("*.yaml")):
        for command in re.findall(r"apprentice ((?:align|finetune) .*?)(?:\n\s+\w+:|\Z)", file.read_text(), re.DOTALL):
            words = [word.replace("{", "").replace("}", "") for word in shlex.split(command)]
            words = ["1.0" if word in ("latents", "rate") else "0" if word == "seed" else word for word in words]
            command, parsed = cli.parse(words, folders=False)
            del parsed["debug"]
            idle = stages._idle(command, StageConfig(**parsed))
            assert not [n for n, does_nothing, _ in idle if does_nothing and parsed[n] != getattr(StageConfig, n)], file
            seen += 1
    assert seen > 10


# ---- the same command with other numbers


def test_a_killed_run_goes_on_with_other_settings_and_says_so(
    config: StageConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = dataclasses.replace(config, balance="frame")
    stopped(monkeypatch, config, after=2)
    found = indices(monkeypatch)
    changed = dataclasses.replace(config, steps=6, batch_size=4, learning_rate=1e-4)
    align(changed)
    assert "batch_size was 8 until step 2, and is 4" in capsys.readouterr().out
    known = recorded(config.out)
    assert known["before"] == [{"until": 2, "steps": 4, "batch_size": 8, "learning_rate": 1e-3}]
    assert (known["steps"], known["batch_size"], known["learning_rate"]) == (6, 4, 1e-4)
    assert [entry["samples"] for entry in log(config.out)] == [8, 16, 20, 24, 28, 32]
    assert recorded(config.out, "cost.json")["samples"] == 32
    chain = np.concatenate(found)  # of an epoch of 36 frames, after the first 16
    assert [len(each) for each in found] == [4] * 4
    assert (chain == np.concatenate([order(step, 8, 36, seed=0) for step in range(4)])[16:]).all()


def test_a_finished_run_takes_more_steps(config: StageConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    align(config)
    seconds = recorded(config.out, "cost.json")["seconds"]
    with pytest.raises(UserError, match=r"more steps for .*, which is finished, to go on with another batch_size"):
        align(dataclasses.replace(config, batch_size=4))
    with pytest.raises(UserError, match=r"more than the 4 steps that .* has taken, found --steps=3"):
        align(dataclasses.replace(config, steps=3))
    assert recorded(config.out)["batch_size"] == 8 and "before" not in recorded(config.out)
    rates: list[float] = []
    step = torch.optim.AdamW.step

    def noted(self: torch.optim.AdamW, *arguments: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    more = dataclasses.replace(config, steps=10)
    stopped(monkeypatch, more, after=7)
    align(more)
    assert rates == [1e-3 * decay(6)(step) for step in range(6)]  # a schedule of its own
    assert [entry["step"] for entry in log(config.out)] == list(range(10))
    assert [entry["samples"] for entry in log(config.out)] == [8 * (step + 1) for step in range(10)]
    assert recorded(config.out, "cost.json")["seconds"] > seconds
    assert Position.of(Path(config.out) / "checkpoint").finished == 10
    assert recorded(config.out)["before"] == [{"until": 4, "steps": 4}]


def test_what_else_differs_is_another_run(config: StageConfig) -> None:
    align(dataclasses.replace(config, steps=1))
    with pytest.raises(UserError, match=r"another: seed was 0 and is 1; fix: another --out"):
        align(dataclasses.replace(config, steps=1, seed=1))


def test_a_run_is_the_same_from_another_folder(
    config: StageConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    align(dataclasses.replace(config, steps=1))
    paths = {name: os.path.relpath(getattr(config, name), tmp_path) for name in ("dataset", "expert", "vlm", "out")}
    monkeypatch.chdir(tmp_path)
    align(dataclasses.replace(config, steps=1, **paths))
    assert "finished already" in capsys.readouterr().out.replace("\n", " ")


def test_the_same_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a/data", "b/data"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "b")
    there = str(tmp_path / "a")
    assert same_place("data", "../a/data", there) and not same_place("data", "data", there)
    assert same_place(["data=2"], [f"{there}/data=2"], there) and not same_place(["data=2"], [f"{there}/data=1"], there)
    assert same_place("owner/model", "owner/model", there) and not same_place("owner/model", "owner/other", there)
    assert same_place("data", "data", str(tmp_path / "moved"))  # with all that it needs
    assert not same_place("", "data", there) and same_place("", "", there)


# ---- the best checkpoint, and an early end


NOW = [0]


def validations(monkeypatch: pytest.MonkeyPatch, values: list[float]) -> None:
    """Held-out losses, by step."""
    real = trainer.validate

    def validate(trainee: Any, watch: Any, config: Any, step: int) -> dict[str, float]:
        NOW[0] = step
        return real(trainee, watch, config, step)

    monkeypatch.setattr(trainer, "validate", validate)
    monkeypatch.setattr(trainer, "held_out_losses", lambda *_: {"validation_loss": values[NOW[0]]})


def test_the_best_is_kept_and_training_stops_early_killed_or_not(
    config: StageConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    validations(monkeypatch, [3.0, 2.0, 2.5, float("nan"), 2.0, 1.0])
    config = dataclasses.replace(config, steps=6, validate=1, validate_every=1, keep="best", patience=3)
    align(config)
    printed = capsys.readouterr().out.replace("\n", " ")
    assert (
        "stopped after step 5: 3 validations in a row were no better" in printed
        and "is from step 2, with a held-out" in printed
    )
    assert [entry["step"] for entry in log(config.out)] == list(range(5))
    position = Position.of(Path(config.out) / "checkpoint")
    assert (position.step, position.finished, position.best_step, position.weights) == (5, 6, 2, 2)
    assert not (Path(config.out) / "best").exists()
    two = dataclasses.replace(config, keep="last", patience=0, out=str(tmp_path / "two"))
    stopped(monkeypatch, two, after=2)
    assert same(weights(config.out), weights(two.out))
    for after in (1, 4):
        other = dataclasses.replace(config, out=str(tmp_path / f"killed{after}"))
        stopped(monkeypatch, other, after=after)
        align(other)
        assert contents(Path(other.out) / "checkpoint") == contents(Path(config.out) / "checkpoint")
    capsys.readouterr()
    align(config)
    assert "finished already" in capsys.readouterr().out.replace("\n", " ")


def test_a_run_that_kept_its_best_keeps_it_when_more_steps_find_nothing_better(
    config: StageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    validations(monkeypatch, [2.0, 1.0, 3.0, 3.0, 3.0])
    config = dataclasses.replace(config, steps=3, validate=1, validate_every=1, keep="best", patience=2)
    align(config)
    best = weights(config.out)
    align(dataclasses.replace(config, steps=5))
    position = Position.of(Path(config.out) / "checkpoint")
    assert same(best, weights(config.out)) and (position.step, position.weights) == (5, 2)


def test_the_best_by_roll_outs(config: StageConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    found = iter([0.25, 0.75, 0.75, 0.5])
    config = dataclasses.replace(config, rollouts=1, rollout_every=1, keep="best", patience=2, steps=9)
    align(config, lambda student, folder: next(found))
    position = Position.of(Path(config.out) / "checkpoint")
    assert (position.step, position.best, position.weights) == (4, 0.75, 2)


def test_weights_that_are_no_numbers_after_the_last_step_are_not_saved(
    config: StageConfig, monkeypatch: pytest.MonkeyPatch, small_dataset: Path
) -> None:
    stopped(monkeypatch, config, after=3)
    good = contents(Path(config.out) / "checkpoint")
    step = torch.optim.AdamW.step

    def broken(self: torch.optim.AdamW, *arguments: Any) -> Any:
        found = step(self, *arguments)
        with torch.no_grad():
            self.param_groups[0]["params"][0].view(-1)[0] = float("nan")
        return found

    monkeypatch.setattr(torch.optim.AdamW, "step", broken)
    with pytest.raises(UserError, match=r"expected finite weights after step 3, found some .* they are not saved"):
        align(config)
    assert contents(Path(config.out) / "checkpoint") == good and not (Path(config.out) / "cost.json").exists()


# ---- what a kill leaves


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("stage", [align, finetune])
def test_a_run_that_went_on_equals_one_that_was_not_killed_file_by_file(
    config: StageConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: Callable[[StageConfig], Path]
) -> None:
    """Killed between the two renames of a checkpoint, of the last one too."""
    whole = contents(stage(config))
    for number in (1, 4):
        other = dataclasses.replace(config, out=str(tmp_path / f"killed{number}"))
        stopped(monkeypatch, other, number, stage)
        run = Path(other.out)
        os.replace(run / "checkpoint", run / ".checkpoint")
        for name in ("config.json", "cost.json", "best"):
            (run / f".{name}.x1y2z3a4.unfinished").mkdir()
        stage(other)
        assert contents(run / "checkpoint") == whole
        left = {".lock", "caches.json", "checkpoint", "config.json", "cost.json", "log.jsonl"}
        assert {file.name for file in run.iterdir()} == left
        assert [entry["step"] for entry in log(other.out)] == list(range(config.steps))
    assert MANIFEST in whole


def test_best_asks_for_numbers(tmp_path: Path) -> None:
    """A loss that is none is never the best."""
    del tmp_path
    trainee: Any = type("Trainee", (), {"main": True, "accelerator": OneProcess()})()
    best = Best(Path("nowhere"), Position(), rolls_out=False, keeps=False, trainee=trainee)
    assert [best.judge({"validation_loss": value}, 1) for value in (float("nan"), 2.0, float("inf"), 2.0, 1.0)] == [
        *(False, True, False, False, True)
    ]
    assert not best.judge({"loss": 0.0}, 2) and best.worse == 0


class OneProcess:
    device = torch.device("cpu")

    def reduce(self, value: torch.Tensor, how: str) -> torch.Tensor:
        return value

    def wait_for_everyone(self) -> None:
        """There is no other."""


def test_zeroed_caches_are_not_used(config: StageConfig) -> None:
    """The next run computes them again, and ends with the same weights."""
    whole = weights(align(dataclasses.replace(config, out=f"{config.out}-0")).parent)
    for entry in entries():
        rows = entry.path / "rows"
        rows.write_bytes(bytes(rows.stat().st_size))
    assert same(whole, weights(align(config).parent))
