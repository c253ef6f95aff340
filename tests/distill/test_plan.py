"""The plan's numbers against those of students that really train."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.experts.zoo import ZOO
from tests.support import TASKS, make_student
from tests.vlm.families import FAMILIES

from apprentice import cli
from apprentice.common.errors import UserError
from apprentice.data.batch import EXPERT_LATENTS, IMAGE_TOKENS, PREFIX
from apprentice.data.dataset import open_dataset
from apprentice.distill.caches.cache import cached
from apprentice.distill.memory import Account
from apprentice.distill.plan import Sketch, configuration, plan, step_memory, weights_of
from apprentice.distill.samples import Samples
from apprentice.nano.model import NanoConfig, build_model, build_processor
from apprentice.nano.tokenizer import train_tokenizer

FRAMES = np.array([8, 9, 10, 20, 21, 22])  # late in two episodes with an instruction each
CACHES = {IMAGE_TOKENS: "image tokens", EXPERT_LATENTS: "expert latents", PREFIX: "keys and values"}
TOLERANCE = 0.15  # of memory as the operating system sees it


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APPRENTICE_CACHE", str(tmp_path / "cache"))


def measured(student: Any, dataset: Path, stage: str, precision: torch.dtype, rank: int) -> dict[str, int]:
    """What a real student really keeps in memory and on disk."""
    student.set_stage(stage)
    data = open_dataset(dataset)
    rows = cached(student, data)
    samples = Samples(data, student.config, rows, torch.device("cpu"))
    student.config.pretrained_path = dataset
    adapters = {"method_type": "lora", "r": rank}
    model = (student.wrap_with_peft(peft_cli_overrides=adapters) if rank else student).train()
    account = Account()
    account.meet([*model.parameters(), *model.buffers()])
    if stage == "align":
        account.meet(weights_of(student.expert))
    weights = account.live
    with account:
        *found, _ = step_memory(model, student, samples[FRAMES], account, precision)
    caches = {key: views.rows[0].about.row_bytes for key, views in rows.items()}
    return {"weights": weights} | dict(zip(("gradients", "optimizer", "saved", "peak"), found, strict=True)) | caches


@contextmanager
def sketched(vlm: Path, expert: Path, dataset: Path, precision: torch.dtype, steps: int = 1) -> Iterator[Sketch]:
    """The same student without weights."""
    with configuration(str(vlm)) as folder:
        sketch = Sketch(folder, str(expert), open_dataset(dataset), len(FRAMES), steps, precision)
        sketch.seeing = 0  # lerobot-train sees in each step, our students do not
        yield sketch


def agree(sketch: Sketch, real: dict[str, int], stage: str, rank: int) -> None:
    """Exactly; the peak, which a few bytes of counters go into, to a hundredth."""
    caches, _ = sketch.caches()
    found = vars(sketch.memory(stage, rank)) | {key: caches.get(name) for key, name in CACHES.items()}
    assert found["peak"] == pytest.approx(real.pop("peak"), rel=0.01)
    assert real == {key: found[key] for key in real}


@pytest.mark.parametrize(("stage", "rank"), [("align", 0), ("finetune", 0), ("finetune", 4)])
def test_an_imagined_step_keeps_what_a_real_one_keeps(
    stage: str, rank: int, small_dataset: Path, small_expert: Path, small_vlm: Path
) -> None:
    real = measured(make_student(small_dataset, small_expert, small_vlm), small_dataset, stage, torch.float32, rank)
    with sketched(small_vlm, small_expert, small_dataset, torch.float32) as sketch:
        agree(sketch, real, stage, rank)


@pytest.mark.parametrize("stage", ["align", "finetune"])
def test_of_a_history(stage: str, small_dataset: Path, small_expert: Path, small_vlm: Path) -> None:
    student = make_student(small_dataset, small_expert, small_vlm, n_obs_steps=3)
    real = measured(student, small_dataset, stage, torch.float32, 0)
    with sketched(small_vlm, small_expert, small_dataset, torch.float32, steps=3) as sketch:
        agree(sketch, real, stage, 0)


@pytest.mark.parametrize(
    ("family", "stage"), [*((name, "finetune") for name in FAMILIES), ("Gemma 3", "align"), ("Qwen2.5-VL", "align")]
)
def test_of_every_family_in_bfloat16(
    family: str, stage: str, small_dataset: Path, small_expert: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    for part in FAMILIES[family]():
        part.save_pretrained(tmp_path)
    real = measured(make_student(small_dataset, small_expert, tmp_path), small_dataset, stage, torch.bfloat16, 0)
    with sketched(tmp_path, small_expert, small_dataset, torch.bfloat16) as sketch:
        agree(sketch, real, stage, 0)


@pytest.mark.parametrize("kind", ["act, one a task", "diffusion", "vqbet"])
def test_of_experts_that_look_at_numbers(kind: str, small_dataset: Path, small_vlm: Path, tmp_path: Path) -> None:
    expert = ZOO[kind](tmp_path, small_dataset)
    real = measured(make_student(small_dataset, expert, small_vlm), small_dataset, "finetune", torch.float32, 0)
    with sketched(small_vlm, expert, small_dataset, torch.float32) as sketch:
        agree(sketch, real, "finetune", 0)


def middling(folder: Path) -> Path:
    """A VLM that takes more memory to train than Python takes to start."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "width": 256,
        "vision_widths": (16, 32, 64, 256),
        "vision_depths": (0, 0, 0, 1),
        "text_mlp": 768,
        "heads": 4,
        "kv_heads": 2,
    }
    config = NanoConfig(image=64, text_layers=8, **sizes)
    tokenizer = train_tokenizer(TASKS, vocab_size=560)
    build_model(config, tokenizer).save_pretrained(folder)
    build_processor(config, tokenizer).save_pretrained(folder)
    return folder


