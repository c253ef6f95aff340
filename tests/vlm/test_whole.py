"""A VLM whose prompt reads what comes after it cannot be split: it says so, and every pass is whole."""

from pathlib import Path

import pytest
import torch
from tests.support import make_batch, make_student
from tests.vlm.families import paligemma2

from apprentice.data.batch import EXPERT_LATENTS, IMAGE_TOKENS
from apprentice.data.dataset import open_dataset
from apprentice.distill.caches.cache import cached
from apprentice.vlm.families import CAUSAL_TOKEN_TYPE


@torch.no_grad()
def test_a_vlm_that_does_not_split_runs_whole(
    small_dataset: Path,
    small_expert: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("APPRENTICE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delitem(CAUSAL_TOKEN_TYPE, "paligemma")  # our tokens are then seen by the prompt
    torch.manual_seed(0)
    for part in paligemma2():
        part.save_pretrained(tmp_path / "vlm")
    student = make_student(small_dataset, small_expert, tmp_path / "vlm")
    batch = make_batch(small_dataset, (0, 15, 30))
    assert not student.vlm.splits
    aligned = student.latents(batch)
    assert set(cached(student, open_dataset(small_dataset))) == {IMAGE_TOKENS, EXPERT_LATENTS}
    assert "each step runs the whole prompt" in " ".join(capsys.readouterr().out.split())
    student.set_stage("finetune")
    assert torch.equal(aligned, student.latents(batch))
