"""All that computes, on a GPU: the CPU's results within float32's rounding, resumed to the same bits, and in bfloat16.

Tolerances: a loss is a mean over some thousand numbers near 1, each of which a few layers compute in another order:
1e-4 relative, ten times what is seen between CPUs with different vector units. After steps of an optimizer that divides
by the root of small numbers: 1e-2. bfloat16 has 8 bits, so 2 % of a loss.
"""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.gpu.conftest import precise
from tests.support import EXACT, make_batch, make_student

from apprentice.common.adapters import load_policy
from apprentice.common.device import bfloat16_is_faster, fast_bfloat16, free_memory, mixed_precision, same_bits
from apprentice.data.batch import EXPERT_LATENTS, IMAGE_TOKENS, PREFIX
from apprentice.data.dataset import open_dataset
from apprentice.distill import trainer
from apprentice.distill.caches.cache import cached, cached_images
from apprentice.distill.caches.resident import Resident, on_device
from apprentice.distill.expert import ExpertConfig, configured, prepared, processors, train_expert
from apprentice.distill.runs import checkpoint
from apprentice.distill.runs.tracking import Clock
from apprentice.distill.samples import Samples
from apprentice.distill.stages import StageConfig, align, finetune
from apprentice.experts import load_expert
from apprentice.policy.modeling_apprentice import ApprenticePolicy
from apprentice.serve.checkpoint import Checkpoint

LOSS, STEPS_LATER, HALF = 1e-4, 1e-2, 2e-2
FRAMES = np.arange(0, 36, 3)
CPU = torch.device("cpu")
SEER = {"width": "48", "layers": "1", "heads": "2", "chunk_size": "4", "n_action_steps": "4"}
STILL = {"shift": "0", "jitter": "0.0", "position_noise_mm": "0.0", "angle_noise_rad": "0.0"}  # drawn on the device


@pytest.fixture(autouse=True)
def every_step_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "LOG_EVERY", 1)


@pytest.fixture
def student(small_dataset: Path, small_expert: Path, small_vlm: Path) -> ApprenticePolicy:
    return make_student(
        small_dataset, small_expert, small_vlm, position_noise_mm=0.0, angle_noise_rad=0.0, latent_weight=0.5
    )


@pytest.fixture
def stage(small_dataset: Path, small_expert: Path, small_vlm: Path, tmp_path: Path) -> StageConfig:
    paths = {"dataset": small_dataset, "expert": small_expert, "vlm": small_vlm, "out": tmp_path / "run"}
    return StageConfig(**{k: str(v) for k, v in paths.items()}, steps=6, batch_size=8, track="none")


@pytest.fixture
def expert(small_dataset: Path, tmp_path: Path) -> ExpertConfig:
    settings = {**SEER, **STILL}
    out = str(tmp_path / "expert")
    return ExpertConfig(
        dataset=str(small_dataset), out=out, set=settings, steps=6, batch_size=8, precision="float32", track="none"
    )


def losses(run: str) -> list[float]:
    return [json.loads(line)["loss"] for line in (Path(run) / "log.jsonl").read_text().splitlines()]


def weights(run: str) -> dict[str, torch.Tensor]:
    return load_file(Path(run) / "checkpoint" / "model.safetensors")


def on(policy: ApprenticePolicy, device: torch.device) -> ApprenticePolicy:
    """The same student on a device, with an expert of its own there."""
    policy.config.device, policy._expert = str(device), None
    return policy.to(device)


def test_train_expert_loses_what_it_loses_on_the_cpu(
    gpu: torch.device, using: Callable[[str], None], expert: ExpertConfig
) -> None:
    using("gpu")
    train_expert(expert)
    using("cpu")
    there = dataclasses.replace(expert, out=expert.out + "-cpu")
    train_expert(there)
    assert losses(expert.out)[0] == pytest.approx(losses(there.out)[0], rel=LOSS)
    assert losses(expert.out) == pytest.approx(losses(there.out), rel=STEPS_LATER)
    for name, value in weights(there.out).items():
        torch.testing.assert_close(weights(expert.out)[name], value, rtol=STEPS_LATER, atol=1e-3)


def test_align_and_finetune_lose_what_they_lose_on_the_cpu(
    gpu: torch.device, using: Callable[[str], None], stage: StageConfig, tmp_path: Path
) -> None:
    found: dict[str, list[list[float]]] = {}
    for where in ("gpu", "cpu"):
        using(where)
        with precise():
            first = dataclasses.replace(stage, out=str(tmp_path / where / "align"), cache_precision="float32")
            align(first)
            second = dataclasses.replace(
                first, student=first.out, out=str(tmp_path / where / "finetune"), latent_weight=0.5, ema=0.9
            )
            finetune(second)
        found[where] = [losses(first.out), losses(second.out)]
    for one, other in zip(found["gpu"], found["cpu"], strict=True):
        assert one[0] == pytest.approx(other[0], rel=STEPS_LATER if one is found["gpu"][1] else LOSS)
        assert one == pytest.approx(other, rel=STEPS_LATER)