RUN = """
import json, sys
from pathlib import Path
from apprentice.distill.stages import StageConfig, finetune

def kilobytes(key):
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if key in line)

small, large = (StageConfig(**json.loads(text)) for text in sys.argv[1:])
finetune(small)  # libraries, threads, arenas
before = kilobytes("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # forget the highest mark
finetune(large)
print("took", 1024 * (kilobytes("VmHWM") - before))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured as Linux tells it")
def test_fine_tuning_takes_the_memory_that_was_planned(
    small_dataset: Path, small_expert: Path, small_vlm: Path, tmp_path: Path
) -> None:
    """The command itself, in a process of its own, as the operating system sees it."""
    vlm = middling(tmp_path / "vlm")
    given = {"dataset": str(small_dataset), "expert": str(small_expert), "steps": 2}
    small = {**given, "vlm": str(small_vlm), "out": str(tmp_path / "small"), "batch_size": 2}
    large = {**given, "vlm": str(vlm), "out": str(tmp_path / "large"), "batch_size": 24}
    process = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(small), json.dumps(large)],
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"},  # what is freed is given back
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    took = int(process.stdout.split("took ")[1])
    found = plan(str(vlm), str(small_expert), 24, str(small_dataset), precision="float32").content
    print(took, found.stages["finetune"])
    assert took == pytest.approx(found.stages["finetune"].peak, rel=TOLERANCE)
    assert found.frames == open_dataset(small_dataset).num_frames


def test_it_needs_a_configuration_alone(
    small_vlm: Path, small_expert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(small_vlm, tmp_path / "vlm", ignore=shutil.ignore_patterns("*.safetensors")))
    command = ["plan", "--vlm", str(folder), "--expert", str(small_expert), "--frames", "1000", "--batch", "8"]
    assert cli.main(command) == 0
    text = capsys.readouterr().out
    sizes = {line.split("│")[1].strip(): line for line in text.splitlines() if line.count("│") > 2}
    assert "768.0 kB" in sizes["expert latents"] and "frozen" in sizes["vision tower"]
    with pytest.raises(UserError, match="expected a VLM's folder or its name on the hub, found 'nobody/nothing'"):
        plan("nobody/nothing", str(small_expert))


def test_names_and_sizes_are_those_of_a_dataset(small_dataset: Path, small_expert: Path, small_vlm: Path) -> None:
    model = str(small_vlm), str(small_expert)
    with pytest.raises(UserError, match=r"expected --rename and --resize of a dataset, found none; fix: --dataset"):
        plan(*model, rename={"observation.images.top": "observation.images.image"})
    with pytest.raises(
        UserError, match=r"expected --rename OLD=NEW of features of .*, found no observation.images.top"
    ):
        plan(*model, dataset=str(small_dataset), rename={"observation.images.top": "observation.images.image"})
    with pytest.raises(UserError, match=r"expected --resize CAMERA=HEIGHTxWIDTH .*, found observation.images.image=32"):
        plan(*model, dataset=str(small_dataset), resize={"observation.images.image": "32"})
