"""The nano VLM as a Hugging Face model: folders, prompts, packing and exact resume, at a tiny size."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.nano.tiny_nano import TINY
from transformers import AutoModelForImageTextToText, AutoProcessor

from apprentice.common.errors import FileError, UserError
from apprentice.nano.batches import Chat, Corpus, Item, pack
from apprentice.nano.forward import answer_logits, image_tokens
from apprentice.nano.model import NanoConfig, build_model, build_processor
from apprentice.nano.pretrain import PretrainConfig, pretrain
from apprentice.nano.questions import Question
from apprentice.nano.trainer import Trainer, rows_of

WORDS = ["put the bowl on the plate", "how far is the plate?", "point to the stove", "which objects are there?"]


def test_loads_like_a_hub_model(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch.manual_seed(0)
    model, processor = build_model(TINY, tokenizer).eval(), build_processor(TINY, tokenizer)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    reader = AutoProcessor.from_pretrained(tmp_path)
    images = [np.random.default_rng(i).integers(0, 256, (128, 128, 3), dtype=np.uint8) for i in range(2)]
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": WORDS[0]}]
    prompt = reader.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = reader(text=prompt, images=images, return_tensors="pt")
    assert inputs["input_ids"].shape == (1, 42)  # 2 images and an instruction of six words
    assert reader.batch_decode(inputs["input_ids"][:, -8:]) == [
        " put the bowl on the plate<end_of_utterance>Assistant:"
    ]
    assert torch.allclose(inputs["pixel_values"][1].permute(1, 2, 0), torch.tensor(images[1]) / 127.5 - 1, atol=1e-6)
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, again(**inputs).logits)
        new = again.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert new.shape[0] == 1 and 42 < new.shape[1] <= 45


def test_nano_has_about_5_million_parameters(tokenizer):
    assert 4.5e6 < build_model(NanoConfig(), tokenizer).num_parameters() < 5.5e6


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_packed_question_is_answered_as_if_it_were_alone(tokenizer, attention):
    """The packed row's logits equal those of the processor's own prompt, one question at a time."""
    torch.manual_seed(0)
    model, processor = build_model(TINY, tokenizer).eval(), build_processor(TINY, tokenizer)
    asked = [Question("height", WORDS[1], "<cm+12>"), Question("point", WORDS[2], "<loc003><loc100>", 0)]
    chat = Chat.of(processor)
    items = chat.tokenise([asked])
    images = [np.random.default_rng(i).integers(0, 256, (128, 128, 3), dtype=np.uint8) for i in range(2)]
    packed = pack(items, chat.start, tokenizer.pad_token_id)
    content = [{"type": "image"}, {"type": "image"}]
    with torch.no_grad():
        pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"][None]
        model.get_decoder().set_attn_implementation(attention)
        together = answer_logits(model, image_tokens(model, pixels), packed)
        model.get_decoder().set_attn_implementation("sdpa")
        for number, question in enumerate(asked):
            user = {"role": "user", "content": [*content, {"type": "text", "text": question.ask}]}
            prompt = processor.apply_chat_template([user], add_generation_prompt=True) + question.answer
            logits = model(**processor(text=prompt, images=images, return_tensors="pt")).logits[0]
            rows = packed["question"] == number
            assert torch.allclose(together[rows], logits[-int(rows.sum()) :], atol=1e-5)


def test_shifted_images_move_their_locations(tokenizer, fake_scenes, tmp_path):
    fake_scenes(tmp_path, "KITCHEN_SCENE1", 20)
    corpus = Corpus(tmp_path, "train", Chat.of(build_processor(TINY, tokenizer)))
    first = corpus.first
    item = Item(0, np.array([1]), np.array([first + 10, first + 20, 2]), image=1)
    moved = corpus._move(item, np.array([[0, 0], [4, -4]]))
    assert moved is not None and moved.answer.tolist() == [first + 14, first + 16, 2]
    assert corpus._move(Item(0, item.ask, np.array([first + 126, first, 2]), 0), np.array([[4, 0], [0, 0]])) is None


def test_killed_and_resumed_training_ends_with_the_same_weights(fake_scenes, tmp_path):
    fake_scenes(tmp_path, "KITCHEN_SCENE1", 24)

    def config(name: str) -> PretrainConfig:
        return PretrainConfig(str(tmp_path), str(tmp_path / name), steps=6, batch=4, questions=3, nano=TINY)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    whole = load_file(pretrain(config("whole")) / "model.safetensors")
    torch.set_num_threads(threads)
    broken = config("broken")
    steps = []
    update = Trainer.update

    def killed(trainer: Trainer, batch: dict) -> dict:
        if trainer.step == 3 and not steps:
            trainer.save(Path(broken.output) / "checkpoint.safetensors")
            steps.append(trainer.step)
            raise KeyboardInterrupt
        return update(trainer, batch)

    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "update", killed)
        pretrain(broken)
    resumed = load_file(pretrain(broken) / "model.safetensors")
    torch.set_num_threads(threads)
    assert steps == [3] and whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    longer = replace(config("longer"), start=broken.output, steps=1, lr=0.0)  # at a rate of 0 nothing changes
    started = load_file(pretrain(longer) / "model.safetensors")
    assert all(torch.equal(whole[name], started[name]) for name in whole)
    with pytest.raises(FileError, match=r"expected the state of a training in .*; fix: give the output folder"):
        pretrain(replace(longer, output=str(tmp_path / "other"), nano=replace(TINY, text_mlp=TINY.text_mlp + 8)))


def test_every_row_comes_once_an_epoch():
    config = PretrainConfig("", "", batch=4)
    rows = np.concatenate([rows_of(step, config, 10) for step in range(5)])
    assert sorted(rows[:10]) == sorted(rows[10:]) == list(range(10))


class Plain(Trainer):
    """A trainer of one layer."""

    def losses(self, batch):
        return {}


def test_weights_that_are_no_numbers_are_not_saved(tmp_path):
    layer = torch.nn.Linear(2, 1)
    named = dict(layer.named_parameters())
    trainer = Plain(PretrainConfig("", ""), named, [{"params": list(named.values()), "scale": 1.0}])
    trainer.save(tmp_path / "weights")
    good = (tmp_path / "weights").read_bytes()
    with torch.no_grad():
        layer.bias.fill_(float("nan"))
    with pytest.raises(UserError, match="expected finite weights after step 0, found some that are not"):
        trainer.save(tmp_path / "weights")
    assert (tmp_path / "weights").read_bytes() == good
