"""Scores of the nano VLM: what counts as right, greedy answers, the two baselines and the card."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tests.nano.tiny_nano import TINY
from transformers import AutoProcessor

from apprentice.common.errors import UserError
from apprentice.nano.batches import Chat, Item
from apprentice.nano.model import build_model, build_processor
from apprentice.nano.pretrain import PretrainConfig, pretrain
from apprentice.nano.questions import KINDS
from apprentice.nano.scenes.catalogue import CATEGORIES, HELD_OUT
from apprentice.nano.scenes.dataset import load
from apprentice.nano.score.grading import Marker
from apprentice.nano.score.model_card import _commands
from apprentice.nano.score.score import Exam, _model, answers, constant_answers, score, tally

NOTHING = np.zeros((2, 32, 32), int)


@pytest.fixture
def read(tokenizer):
    def tokens(text: str) -> np.ndarray:
        return np.array(tokenizer(text + "<end_of_utterance>", add_special_tokens=False)["input_ids"])

    return tokens


@pytest.mark.parametrize(
    ("kind", "true", "guess", "right", "error"),
    [
        ("present", "yes", "yes", True, None),
        ("present", "yes", "no", False, None),
        ("point", "<loc050><loc060>", "<loc052><loc063>", True, 13**0.5),
        ("point", "<loc050><loc060>", "<loc053><loc063>", False, 18**0.5),
        ("point", "<loc000><loc000>", "<cm-64><loc000>", False, np.inf),
        ("point_wrist", "<loc050><loc060>", "not visible", False, np.inf),
        ("point_wrist", "not visible", "not visible", True, None),
        ("height", "<cm+02>", "<cm-01>", True, 3),
        ("offset", "<cm+02><cm+00><cm-10>", "<cm+03><cm+02><cm-12>", True, 3),
        ("offset", "<cm+02><cm+00><cm-10>", "<cm+04><cm+02><cm-12>", False, 12**0.5),
        ("act", "<loc010><loc020><cm+00><cm+00><cm+00><loc030><loc040>",
         "<loc010><loc021><cm+03><cm+00><cm+00><loc030><loc043>", True, 3),
        ("act", "<loc010><loc020><cm+00><cm+00><cm+00><loc030><loc040>",
         "<loc010><loc020><cm+09><cm+00><cm+00><loc030><loc040>", False, 0),
    ],
)  # fmt: skip
def test_near_is_right(read, tokenizer, kind, true, guess, right, error):
    item = Item(KINDS.index(kind), np.array([1]), read(true), image=0)
    mark = Marker(tokenizer).mark(read(guess), item, NOTHING, set())
    assert (mark.kind, mark.right) == (kind, right) and mark.error == (None if error is None else pytest.approx(error))


def test_a_point_on_the_right_object_is_right_unless_it_has_a_twin(read, tokenizer):
    plate = CATEGORIES.index("plate")
    category = NOTHING.copy()
    category[1, 20:24, 10:20] = plate  # rows: y
    item = Item(KINDS.index("point_wrist"), np.array([1]), read("<loc042><loc090>"), image=1)
    far, off = read("<loc076><loc082>"), read("<loc082><loc076>")
    marker = Marker(tokenizer)
    assert marker.mark(far, item, category, {plate}).right
    assert not marker.mark(far, item, category, set()).right
    assert not marker.mark(off, item, category, {plate}).right
    assert not marker.mark(far, replace(item, image=0), category, {plate}).right


def test_the_best_constant_is_the_one_that_is_near_most_answers(read, tokenizer):
    marker = Marker(tokenizer)
    assert (marker.constant([read(text) for text in ("yes", "no", "no")]) == read("no")).all()
    points = [f"<loc{x:03d}><loc020>" for x in (10, 11, 60, 63, 66, 120)]
    assert (marker.constant([read(text) for text in points]) == read("<loc063><loc020>")).all()
    hidden = [*points, *["not visible"] * 4]
    assert (marker.constant([read(text) for text in hidden]) == read("not visible")).all()


def test_answers_are_what_generating_gives(tokenizer, fake_scenes, tmp_path):
    """Numbers equal those generated from the processor's prompt; words count only if generating would give them."""
    fake_scenes(tmp_path, "KITCHEN_SCENE1", 20)
    torch.manual_seed(0)
    model, processor = build_model(TINY, tokenizer).eval(), build_processor(TINY, tokenizer)
    model.get_input_embeddings().weight.data *= 10  # answers that depend on what came before
    exam = Exam(tmp_path, "layouts", Chat.of(processor), layouts=2)
    found, compared = answers(model, exam, blind=False), set()
    for images, items, guesses in zip(exam.images, exam.items, found, strict=True):
        for item, guess in zip(items, guesses, strict=True):
            numbers = sum(token < 0 for token in exam.marker.form(item.answer))
            ask = tokenizer.decode(item.ask[:-2])
            content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": ask.strip()}]
            prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
            inputs = processor(text=prompt, images=list(images), return_tensors="pt")
            made = model.generate(**inputs, max_new_tokens=len(guess), min_new_tokens=len(guess), do_sample=False)
            new = made[0, inputs["input_ids"].shape[1] :].numpy()
            if numbers:
                free = model.generate(**inputs, max_new_tokens=numbers, do_sample=False)
                free = free[0, inputs["input_ids"].shape[1] :].numpy()
                assert (guess[: len(free)] == free).all()
                compared.add(numbers)
            else:
                assert (guess == item.answer).all() == (new == item.answer).all()
    assert compared >= {1, 2, 3}


