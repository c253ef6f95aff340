"""One expert a task: who teaches what, and one student that does what each of them does."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tests import support
from tests.experts import zoo

from apprentice.common.errors import UserError
from apprentice.data.batch import Batch
from apprentice.data.dataset import open_dataset
from apprentice.data.items import observed
from apprentice.distill.stages import StageConfig, align
from apprentice.experts import load_expert
from apprentice.experts.by_task import CHOICE_SCALE, CHOICE_WEIGHT
from apprentice.policy.modeling_apprentice import ApprenticePolicy

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def experts(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return zoo.by_task(tmp_path_factory.mktemp("by-task"), small_dataset)


@pytest.fixture(scope="module")
def batch(small_dataset: Path) -> Batch:
    """All frames of the small dataset: two episodes of the first task, one of the second between them."""
    return observed(open_dataset(small_dataset)).batch(np.arange(36))


def test_every_row_goes_to_the_expert_of_its_instruction(experts: Path, batch: Batch) -> None:
    together = load_expert(experts, CPU)
    alone = [load_expert(experts.parent / f"act{number}", CPU) for number in range(2)]
    actions, latents = together.decoded(together.encode(batch)), together.encode(batch)
    for row, task in enumerate(batch["task"]):
        number = support.TASKS.index(task)
        one = {k: v[row : row + 1] for k, v in batch.items()}
        torch.testing.assert_close(actions[row : row + 1], alone[number].own_actions(one), atol=1e-4, rtol=1e-4)
        assert latents[row, :, -2 + number].eq(1).all() and latents[row, :, -1 - number].eq(0).all()


def test_one_student_does_what_each_expert_does(
    experts: Path, small_vlm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one scene, so that the instruction is all that tells the tasks apart."""
    data = support.make_dataset(tmp_path / "data", video=False, episodes=2, scenes=1)
    batch = observed(open_dataset(data)).batch(np.arange(23))
    monkeypatch.setenv("APPRENTICE_CACHE", str(tmp_path / "cache"))
    paths = {"dataset": str(data), "expert": str(experts), "vlm": str(small_vlm), "out": str(tmp_path / "run")}
    student = ApprenticePolicy.from_pretrained(
        align(StageConfig(**paths, steps=300, batch_size=16, learning_rate=3e-3))
    )
    together = load_expert(experts, CPU)
    scale = together.action_affine()[1]
    done = student.predict_action_chunk(batch) / scale
    swapped = {**batch, "task": [support.TASKS[1 - support.TASKS.index(task)] for task in batch["task"]]}
    own, other = (together.own_actions(b) / scale for b in (batch, swapped))
    assert (done - own).abs().mean() < 0.2 * (done - other).abs().mean()
    followed = student.predict_action_chunk(swapped) / scale
    assert (followed - other).abs().mean() < 0.2 * (followed - own).abs().mean()


def test_loss_is_that_of_each_expert_on_its_rows_and_of_the_choice(experts: Path) -> None:
    together = load_expert(experts, CPU)
    alone = [load_expert(experts.parent / f"act{number}", CPU) for number in range(2)]
    torch.manual_seed(0)
    latents, actions = torch.randn(3, 6, 34), torch.randn(3, 6, 7)
    pad = torch.arange(6).expand(3, 6) >= 4
    tasks = [support.TASKS[1], support.TASKS[0], "dance"]
    latents[2, :, 32:] = torch.tensor([0.0, 1.0])  # dancing is something for the second expert
    offset, scale = together.action_affine()
    losses = []
    for row, number in enumerate((1, 0, 1)):
        own_offset, own_scale = alone[number].action_affine()
        target = (actions[row : row + 1] * scale + offset - own_offset) / own_scale
        single = {"action": target, "action_is_pad": pad[row : row + 1]}
        losses.append(alone[number].decoder.loss(latents[row : row + 1, :, :32], single)[0])
    choice = CHOICE_SCALE * latents[:2, :, 32:].mean(1)
    wanted = sum(losses) / 3 + CHOICE_WEIGHT * torch.nn.functional.cross_entropy(choice, torch.tensor([1, 0]))
    found, parts = together.decoder.loss(latents, {"action": actions, "action_is_pad": pad, "task": tasks})
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert set(parts) == {"l1_loss", "choice_loss"}


def test_what_does_not_fit_is_named(experts: Path, batch: Batch, small_dataset: Path, tmp_path: Path) -> None:
    together = load_expert(experts, CPU)
    with pytest.raises(UserError, match=r"expected instructions among .*found \['dance'\]; fix"):
        together.encode({**batch, "task": ["dance"] * 36})
    other = Path(shutil.copytree(experts.parent, tmp_path / "other")) / "experts.yaml"
    zoo.diffusion(other.parent / "diffusion", small_dataset, steps=1)
    other.write_text("jump: act0\nrun: diffusion\n")
    with pytest.raises(UserError, match=r"expected experts of one shape .*kind act .*diffusion"):
        load_expert(other, CPU)
    other.write_text("- act0\n")
    with pytest.raises(UserError, match=r"'instruction: checkpoint folder'"):
        load_expert(other, CPU)
