"""Questions to a student and to a plain VLM, and the drift between them."""

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.support import make_student

from apprentice.cli import main
from apprentice.policy.ask import answer, drift
from apprentice.policy.modeling_apprentice import ApprenticePolicy
from apprentice.vlm.base import VLM

QUESTION = "what is on the stove?"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("images")
    paths = [str(folder / f"{number}.png") for number in range(2)]
    for seed, path in enumerate(paths):
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    return paths


@pytest.fixture
def student(small_dataset: Path, small_expert: Path, small_vlm: Path) -> ApprenticePolicy:
    return make_student(small_dataset, small_expert, small_vlm)


def change(vlm: VLM, factor: float) -> None:
    with torch.no_grad():
        for parameter in vlm.language_parameters():
            parameter.mul_(1 + factor)


def test_drift_is_that_of_the_distributions_and_of_the_weights(student: ApprenticePolicy, small_vlm: Path) -> None:
    original = VLM.from_pretrained(str(small_vlm)).eval()
    pictures = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    inputs = original.inputs([list(pictures)], [QUESTION])
    said = answer(original, inputs, 6)
    same = drift(student.vlm, original, inputs, said)
    assert (same.divergence, same.equal, same.weights) == (0, 1, 0)

    change(student.vlm, 0.3)
    found = drift(student.vlm, original, inputs, said)
    assert found.weights == pytest.approx(0.3, rel=1e-4)
    whole = {**inputs, "input_ids": torch.cat([inputs["input_ids"], said[None]], 1)}
    whole["attention_mask"] = torch.ones_like(whole["input_ids"])
    start = inputs["input_ids"].shape[1] - 1
    with torch.no_grad():
        ours, its = (v.model(**whole).logits[0, start:-1].log_softmax(-1) for v in (student.vlm, original))
    wanted = torch.nn.functional.kl_div(ours, its, log_target=True, reduction="batchmean").item()
    assert found.divergence == pytest.approx(wanted, rel=1e-3) and wanted > 1e-3
    assert found.equal == pytest.approx((ours.argmax(-1) == its.argmax(-1)).float().mean().item())


def test_a_student_answers_beside_its_original(
    student: ApprenticePolicy, images: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(student.vlm, 0.1)
    student.save_pretrained(tmp_path / "run" / "checkpoint")
    assert main(["ask", str(tmp_path / "run"), *images, QUESTION, "--tokens", "6"]) == 0
    printed = capsys.readouterr().out
    assert "the student: " in printed and "the original: " in printed
    assert "nats a token" in printed and "weights changed by 10.00%" in printed

    student.config.vlm = "nobody/nothing"
    student.save_pretrained(tmp_path / "alone")
    assert main(["ask", str(tmp_path / "alone"), images[0], QUESTION, "--tokens", "6"]) == 0
    assert "nobody/nothing, was not found: drift is not measured" in capsys.readouterr().out


def test_a_plain_vlm_answers(small_vlm: Path, images: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    vlm = VLM.from_pretrained(str(small_vlm)).eval()
    pictures = [torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) for path in images]
    said = answer(vlm, vlm.inputs([pictures], [QUESTION]), 6)
    assert main(["ask", str(small_vlm), *images, QUESTION, "--tokens", "6"]) == 0
    assert capsys.readouterr().out.strip() == vlm.processor.tokenizer.decode(said, skip_special_tokens=True).strip()


@pytest.mark.parametrize("kind", ["text", "cut", "damaged", "16 bits", "bomb"])
def test_what_is_no_image_is_named(
    kind: str, small_vlm: Path, images: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, place = bytearray(Path(images[0]).read_bytes()), tmp_path / "picture.png"
    if kind == "text":
        place.write_text("no image")
    elif kind == "cut":
        place.write_bytes(good[: len(good) // 2])
    elif kind == "damaged":
        place.write_bytes(good[:40] + bytes(20) + good[60:])
    elif kind == "16 bits":
        Image.fromarray(np.full((64, 64), 3000, np.uint16)).save(place)
    else:
        header = b"IHDR" + (10**5).to_bytes(4, "big") * 2 + good[24:29]
        place.write_bytes(good[:12] + header + zlib.crc32(header).to_bytes(4, "big") + good[33:])
    assert main(["ask", str(small_vlm), str(place), QUESTION]) == 2
    assert f"expected an image, found {place}: " in capsys.readouterr().err
