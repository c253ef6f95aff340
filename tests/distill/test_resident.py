"""Rows in a device's memory: which go there, and that they stay the same rows."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.support import EXACT, make_student

from apprentice.common.device import best_device
from apprentice.data.batch import EXPERT_LATENTS, PREFIX
from apprentice.data.dataset import open_dataset
from apprentice.distill.caches import cache, resident
from apprentice.distill.caches.cache import cached, cached_images
from apprentice.distill.caches.resident import Resident, on_device
from apprentice.distill.caches.rows import Rows
from apprentice.distill.config import CacheConfig
from apprentice.distill.samples import Samples
from apprentice.policy.modeling_apprentice import ApprenticePolicy

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APPRENTICE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def student(small_dataset: Path, small_expert: Path, small_vlm: Path) -> ApprenticePolicy:
    return make_student(
        small_dataset, small_expert, small_vlm, position_noise_mm=0.0, angle_noise_rad=0.0, stage="align"
    )


@torch.no_grad()
@pytest.mark.parametrize("precision", ["bfloat16", "8-bit"])
def test_what_finds_room_goes_there_the_largest_first_and_batches_stay_the_same(
    student: ApprenticePolicy, small_dataset: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    dataset = open_dataset(small_dataset)
    rows = cached(student, dataset, CacheConfig(views=2, cache_precision=precision))
    sizes = {key: sum(each.size for each in views.rows) for key, views in rows.items()}  # type: ignore[attr-defined]
    assert sizes[PREFIX] > sizes[EXPERT_LATENTS]
    index = np.array([0, 35, 36, 71, 5])
    whole = Samples(dataset, student.config, rows, CPU)[index]
    for free, there in (
        (0, set()),
        (2 * sizes[EXPERT_LATENTS], {EXPERT_LATENTS}),
        (2 * sizes[PREFIX], {PREFIX}),
        (2 * sum(sizes.values()), {PREFIX, EXPERT_LATENTS}),
    ):
        monkeypatch.setattr(resident, "free_memory", lambda device, free=free: free)
        (moved,) = on_device([rows], CPU)
        assert {key for key, views in moved.items() if isinstance(views.rows[0], Resident)} == there
        batch = Samples(dataset, student.config, moved, CPU)[index]
        assert all(torch.equal(batch[key], whole[key]) for key in rows)


def test_images_of_several_datasets_go_together_or_not_at_all_and_what_is_decoded_stays(
    small_dataset: Path, small_expert: Path, small_vlm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resident, "BLOCK", 1.0)  # a row at a time
    dataset = open_dataset(small_dataset)
    cameras = dataset.meta.camera_keys
    rows = cached_images([dataset, dataset], cameras, cache_gb=3 * 64 * 64 * 36 * 2 / 1e9)  # one camera of both
    kept = [isinstance(rows[0][camera].rows[0], Rows) for camera in cameras]
    assert kept == [True, False]
    monkeypatch.setattr(resident, "free_memory", lambda device: 2 * 3 * 64 * 64 * 36 * 2 - 1)
    assert on_device(rows, CPU) == rows
    monkeypatch.setattr(resident, "free_memory", lambda device: 2 * 3 * 64 * 64 * 36 * 2)
    moved = on_device(rows, CPU)
    assert [isinstance(of_it[camera].rows[0], Resident) for of_it in moved for camera in cameras] == [True, False] * 2
    policy = make_student(small_dataset, small_expert, small_vlm)
    samples = [Samples.of([dataset, dataset], policy.config, each, CPU) for each in (rows, moved)]
    one, other = (each[np.array([3, 70, 36, 0])] for each in samples)
    assert all(torch.equal(one[camera], other[camera]) for camera in cameras)


def test_rows_that_bfloat16_rounded_have_a_name_of_their_own(
    student: ApprenticePolicy, small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = []
    for rounds in (False, True):
        monkeypatch.setattr(cache, "fast_bfloat16", lambda device, rounds=rounds: rounds)
        cached(student, open_dataset(small_dataset), EXACT)
        names.append({path.name for path in (tmp_path / "cache" / "frames").iterdir()})
    assert len(names[0]) == 3 and len(names[1]) == 5  # the expert's latents are never rounded


def test_accelerate_on_the_cpu_means_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for value, kind in (("", "cuda"), ("false", "cuda"), ("true", "cpu"), ("1", "cpu")):
        monkeypatch.setenv("ACCELERATE_USE_CPU", value)
        assert best_device().type == kind
