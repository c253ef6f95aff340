"""`apprentice expert-check` and the example, on real demonstrations."""

import json
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACTPolicy
from lerobot.policies.factory import make_pre_post_processors
from tests import support
from tests.experts import zoo
from torch import nn

from apprentice.cli import main
from apprentice.data.dataset import action_chunks, column, frames, instructions, open_dataset
from apprentice.data.items import observed
from apprentice.simulators.libero.convention import contract as libero_contract

ROOT = Path(__file__).parents[2]
DEMONSTRATIONS = ROOT / "assets" / "demonstrations" / "libero_goal"


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first demonstration of "put the bowl on the stove", as images."""
    root, source = tmp_path_factory.mktemp("real") / "stove", open_dataset(DEMONSTRATIONS)
    keys = (*support.CAMERAS, "observation.state", "action")
    features = {key: {name: source.meta.features[key][name] for name in ("dtype", "shape", "names")} for key in keys}
    features |= {key: {**features[key], "dtype": "image"} for key in support.CAMERAS}
    dataset = LeRobotDataset.create("local/stove", 20, features, root=root, use_videos=False)
    streams = [frames(source, camera) for camera in support.CAMERAS]
    tasks = instructions(source)
    vectors = {key: column(source, key) for key in ("observation.state", "action")}
    for index in range(source.meta.episodes["length"][0]):
        images = dict(zip(support.CAMERAS, (next(stream) for stream in streams), strict=True))
        numbers = {key: values[index] for key, values in vectors.items()}
        dataset.add_frame({**images, **numbers, "task": tasks[index]})
    dataset.save_episode()
    dataset.finalize()
    shutil.copy(DEMONSTRATIONS / "meta" / "contract.json", root / "meta" / "contract.json")
    return root


class Seen(nn.Module):
    """In the place of an ACT's eyes: takes what they saw."""

    def forward(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"feature_map": features}


@pytest.fixture(scope="module")
def trained(real: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ACT that was trained for 150 steps on every third real frame; its eyes stay random, which spares time."""
    size = {"dim_model": 32, "n_heads": 2, "dim_feedforward": 64, "n_encoder_layers": 1, "use_vae": False}
    folder = zoo.save(
        ACTConfig, tmp_path_factory.mktemp("act") / "act", real, chunk_size=8, n_action_steps=8, **size, **zoo.EYES
    )
    policy, dataset = ACTPolicy.from_pretrained(folder), open_dataset(real)
    before, _ = make_pre_post_processors(policy.config, str(folder))
    chunks, pad = (torch.from_numpy(values[::3]) for values in action_chunks(dataset, range(8)))
    batch = observed(dataset).batch(3 * np.arange(len(chunks)))
    batch |= {key: batch[key] / 255 for key in support.CAMERAS}
    prepared = before({**batch, "action": chunks, "action_is_pad": pad})
    eyes = policy.model.backbone
    with torch.no_grad():
        prepared |= {key: eyes(prepared[key])["feature_map"] for key in support.CAMERAS}
    policy.model.backbone = Seen()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        policy(prepared)[0].backward()
        optimizer.step()
    policy.model.backbone = eyes
    policy.save_pretrained(folder)
    return folder


def shown(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    code = main(["expert-check", *map(str, words)])
    return code, " ".join(capsys.readouterr().out.split())


def test_our_expert_can_teach_on_its_demonstrations(real: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = shown(capsys, ROOT / "assets" / "seer", "--dataset", real, "--frames", 16)
    assert code == 0 and "can teach" in text and "seer" in text, text
    error = float(text.split("recorded actions: ")[1].split()[0])
    assert error < 0.5


def test_random_weights_cannot_teach(real: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = shown(capsys, zoo.act(tmp_path / "act", real), "--dataset", real, "--frames", 8)
    assert code == 1 and "cannot teach: expected actions nearer to the recorded ones" in text and "fix: train" in text


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("units", "in the units of the expert, found other numbers in the dataset"),
        ("contract", "rotation: expert"),
        ("camera", "observation.images.image2: the expert reads (3, 64, 64), the dataset has (3, 128, 128)"),
    ],
)
def test_what_is_wrong_is_named(
    fault: str, message: str, real: Path, small_expert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expert = Path(shutil.copytree(small_expert, tmp_path / "expert"))
    if fault == "units":
        expert = zoo.act(tmp_path / "act", real, seed=1000)
    elif fault == "contract":
        libero_contract(128, "fast").having(rotation=0).save(expert)
    code, text = shown(capsys, expert, "--dataset", real, "--frames", 4)
    assert code == 1 and message in text


def test_bring_your_own(
    real: Path,
    trained: Path,
    small_vlm: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("APPRENTICE_CACHE", str(tmp_path / "cache"))
    example = ROOT / "examples" / "bring_your_own.py"
    assert len(example.read_text().splitlines()) < 60
    words = {"expert": trained, "dataset": real, "out": tmp_path / "out", "vlm": small_vlm, "steps": 4, "batch-size": 4}
    monkeypatch.setattr("sys.argv", ["x", *(text for key, value in words.items() for text in (f"--{key}", str(value)))])
    runpy.run_path(str(example), run_name="__main__")
    printed = capsys.readouterr().out
    assert "can teach" in printed and "first action of the student: [" in printed
    action = np.array(json.loads(printed.split("student: ")[-1]))
    assert action.shape == (7,) and np.isfinite(action).all()
    assert (tmp_path / "out" / "finetune" / "checkpoint" / "model.safetensors").exists()
