"""LeRobot's own commands train both policies, and run the student on the benchmark."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import make_pre_post_processors
from lerobot.rollout.context import _load_pretrained_policy
from lerobot.rollout.inference.rtc import supports_rtc_inference
from lerobot.scripts import lerobot_eval
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.support import HELD_OUT, TASKS, call, loss_on_held_out, make_batch, resume, train
from torch import Tensor

from apprentice.cli import main
from apprentice.common.adapters import load_policy
from apprentice.common.errors import UserError
from apprentice.data.contract import Contract
from apprentice.serve.checkpoint import Checkpoint, inspect_checkpoint

STEPS = ("000001", "000002")
PAGE = Path(__file__).parents[2] / "docs" / "lerobot.md"


@pytest.fixture(scope="module")
def align(small_dataset: Path, small_expert: Path, small_vlm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of the actual command."""
    out = tmp_path_factory.mktemp("lerobot") / "align"
    student = ["--policy.type=apprentice", f"--policy.vlm={small_vlm}", f"--policy.expert={small_expert}"]
    train(small_dataset, out, *student, *HELD_OUT, alone=True)
    return out


@pytest.fixture(scope="module")
def aligned(align: Path) -> Path:
    return align / "checkpoints" / "last" / "pretrained_model"


def test_lerobot_train_scores_the_held_out_episodes(align: Path, aligned: Path, small_dataset: Path) -> None:
    found = re.findall(r"step (\d+): eval_loss=([\d.]+)", (align / "printed.txt").read_text())
    assert [step for step, _ in found] == ["2"]
    assert float(found[0][1]) == pytest.approx(loss_on_held_out(aligned, small_dataset), abs=1e-4)


def weights(file: Path) -> Tensor:
    return torch.cat([value.flatten().float() for _, value in sorted(load_file(file).items())])


def same_step(start: Tensor, straight: Tensor, resumed: Tensor) -> None:
    """Without the same samples, noise and moments Adam's second step goes elsewhere; rounding moves it a little."""
    assert (resumed - straight).norm() < 0.03 * (straight - start).norm()


def test_lerobot_train_resumes(align: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(align, tmp_path / "again", symlinks=True))
    first, second = (out / "checkpoints" / step / "pretrained_model" for step in STEPS)
    start, straight = (weights(checkpoint / "model.safetensors") for checkpoint in (first, second))
    shutil.rmtree(second)
    resume(out, 1)
    same_step(start, straight, weights(second / "model.safetensors"))


def test_lerobot_train_aligns_and_then_finetunes(aligned: Path, small_dataset: Path, tmp_path: Path) -> None:
    tuned = train(small_dataset, tmp_path / "finetune", f"--policy.path={aligned}", "--policy.stage=finetune")
    assert json.loads((tuned / "config.json").read_text())["stage"] == "finetune"
    before, after = load_file(aligned / "model.safetensors"), load_file(tuned / "model.safetensors")
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert any(".language_model.layers" in key for key in moved) and any(key.startswith("decoder") for key in moved)
    assert not any("vision_tower" in key or "projector" in key for key in moved)


