"""Caches: what a kill and a full disk do to them, what they give, who may remove them."""

import os
import time
from collections.abc import Callable, Iterator
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.support import CAMERAS, EXACT, make_batch, make_student

from apprentice import cli
from apprentice.common.errors import UserError
from apprentice.common.files import Lock
from apprentice.data.batch import EXPERT_LATENTS, IMAGE_TOKENS, PREFIX
from apprentice.data.dataset import open_dataset
from apprentice.distill.augment import view_of
from apprentice.distill.caches import cache as caching
from apprentice.distill.caches.cache import WHAT, Frozen, cached
from apprentice.distill.caches.rows import Rows, content
from apprentice.distill.caches.store import About, entries, frames_folder
from apprentice.distill.config import CacheConfig
from apprentice.distill.samples import Samples, order
from apprentice.policy.inputs import camera_images
from apprentice.policy.modeling_apprentice import ApprenticePolicy
from apprentice.vlm.quantized import packed, unpacked

VALUES = torch.randn(10, 2, 3).bfloat16()
FRAMES = np.array([0, 4, 10, 20, 33])


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APPRENTICE_CACHE", str(tmp_path / "cache"))


def make_rows(name: str = "test") -> Rows:
    about = About("numbers", "a/dataset", "a/model", 0, "bfloat16", (2, 3), 10, 12)
    return Rows(name, about, torch.bfloat16)


def batches(start: int) -> Iterator[torch.Tensor]:
    for first in range(start, 10, 4):
        yield VALUES[first : first + 4]


@pytest.fixture
def student(small_dataset: Path, small_expert: Path, small_vlm: Path) -> ApprenticePolicy:
    return make_student(small_dataset, small_expert, small_vlm, position_noise_mm=0, angle_noise_rad=0)


def test_goes_on_after_a_torn_write() -> None:
    rows, begun = make_rows(), []

    def killed(first: int) -> Iterator[torch.Tensor]:
        yield VALUES[:4]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rows.prepare(killed)
    rows._lock.release()
    with rows.partial.open("ab") as stream:
        stream.write(b"torn")
    assert rows.done() == 4 and not rows.complete
    rows.prepare(lambda first: begun.append(first) or batches(first))  # type: ignore[func-returns-value]
    assert begun == [4] and rows.done() == 10 and rows.complete
    assert torch.equal(rows[np.array([[9, 0], [5, 9]])], VALUES[torch.tensor([[9, 0], [5, 9]])])
    with pytest.raises(IndexError):
        rows[np.array([10])]