def test_a_scholar_gets_full_marks_and_constants_do_not(tokenizer, fake_scenes, tmp_path):
    fake_scenes(tmp_path, "KITCHEN_SCENE1", 60)
    chat = Chat.of(build_processor(TINY, tokenizer))
    exam = Exam(tmp_path, "layouts", chat)
    assert len(exam.items) == 15  # the layouts that are never trained on
    right = exam.marks([[item.answer for item in items] for items in exam.items])
    assert all(mark.right for mark in right)
    constants = constant_answers(load(tmp_path, "train", ())["facts"], chat)
    fixed = exam.marks([[constants[item.kind] for item in items] for items in exam.items])
    counted = {s.kind: s for s in tally("layouts", exam.examples, right, fixed, fixed)}
    assert counted["point"].right == counted["point"].asked > counted["point"].constant
    assert counted["height"].constant == counted["height"].asked  # the gripper is always as high
    assert sum(s.asked for s in counted.values()) == len(right)


@pytest.fixture(scope="module")
def trained(fake_scenes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    for scene in ("KITCHEN_SCENE1", HELD_OUT[0]):
        fake_scenes(folder, scene, 24)
    for name in ("vlm", "twin"):
        pretrain(PretrainConfig(str(folder), str(folder / name), steps=2, batch=4, blind=name == "twin", nano=TINY))
    return folder


def test_the_card_holds_the_numbers(trained):
    scores = score(trained, trained / "vlm", trained / "twin")
    text = (trained / "vlm" / "model" / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front)["pipeline_tag"] == "image-text-to-text"
    assert {s.part for s in scores} == {"layouts", "scenes"}
    for s in scores:
        assert f"| {s.example} | {s.asked} | {s.right / s.asked:.1%} (" in body
        assert max(s.right, s.text_only, s.constant) <= s.asked
    assert "36 random layouts" not in body and "9 random layouts" in body  # 24, less the first 15, of one scene
    assert "16 tokens" in body and "one for 32 px squares" in body and "of 0 scenes of our own" in body
    assert "--steps 2 --batch 4" in body and str(trained) not in text
    assert AutoProcessor.from_pretrained(trained / "vlm" / "model")  # the card does no harm


def test_the_twin_sees_nothing(trained, tokenizer):
    exam = Exam(trained, "layouts", Chat.of(build_processor(TINY, tokenizer)))
    before = answers(_model(trained / "twin"), exam, blind=True)
    exam.images = 255 - exam.images
    after = answers(_model(trained / "twin"), exam, blind=True)
    assert all((a == b).all() for row in zip(before, after, strict=True) for a, b in zip(*row, strict=True))


def test_mistaken_folders_are_refused(trained):
    with pytest.raises(UserError, match="expected the text-only twin"):
        score(trained, trained / "vlm", trained / "vlm")
    with pytest.raises(UserError, match="found no model"):
        score(trained, trained / "elsewhere", trained / "twin")


def test_the_card_tells_the_run_that_the_vlm_went_on_from() -> None:
    run = {"steps": 8, "vision_share": 0.5, "batch": 4, "lr": 0.01}
    begin, flags = "    apprentice pretrain-vlm --data scenes --output", "--batch 4 --lr 0.01 --vision-share 0.5"
    assert list(_commands([run, {**run, "steps": 6}], {**run, "steps": 2})) == [
        f"{begin} before-1 --steps 8 {flags}",
        f"{begin} vlm --start before-1 --steps 6 {flags}",
        f"{begin} twin --blind --steps 2 {flags}",
    ]


def test_a_run_that_goes_on_from_itself_is_refused(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "vlm", tmp_path / "vlm")
    settings = json.loads((tmp_path / "vlm" / "config.json").read_text())
    (tmp_path / "vlm" / "config.json").write_text(json.dumps(settings | {"start": str(tmp_path / "vlm")}))
    with pytest.raises(UserError, match="to be older than"):
        score(trained, tmp_path / "vlm", trained / "twin")