def test_lerobot_train_finds_an_expert_that_was_moved_and_swallows_no_vlm(
    aligned: Path, small_expert: Path, small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(small_expert, tmp_path / "moved")
    student = Path(shutil.copytree(aligned, tmp_path / "student"))
    settings = json.loads((student / "config.json").read_text())
    assert settings["expert_place"] == str(small_expert)
    gone = {"expert": "expert", "expert_place": str(tmp_path / "gone")}
    (student / "config.json").write_text(json.dumps(settings | gone))
    monkeypatch.chdir(tmp_path)
    flags = [f"--policy.path={student}", "--policy.stage=finetune", "--policy.latent_weight=1"]
    with pytest.raises(UserError, match=r"found nothing at expert or .*gone; .*--policy\.expert=FOLDER"):
        train(small_dataset, tmp_path / "lost", *flags)
    tuned = train(small_dataset, tmp_path / "found", *flags, "--policy.expert=moved", "--steps=1")
    assert json.loads((tuned / "config.json").read_text())["expert_place"] == str(tmp_path / "moved")
    with pytest.raises(UserError, match=r"expected vlm .* found another; .* leave --policy\.vlm out"):
        train(small_dataset, tmp_path / "other", f"--policy.path={student}", "--policy.vlm=another")


def test_lerobot_train_teaches_a_history(
    small_dataset: Path, small_expert: Path, small_vlm: Path, tmp_path: Path
) -> None:
    fresh = ("--policy.type=apprentice", f"--policy.vlm={small_vlm}", f"--policy.expert={small_expert}")
    aligned = train(small_dataset, tmp_path / "align", *fresh, "--policy.n_obs_steps=3")
    tuned = train(small_dataset, tmp_path / "finetune", f"--policy.path={aligned}", "--policy.stage=finetune")
    config = json.loads((tuned / "config.json").read_text())
    assert (config["n_obs_steps"], config["history_spacing"], config["stage"]) == (3, 2, "finetune")


@pytest.fixture(scope="module")
def lora(aligned: Path, small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("lora") / "run"
    return train(small_dataset, out, f"--policy.path={aligned}", "--policy.stage=finetune", "--peft.method_type=LORA")


def test_lerobot_train_finetunes_adapters_and_resumes(lora: Path) -> None:
    adapter = load_file(lora / "adapter_model.safetensors")
    language = {key for key in adapter if ".vlm." in key}
    assert language and all(".language_model.layers" in key and ".lora_" in key for key in language)
    ours = {key.split(".")[2] for key in adapter.keys() - language}
    assert ours == {"state_encoder", "action_tokens", "mapper", "decoder"}
    first, second = (lora.parent.parent / step / lora.name / "adapter_model.safetensors" for step in STEPS)
    start, straight = weights(first), weights(second)
    second.unlink()
    resume(lora.parents[2], 1)
    same_step(start, straight, weights(second))


def enlarge(checkpoint: Path, folder: Path) -> Path:
    """A copy in which the adapters, hardly trained, do something."""
    shutil.copytree(checkpoint, folder)
    adapters = load_file(folder / "adapter_model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for key, value in adapters.items():
        if ".lora_B." in key:
            value += 0.3 * torch.randn(value.shape, generator=generator)
    save_file(adapters, folder / "adapter_model.safetensors")
    return folder


def acts_as_for_lerobot(adapters: Path, base: Path, dataset: Path) -> None:
    """Merged by us, side by side in LeRobot: the same actions, others than those without adapters."""
    config = PreTrainedConfig.from_pretrained(adapters)
    config.pretrained_path = adapters
    before, _ = make_pre_post_processors(config, str(adapters))
    raw = {k: v / 255 if ".images." in k else v for k, v in make_batch(dataset, [3, 20]).items()}
    theirs = _load_pretrained_policy(config).eval()
    assert supports_rtc_inference(theirs)
    wanted = theirs.predict_action_chunk(before(dict(raw)))
    found = load_policy(adapters, config).predict_action_chunk(before(dict(raw)))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    alone = load_policy(base, PreTrainedConfig.from_pretrained(base)).predict_action_chunk(before(dict(raw)))
    assert (found - alone).abs().max() > 1e-3


def test_adapters_of_a_student_are_opened(
    lora: Path, aligned: Path, small_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapters = enlarge(lora, tmp_path / "lora")
    acts_as_for_lerobot(adapters, aligned, small_dataset)
    contract = Contract.load(small_dataset / "meta")
    card = inspect_checkpoint("lora", adapters, contract)
    assert card.type == "apprentice" and card.checkpoint != inspect_checkpoint("base", aligned, contract).checkpoint
    with pytest.raises(UserError, match="rotation"):
        inspect_checkpoint("lora", adapters, contract.having(rotation=0))
    rng = np.random.default_rng(0)
    images = {f"observation.images.{k}": rng.integers(0, 256, (64, 64, 3), np.uint8) for k in ("image", "image2")}
    observation = {**images, "observation.state": np.zeros(8, np.float32)}
    assert Checkpoint("lora", adapters, torch.device("cpu")).plan(observation, TASKS[0]).shape == (2, 7)
    Image.fromarray(images["observation.images.image"]).save(tmp_path / "a.png")
    assert main(["ask", str(adapters), str(tmp_path / "a.png"), "what is this?", "--tokens", "2"]) == 0
    assert "the language model's weights changed by" in capsys.readouterr().out
    more = ["--student", str(adapters), "--dataset", str(small_dataset), "--out", str(tmp_path / "more")]
    assert main(["finetune", *more, "--steps", "1", "--batch-size", "4"]) == 0
    assert (tmp_path / "more" / "checkpoint" / "model.safetensors").exists()


def test_adapters_without_what_they_belong_to_are_refused(lora: Path, tmp_path: Path) -> None:
    alone = Path(shutil.copytree(lora, tmp_path / "alone"))
    settings: dict[str, Any] = json.loads((alone / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = str(tmp_path / "gone")
    (alone / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"expected in .*gone the checkpoint .* fix: .*adapter_config\.json"):
        inspect_checkpoint("lora", alone, Contract())


def test_adapters_of_the_expert(small_expert: Path, small_dataset: Path, tmp_path: Path) -> None:
    trained = train(small_dataset, tmp_path / "run", f"--policy.path={small_expert}", "--peft.method_type=LORA")
    keys = set(load_file(trained / "adapter_model.safetensors"))
    assert any("blocks.0.linear1.lora_B" in key for key in keys) and any("decoder.arm" in key for key in keys)
    acts_as_for_lerobot(enlarge(trained, tmp_path / "lora"), small_expert, small_dataset)


def test_lerobot_eval_rolls_it_out(aligned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After what docs/lerobot.md tells to do."""
    recipe = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert recipe
    monkeypatch.chdir(tmp_path)
    exec(recipe[1], {})
    out = tmp_path / "eval"
    monkeypatch.setenv("LIBERO_CONFIG_PATH", "libero")
    call(
        lerobot_eval.main,
        f"--policy.path={aligned}",
        "--policy.device=cpu",
        "--env.type=libero",
        "--env.task=libero_goal",
        "--env.task_ids=[1]",
        "--env.episode_length=4",
        "--env.observation_height=64",
        "--env.observation_width=64",
        "--eval.n_episodes=1",
        "--eval.batch_size=1",
        f"--output_dir={out}",
    )
    overall = json.loads((out / "eval_info.json").read_text())["overall"]
    assert overall["n_episodes"] == 1 and overall["pc_success"] == 0.0