@pytest.mark.parametrize(
    ("harm", "first"),
    [
        (lambda rows: rows.path.write_bytes(bytes(rows.size)), 0),
        (lambda rows: rows.path.write_bytes(rows.path.read_bytes()[:60] + bytes(60)), 5),
        (lambda rows: rows.path.write_bytes((whole := rows.path.read_bytes())[:-1] + bytes([whole[-1] ^ 1])), 9),
        (lambda rows: os.truncate(rows.path, 31), 2),
        (lambda rows: os.truncate(rows.sums, 30), 7),
        (lambda rows: rows.sums.unlink(), 0),
    ],
)
def test_damaged_rows_are_computed_again(
    harm: Callable[[Rows], Any], first: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the first that differs; whole ones are not."""
    made = make_rows()
    made.prepare(batches)
    made._lock.release()
    harm(made)
    rows, begun = make_rows(), []
    rows.prepare(lambda first: begun.append(first) or batches(first))  # type: ignore[func-returns-value]
    assert begun == [first] and torch.equal(rows[np.arange(10)], VALUES) and rows.intact() == 10
    assert f"numbers on the disk are damaged from row {first} on" in capsys.readouterr().out or first == 2
    rows._lock.release()
    make_rows().prepare(lambda first: pytest.fail("they are whole"))


def test_full_disk_is_an_error_that_says_what_to_do() -> None:
    rows = make_rows()
    rows.partial.parent.mkdir(parents=True)
    rows.partial.symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"full disk; fix: free some \(apprentice cache rm\).* APPRENTICE_CACHE"):
        rows.prepare(batches)


def fill(pipe: Connection) -> None:
    rows = make_rows()

    def slowly(first: int) -> Iterator[torch.Tensor]:
        pipe.send(f"begun at {first}")
        for _ in range(first, 10):
            time.sleep(0.1)
            yield torch.zeros(1, 2, 3)

    rows.prepare(slowly)
    pipe.send("ready")
    pipe.recv()


def begin_to_fill() -> tuple[BaseProcess, Connection]:
    ours, theirs = Pipe()
    process = get_context("fork").Process(target=fill, args=(theirs,))
    process.start()
    theirs.close()
    return process, ours


def test_two_processes_fill_once_and_who_reads_keeps(capsys: pytest.CaptureFixture[str]) -> None:
    """The second waits for the first; while one of them lives, nobody removes what it reads."""
    both = [begin_to_fill(), begin_to_fill()]
    try:
        seen = []
        for _, pipe in both:
            while (line := pipe.recv()) != "ready":
                seen.append(line)
        assert seen == ["begun at 0"]
        both[0][0].kill()
        both[0][0].join()
        (entry,) = entries()
        assert entry.state == "in use" and cli.main(["cache", "rm", "test"]) == 1
        assert "test is kept: a running process uses it" in capsys.readouterr().out and entry.path.exists()
    finally:
        for process, _ in both:
            process.kill()
            process.join()
    (entry,) = entries()
    assert entry.state == "complete" and cli.main(["cache", "rm", "--all"]) == 0 and not entry.path.exists()


def test_listing_and_removing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apprentice.distill.caches.store.console.width", 200)
    for name in ("old", "new"):
        make_rows(name).prepare(batches)
    part = make_rows("part")
    part.about.save(part.path.parent)
    part.partial.write_bytes(bytes(12 * 7 + 5))
    (part.path.parent.parent / "0123.rows").write_bytes(bytes(300_000))
    long_ago = time.time() - 10 * 86400
    os.utime(make_rows("old").path.parent / "about.json", (long_ago, long_ago))
    assert cli.main(["cache", "ls"]) == 0
    shown = capsys.readouterr().out
    lines = {line.split()[1]: line for line in shown.splitlines() if line.startswith("│")}
    assert all(word in lines["new"] for word in ("numbers, bfloat16", "a/dataset", "a/model", " 10 ", "complete"))
    assert "7 of 10" in lines["part"] and "partial" in lines["part"] and "older version" in lines["0123.rows"]
    assert " 0.3 " in lines["total"]
    for words, message in (
        ("rm", "what to remove"),
        ("rm new --all", "more than one"),
        ("rm nothing", "found nothing"),
    ):
        assert cli.main(["cache", *words.split()]) == 2 and message in capsys.readouterr().err
    assert cli.main(["cache", "rm", "--older-than", "9"]) == 0
    assert {entry.path.name for entry in entries()} == {"new", "part", "0123.rows"}
    assert cli.main(["cache", "rm", "part", "0123.rows"]) == 0
    assert {entry.path.name for entry in entries()} == {"new"}


def test_a_lock_whose_file_was_removed_is_taken_anew(tmp_path: Path) -> None:
    held, other = Lock(tmp_path / "a" / "lock"), Lock(tmp_path / "a" / "lock")
    held.together()
    (tmp_path / "a" / "lock").unlink()
    held.together()
    assert (tmp_path / "a" / "lock").exists() and not other.alone()


KINDS = (IMAGE_TOKENS, EXPERT_LATENTS, PREFIX)
ROOMS = [KINDS, KINDS[:2], (IMAGE_TOKENS,), (EXPERT_LATENTS,), ()]


def sizes(student: ApprenticePolicy, dataset: Path, **settings: int) -> dict[str, int]:
    """Bytes of each kind in float32."""
    frozen = Frozen(student, open_dataset(dataset), CacheConfig(cache_precision="float32", **settings))
    kinds = [frozen.image_tokens(), frozen.latents(), frozen.keys_and_values()]
    return {kind.key: kind.size for kind in kinds if kind}


@torch.no_grad()
@pytest.mark.parametrize("every", [1, 3])
def test_whatever_finds_room_the_loss_is_that_of_the_whole_models(
    student: ApprenticePolicy, small_dataset: Path, capsys: pytest.CaptureFixture[str], every: int
) -> None:
    dataset, index = open_dataset(small_dataset), FRAMES // every
    student.eval()
    whole = student(make_batch(small_dataset, (index * every).tolist()))[0]
    size = sizes(student, small_dataset, every=every)
    for kept in ROOMS:
        rows = cached(
            student,
            dataset,
            CacheConfig(every=every, cache_gb=sum(size[key] for key in kept) / 1e9, cache_precision="float32"),
        )
        found = {key for key, views in rows.items() if isinstance(views.rows[0], Rows)}
        assert found == set(kept) - ({IMAGE_TOKENS} if PREFIX in kept else set())
        samples = Samples(dataset, student.config, rows, student.vlm.device, every)
        assert len(samples) == len(range(0, len(dataset), every))
        torch.testing.assert_close(student(samples[index])[0], whole, rtol=1e-5, atol=0)
        printed = " ".join(capsys.readouterr().out.split())
        for key in KINDS:
            assert (f"{WHAT[key]} are computed again in each step" in printed) == (key not in kept)
    assert "0 of the 0 GB of --cache-gb are left, and videos are searched" in printed


@torch.no_grad()
@pytest.mark.parametrize("precision", ["bfloat16", "8-bit"])
def test_less_precise_caches_take_less_and_hardly_change_the_loss(
    student: ApprenticePolicy, small_dataset: Path, precision: str
) -> None:
    whole = student.eval()(make_batch(small_dataset, FRAMES.tolist()))[0]
    dataset = open_dataset(small_dataset)
    rows = cached(student, dataset, CacheConfig(cache_precision=precision))
    about = rows[PREFIX].rows[0].about
    length = about.shape[-2]
    assert about.row_bytes == 2 * 2 * 1 * length * {"bfloat16": 2 * 32, "8-bit": 32 + 2}[precision]
    loss = student(Samples(dataset, student.config, rows, student.vlm.device)[FRAMES])[0]
    assert loss != whole
    torch.testing.assert_close(loss, whole, rtol=5e-3, atol=0)


def test_no_more_is_written_than_the_disk_has_room_for(
    student: ApprenticePolicy, small_dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    size, choice = sizes(student, small_dataset), frames_folder().parent / "choice.json"
    monkeypatch.setattr(caching, "_free", lambda: caching.MARGIN + size[IMAGE_TOKENS] + size[EXPERT_LATENTS])
    dataset = open_dataset(small_dataset)
    assert set(cached(student, dataset, EXACT, choice)) == {
        IMAGE_TOKENS,
        EXPERT_LATENTS,
    }
    assert "0 GB are free on the disk, less a margin of 2" in " ".join(capsys.readouterr().out.split())
    # What is there needs no room, so now there is some for the rest; a run that began without goes on without.
    monkeypatch.setattr(caching, "_free", lambda: caching.MARGIN + size[PREFIX])
    assert set(cached(student, dataset, EXACT, choice)) == {
        IMAGE_TOKENS,
        EXPERT_LATENTS,
    }
    assert PREFIX in cached(student, dataset, EXACT)


def test_names_follow_content(student: ApprenticePolicy, small_dataset: Path) -> None:
    """Other weights, other ways to prepare a picture or a prompt: other caches; what is the same is shared."""

    def names() -> tuple[str, ...]:
        cached(student, open_dataset(small_dataset))
        now = {entry.path.name for entry in entries()}
        fresh = sorted(entry.about.what for entry in entries() if entry.about and entry.path.name not in known)
        known.update(now)
        return tuple(fresh)

    known: set[str] = set()
    assert names() == ("expert latents", "image tokens", "keys and values")
    assert names() == ()
    with torch.no_grad():
        student.vlm.language_parameters()[0].add_(1)
    assert names() == ("keys and values",)
    student.vlm.processor.image_processor.image_mean = [0.4, 0.5, 0.5]
    assert names() == ("image tokens", "keys and values")
    student.vlm.processor.chat_template = "Look: " + student.vlm.processor.chat_template
    student.vlm._prompts.clear()
    assert names() == ("keys and values",)


@torch.no_grad()
def test_each_view_is_what_the_vlm_makes_of_changed_pictures(student: ApprenticePolicy, small_dataset: Path) -> None:
    dataset = open_dataset(small_dataset)
    rows = cached(student.eval(), dataset, CacheConfig(views=3, cache_precision="float32"))
    samples = Samples(dataset, student.config, rows, student.vlm.device)
    views = np.array([0, 2, 1, 2, 0])
    found = samples[views * len(samples) + FRAMES]
    plain = make_batch(small_dataset, FRAMES.tolist())
    assert torch.equal(found["observation.state"], plain["observation.state"])
    torch.testing.assert_close(found[EXPERT_LATENTS], student.expert.encode(plain))  # of the picture itself
    pictures = camera_images(student.config, plain)
    rows = [view_of([each[[i]] for each in pictures], FRAMES[[i]], view) for i, view in enumerate(views.tolist())]
    changed = [torch.cat(camera) for camera in zip(*rows, strict=True)]
    for ours, its in zip(changed, pictures, strict=True):
        assert [torch.equal(a, b) for a, b in zip(ours, its, strict=True)] == (views == 0).tolist()
    raw = plain | dict(zip(CAMERAS, changed, strict=True))
    raw[EXPERT_LATENTS] = student.expert.encode(plain)
    torch.testing.assert_close(student(found)[0], student(raw)[0], rtol=1e-5, atol=0)
    little = cached(
        student, dataset, CacheConfig(views=3, cache_precision="float32", cache_gb=0)
    )  # and computed in the step
    again = Samples(dataset, student.config, little, student.vlm.device)[views * len(samples) + FRAMES]
    torch.testing.assert_close(student(again)[0], student(raw)[0], rtol=1e-5, atol=0)


def test_a_view_is_little_changed_and_always_the_same() -> None:
    picture = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8).repeat_interleave(8, -1).repeat_interleave(8, -2)
    state = torch.get_rng_state()
    views = torch.stack([view_of([picture], [3, 4], view)[0] for view in range(5)])
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(view_of([picture[1:]], [4], 2)[0], views[2, 1:]) and views.dtype == torch.uint8
    assert len({content(view) for view in views.flatten(0, 1)}) == 10
    assert not torch.equal(view_of([picture], [3, 4], 1, seed=1)[0], views[1])
    assert (views[1:].float().mean((-1, -2, -3)) / picture.float().mean((-1, -2, -3)) - 1).abs().max() < 0.35


def test_an_epoch_shows_each_frame_once_and_each_next_one_in_its_next_view() -> None:
    chain = np.concatenate([order(step, 4, 10, seed=3, views=4) for step in range(10)]).reshape(4, 10)
    frames, views = chain % 10, chain // 10
    assert (np.sort(frames) == np.arange(10)).all()
    of_frame = np.array([views[epoch][np.argsort(frames[epoch])] for epoch in range(4)])
    assert ((of_frame[1:] - of_frame[:-1]) % 4 == 1).all() and len(set(of_frame[0])) > 1
    assert (order(0, 4, 10, seed=3) == order(0, 4, 10, seed=3, views=4) % 10).all()


def test_eight_bits_are_near_for_large_and_small_vectors() -> None:
    vectors = torch.randn(5, 4, 64) * torch.tensor([0.0, 1e-4, 1.0, 1e5])[:, None]
    kept = packed(vectors)
    assert kept.dtype == torch.uint8 and kept.shape == (5, 4, 66)
    error = (unpacked(kept, torch.float32) - vectors).abs().amax(-1)
    assert (error <= vectors.abs().amax(-1) * 0.008).all()