@pytest.mark.parametrize("name", ["align", "finetune"])
def test_loss_and_gradients_are_those_of_the_cpu(
    gpu: torch.device, student: ApprenticePolicy, small_dataset: Path, name: str
) -> None:
    """Of one step, from pictures and from rows in the GPU's memory."""
    dataset = open_dataset(small_dataset)
    student.set_stage(name)
    samples = Samples(dataset, student.config, cached(student, dataset, EXACT), CPU)
    results = []
    for device in (CPU, gpu):
        policy = on(student, device)
        rows = on_device([samples.rows], gpu)[0] if device is gpu else samples.rows
        here = Samples(dataset, policy.config, rows, device)
        policy.zero_grad()
        with same_bits(device):
            loss = policy(here.share(FRAMES, 0, 1, seed=7))[0]
            loss.backward()
        results.append([loss.detach().cpu(), *(p.grad.cpu() for p in policy.parameters() if p.grad is not None)])
    assert len(results[0]) > 5
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(results[0][0], results[1][0], rtol=LOSS, atol=0)


def test_rows_made_on_the_gpu_are_those_of_the_cpu(
    gpu: torch.device, student: ApprenticePolicy, small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = open_dataset(small_dataset)
    student.set_stage("align")
    found = []
    for device in (CPU, gpu):
        monkeypatch.setenv("APPRENTICE_CACHE", str(tmp_path / "rows" / str(len(found))))
        with precise():
            rows = cached(on(student, device), dataset, EXACT)
        found.append({key: views.rows[0][np.arange(36)] for key, views in rows.items()})
    assert set(found[0]) == {EXPERT_LATENTS, PREFIX}
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, rtol=1e-3, atol=1e-4)


def test_rows_that_a_gpu_rounded_are_not_taken_for_those_of_a_cpu(
    gpu: torch.device, student: ApprenticePolicy, small_dataset: Path, tmp_path: Path
) -> None:
    """In float32 both are one cache, and so are the expert's latents always."""
    dataset, folder = open_dataset(small_dataset), tmp_path / "cache" / "frames"
    student.set_stage("align")
    names = []
    for device in (CPU, gpu):
        cached(on(student, device), dataset, EXACT)
        names.append({path.name for path in folder.iterdir()})
    shared = 3 if not fast_bfloat16(gpu) else 1
    assert len(names[0]) == 3 and len(names[1] - names[0]) == 3 - shared
    with precise():
        cached(on(student, gpu), dataset, EXACT)
    assert {path.name for path in folder.iterdir()} == names[1]


def test_images_lie_in_the_gpus_memory_and_are_the_same(gpu: torch.device, small_dataset: Path) -> None:
    dataset = open_dataset(small_dataset)
    cameras = dataset.meta.camera_keys
    rows = cached_images([dataset], cameras)
    before, moved = free_memory(gpu), on_device(rows, gpu)
    index, views = np.array([[3, 0], [35, 3]]), np.array([0, 0])
    for camera in cameras:
        there = moved[0][camera].at(index, views)
        assert torch.equal(there.cpu(), rows[0][camera].at(index, views))
        if gpu.type == "cuda":
            assert isinstance(moved[0][camera].rows[0], Resident) and there.device.type == "cuda"
    assert before == 0 or free_memory(gpu) <= before


GO_ON = """
import sys
from apprentice.distill import checkpoint, trainer
from apprentice.distill.expert import ExpertConfig, train_expert
from apprentice.distill.stages import StageConfig, align, finetune
trainer.LOG_EVERY = 1
for kind, fields in eval(sys.argv[1]):
    make, run = {"expert": (ExpertConfig, train_expert), "align": (StageConfig, align),
                 "finetune": (StageConfig, finetune)}[kind]
    run(make(**fields))
"""


