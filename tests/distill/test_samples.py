"""Which samples a step trains on, out of one dataset or of several, and what a batch of them holds."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from tests.support import CAMERAS, EXACT, make_dataset, make_student

from apprentice import cli
from apprentice.common.errors import UserError
from apprentice.data.batch import Batch
from apprentice.data.dataset import column, episode_bounds, open_dataset
from apprentice.distill import samples as sampling
from apprentice.distill.caches.cache import cached_each, cached_images
from apprentice.distill.samples import Samples, epoch, near_gripper_change, order
from apprentice.experts.seer.configuration_seer import SeerConfig

LONG = "put the bowl that stands between the plate and the stove on top of the stove"
EPOCHS = 300


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APPRENTICE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def other_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """65 frames, whose second instruction is a long one."""
    root = make_dataset(tmp_path_factory.mktemp("data") / "other", video=False, episodes=5)
    tasks = pandas.read_parquet(root / "meta" / "tasks.parquet")
    tasks.index = [*tasks.index[:1], LONG]
    tasks.index.name = "task"
    tasks.to_parquet(root / "meta" / "tasks.parquet")
    return root


@pytest.fixture
def datasets(small_dataset: Path, other_dataset: Path) -> list[Any]:
    return [open_dataset(small_dataset), open_dataset(other_dataset)]


def of(datasets: list[Any]) -> Samples:
    return Samples.of(datasets, SeerConfig(), [{} for _ in datasets], torch.device("cpu"))


def drawn(samples: Samples, epochs: int = EPOCHS) -> np.ndarray:
    """How often each frame is drawn in each epoch (epochs, F), from batches that do not fit into epochs."""
    count, size = len(samples), 7
    chain = np.concatenate([samples.order(step, size, seed=3) for step in range(-(-epochs * count // size))])
    return np.stack([np.bincount(part, minlength=count) for part in chain[: epochs * count].reshape(epochs, count)])


def wanted(samples: Samples, weights: list[float] | None, balance: str, factor: float, near: np.ndarray) -> np.ndarray:
    """The share of each frame, written down one by one."""
    shares = np.zeros(len(samples))
    sources = samples.source.tolist()
    for source in set(sources):
        mine = [i for i, s in enumerate(sources) if s == source]
        of_source = len(mine) / len(sources) if weights is None else weights[source] / sum(weights)
        names = {samples.task[i] for i in mine} if balance == "task" else {None}
        for name in names:
            group = [i for i in mine if name in (None, samples.task[i])]
            each = [factor if near[i] else 1.0 for i in group]
            for i, value in zip(group, each, strict=True):
                shares[i] = of_source / len(names) * value / sum(each)
    return shares


@pytest.mark.parametrize(
    ("weights", "balance", "factor"),
    [([3.0, 1.0], "task", 1.0), (None, "task", 1.0), (None, "task", 4.0), ([1.0, 5.0], "frame", 0.5)],
)
def test_frames_are_drawn_as_often_as_asked(
    datasets: list[Any], weights: list[float] | None, balance: Any, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "NEAR_CHANGE", 0.05)  # a frame: the gripper changes at every other one
    samples = of(datasets)
    samples.weigh(weights, balance, factor)
    near = np.concatenate([near_gripper_change(dataset) for dataset in datasets])
    count = len(samples) * wanted(samples, weights, balance, factor, near)  # in an epoch
    found = drawn(samples)
    assert ((found == np.floor(count + 1e-9)) | (found == np.ceil(count - 1e-9))).all()
    spread = np.sqrt((count % 1) * (1 - count % 1) / EPOCHS)
    assert (np.abs(found.mean(0) - count) <= 5 * spread + 1e-9).all()
    instructed = samples.task if balance == "task" else [""] * len(samples)
    names = np.array([f"{source} {task}" for source, task in zip(samples.source, instructed, strict=True)])
    for name in np.unique(names):  # in every single epoch
        assert np.abs(found[:, names == name].sum(1) - count[names == name].sum()).max() < 1 + 1e-9


def test_alike_frames_come_once_an_epoch(datasets: list[Any]) -> None:
    samples = of(datasets)
    samples.weigh(None, "frame", 1.0)
    assert samples.weights is None and (drawn(samples, 3) == 1).all()
    assert (samples.order(5, 8, seed=2) == order(5, 8, len(samples), seed=2)).all()


def test_a_step_depends_on_seed_and_number_alone(datasets: list[Any]) -> None:
    samples = of(datasets)
    samples.weigh([3.0, 1.0], "task", 2.0)
    late = samples.order(40, 8, seed=1)
    epoch.cache_clear()
    fresh = of(datasets)
    fresh.weigh([3.0, 1.0], "task", 2.0)
    assert (late == np.stack([fresh.order(step, 8, seed=1) for step in range(41)])[40]).all()
    assert (late != fresh.order(40, 8, seed=2)).any()


def test_near_a_change_of_the_gripper(small_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "NEAR_CHANGE", 0.05)  # a frame
    dataset = open_dataset(small_dataset)
    gripper, (starts, ends) = column(dataset, "action")[:, -1], episode_bounds(dataset)
    found = near_gripper_change(dataset)
    for frame, (start, end) in enumerate(zip(starts, ends, strict=True)):
        changes = [place for place in range(start + 1, end) if gripper[place] != gripper[place - 1]]
        assert found[frame] == any(-1 <= frame - place < 1 for place in changes)
    assert 0 < found.sum() < len(found)


def test_without_a_change_of_the_gripper_nothing_is_near_one(datasets: list[Any]) -> None:
    samples = of(datasets)
    samples.changes = np.zeros_like(samples.changes)
    samples.weigh(None, "frame", 1.0)
    with pytest.raises(UserError, match=r"a gripper, the last column .* fix: leave --gripper-change-factor out"):
        samples.weigh(None, "frame", 2.0)


def test_a_batch_of_several_datasets_is_made_of_theirs(datasets: list[Any]) -> None:
    rows = cached_images(datasets, CAMERAS)
    alone = [Samples(*each, torch.device("cpu")) for each in zip(datasets, [SeerConfig()] * 2, rows, strict=True)]
    together = Samples.of(datasets, SeerConfig(), rows, torch.device("cpu"))
    first = len(alone[0])
    index = np.array([first + 3, 0, first + 64, 35, first, 11])
    batch = together[index]
    for place, number in enumerate(index):
        one: Batch = alone[0][np.array([number])] if number < first else alone[1][np.array([number - first])]
        assert one.keys() == batch.keys() and one["task"] == batch["task"][place : place + 1]
        assert all(torch.equal(value[0], batch[key][place]) for key, value in one.items() if key != "task")
    assert len(np.unique(together.episode)) == 8
    held = together.split(4)[1]
    assert len(np.unique(together.episode[held.frames])) == 4 and set(together.source[held.frames]) == {0, 1}


@pytest.mark.parametrize("stage", ["align", "finetune"])
def test_a_student_learns_from_several_as_from_their_pictures(
    datasets: list[Any], small_dataset: Path, small_expert: Path, small_vlm: Path, stage: str
) -> None:
    """Although the longest prompt of one is shorter than that of the other."""
    student = make_student(small_dataset, small_expert, small_vlm, latent_weight=0.5)
    student.set_stage(stage)
    index = np.array([0, 50, 20, 95, 10])
    losses = []
    for rows in (
        cached_each(student, datasets, EXACT),
        cached_images(datasets, CAMERAS),
    ):
        samples = Samples.of(datasets, student.config, rows, torch.device("cpu"))
        assert LONG in samples[index]["task"]
        losses.append(student(samples[index])[0])
    assert torch.isclose(*losses, rtol=1e-4)


def test_the_command_takes_several(
    small_dataset: Path, other_dataset: Path, small_expert: Path, small_vlm: Path, tmp_path: Path
) -> None:
    out = str(tmp_path / "run")
    places = ["--expert", str(small_expert), "--vlm", str(small_vlm), "--out", out, "--track", "none"]
    words = ["align", "--dataset", f"{small_dataset}=1", f"{other_dataset}=2", "--steps", "2", "--batch-size", "4"]
    assert cli.main([*words, *places]) == 0
    assert (tmp_path / "run" / "cost.json").exists()
    assert cli.main(["align", "--dataset", f"{small_dataset}=1", f"{other_dataset}=3", *words[4:], *places]) == 2