def test_runs_that_ended_early_go_on_in_another_process_to_the_same_bits(
    gpu: torch.device,
    using: Callable[[str], None],
    stage: StageConfig,
    expert: ExpertConfig,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Noise, moved pictures, averages and bfloat16 included; and nothing says that bits will differ."""
    using("gpu")
    runs = {"expert": train_expert, "align": align, "finetune": finetune}
    configs: dict[str, ExpertConfig | StageConfig] = {
        "expert": dataclasses.replace(expert, set=SEER, precision="auto", ema=0.9)
    }
    configs |= {name: dataclasses.replace(stage, out=f"{stage.out}-{name}") for name in ("align", "finetune")}
    others = {name: dataclasses.replace(config, out=f"{config.out}-again") for name, config in configs.items()}
    for name, run in runs.items():
        run(configs[name])  # type: ignore[operator]
        saves = []

        def save(*arguments: object, saves: list[object] = saves) -> None:
            checkpoint.save(*arguments)  # type: ignore[arg-type]
            saves.append(arguments)
            if len(saves) == 3:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Clock, "due", lambda self, every: True)
            patch.setattr(trainer, "save", save)
            run(others[name])  # type: ignore[operator]
    fields = [(name, dataclasses.asdict(other)) for name, other in others.items()]
    done = subprocess.run([sys.executable, "-c", GO_ON, repr(fields)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "differ in its last digits" not in capsys.readouterr().out + done.stdout
    for name, other in others.items():
        assert losses(other.out) == losses(configs[name].out), name
        mine = weights(configs[name].out)
        assert all(torch.equal(value, mine[key]) for key, value in weights(other.out).items()), name


@torch.no_grad()
def test_bfloat16_loses_about_the_same(
    gpu: torch.device, student: ApprenticePolicy, small_dataset: Path, expert: ExpertConfig
) -> None:
    dataset = open_dataset(small_dataset)
    student.set_stage("finetune")
    batch = Samples(dataset, student.config, cached(student, dataset, EXACT), gpu)[FRAMES]
    policy = on(student, gpu).eval()
    whole = policy(batch)[0]
    with mixed_precision(gpu):
        half = policy(batch)[0]
    torch.testing.assert_close(half.float(), whole, rtol=HALF, atol=0)
    assert (half.float() != whole) == fast_bfloat16(gpu)
    if gpu.type == "cuda" and torch.cuda.get_device_capability()[0] >= 8:
        assert fast_bfloat16(gpu)


def test_an_expert_in_bfloat16_loses_about_the_same(
    gpu: torch.device, using: Callable[[str], None], expert: ExpertConfig
) -> None:
    using("gpu")
    train_expert(expert)
    half = dataclasses.replace(expert, out=expert.out + "-half", precision="bfloat16")
    train_expert(half)
    assert losses(half.out) == pytest.approx(losses(expert.out), rel=HALF)
    assert losses(half.out) != losses(expert.out)


def test_the_trial_of_precisions_leaves_no_trace(
    gpu: torch.device, using: Callable[[str], None], expert: ExpertConfig
) -> None:
    using("gpu")
    train_expert(dataclasses.replace(expert, steps=1))
    init = Path(expert.out) / "checkpoint"
    config = configured(dataclasses.replace(expert, init=str(init), set=None))
    policy, dataset = load_policy(init, config).to(gpu), open_dataset(str(expert.dataset))
    samples = Samples(dataset, config, cached_images([dataset], dataset.meta.camera_keys)[0], gpu)
    samples.prepare = prepared(processors(policy, None, init)[0])  # type: ignore[arg-type]
    state = torch.get_rng_state()
    assert bfloat16_is_faster(policy, samples.share(FRAMES, 0, 1)) in (True, False)
    assert torch.equal(torch.get_rng_state(), state) and all(p.grad is None for p in policy.parameters())


def test_a_chunk_is_that_of_the_cpu(
    gpu: torch.device, using: Callable[[str], None], stage: StageConfig, small_dataset: Path, small_expert: Path
) -> None:
    """Of a student and of an expert, through their processors, as evaluation and server load them."""
    using("gpu")
    trained = finetune(dataclasses.replace(stage, steps=2))
    frames = [0, 5, 30]
    plans = []
    for device in (CPU, gpu):
        policy = on(ApprenticePolicy.from_pretrained(trained), device)
        batch = {
            k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in make_batch(small_dataset, frames).items()
        }
        teacher = load_expert(small_expert, device)
        latents = teacher.encode(make_batch(small_dataset, frames))
        plans.append((policy.predict_action_chunk(batch).cpu(), latents.cpu(), teacher.decoded(latents).cpu()))
    for mine, reference in zip(plans[1], plans[0], strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-3, atol=1e-4)
    assert Checkpoint("student", trained, gpu).policy.vlm.device.type == gpu.type


def test_image_tokens_and_their_use_agree_with_the_whole_pass(
    gpu: torch.device, student: ApprenticePolicy, small_dataset: Path
) -> None:
    """Split in prefix and suffix, and in one pass: what caches rely on, in the GPU's attention kernels."""
    dataset = open_dataset(small_dataset)
    policy = on(student, gpu).eval()
    assert policy.vlm.splits and policy.vlm.converses
    policy.set_stage("align")
    rows = cached(policy, dataset, EXACT)
    with precise(), torch.no_grad():
        split = policy(Samples(dataset, policy.config, rows, gpu)[FRAMES])[0]
        batch = make_batch(small_dataset, FRAMES.tolist())
        whole = policy({k: v.to(gpu) if isinstance(v, torch.Tensor) else v for k, v in batch.items()})[0]
    torch.testing.assert_close(split, whole, rtol=HALF if fast_bfloat16(gpu) else LOSS, atol=0)
    assert IMAGE_TOKENS not in rows
