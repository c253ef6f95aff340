"""Conformance of VLM families: each test is a column of the table in docs/families.md, each family a row of it.

`python -m tests.vlm.table` writes that table. Everything is float32 with random weights.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support import make_batch, make_history, make_student
from tests.vlm import table
from tests.vlm.families import FAMILIES
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from transformers import AutoModelForImageTextToText, AutoProcessor

from apprentice.policy.modeling_apprentice import TRAINED, ApprenticePolicy
from apprentice.vlm.base import VLM
from apprentice.vlm.prefix import Prefix
from apprentice.vlm.prompt import Prompt

ASKED = ["stop", "put the bowl on the stove", "turn on the stove"]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As it would lie on the hub."""
    torch.manual_seed(0)
    model, processor = FAMILIES[family]()
    path = tmp_path_factory.mktemp("family")
    model.generation_config.max_length = 500  # to be found again in a student
    for part in (model, processor):
        part.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def vlm(folder: Path) -> VLM:
    return VLM.from_pretrained(str(folder)).eval()


@pytest.fixture
def student(folder: Path, small_dataset: Path, small_expert: Path) -> ApprenticePolicy:
    return make_student(small_dataset, small_expert, folder)


@pytest.fixture(scope="module")
def batch(small_dataset: Path) -> dict[str, Any]:
    actions = torch.rand(3, 4, 7, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return make_batch(small_dataset, (0, 15, 30)) | {"action": actions}


SIZES = ((64, 64), (64, 64))


def pictures(count: int, height: int = 64, width: int = 64, batch: int = len(ASKED)) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (batch, count, 3, height, width), generator=generator, dtype=torch.uint8)


def near(ours: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=0)


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def weights(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def steps(policy: Any, batch: dict[str, Any], count: int = 3) -> list[float]:
    """Train on one batch; the losses."""
    policy.train()
    optimizer = torch.optim.Adam(policy.get_optim_params(), lr=1e-3)
    losses = []
    for _ in range(count):
        loss, _ = policy(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    policy.eval()
    return losses


def test_loads(folder: Path, vlm: VLM, tmp_path: Path) -> None:
    """By Hugging Face's own way in, from a folder; what a student keeps of it gives the same structure again."""
    plain = AutoModelForImageTextToText.from_pretrained(folder)
    vlm.save_config(tmp_path)
    again = VLM.from_config(tmp_path)
    for other in (vlm, again):
        assert type(other.model) is type(plain) and type(other.processor) is type(AutoProcessor.from_pretrained(folder))
        assert other.model.state_dict().keys() == plain.state_dict().keys()
        assert other.model.generation_config.max_length == 500
    ours, its = ({p.data_ptr() for p in parameters} for parameters in (vlm.language_parameters(), vlm.parameters()))
    assert ours < its and not ours & {p.data_ptr() for p in vlm.model.get_output_embeddings().parameters()}


@torch.no_grad()
def test_a_student_sees_each_image_once(vlm: VLM, student: ApprenticePolicy, tmp_path: Path) -> None:
    splits = getattr(vlm.processor.image_processor, "do_image_splitting", False)
    student.save_pretrained(tmp_path)
    for whole in (student.vlm, ApprenticePolicy.from_pretrained(tmp_path).vlm):
        ours, its = (each.image_tokens(pictures(2, batch=1).unbind(1)).shape[1] for each in (whole, vlm))
        assert its == (5 * ours if splits else ours)  # here four tiles and the whole
        prompt = whole.prompt(ASKED[:1], SIZES)
        assert ours == int((prompt.ids == whole.model.config.image_token_id).sum())


@torch.no_grad()
def test_untouched(folder: Path) -> None:
    """Logits and greedy answers are bit-identical to those of the model alone, after all of our passes have run."""
    plain = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    vlm = VLM.from_pretrained(str(folder)).eval()
    prompt, tokens = vlm.prompt(ASKED, SIZES), torch.randn(3, 4, vlm.hidden_size)
    seen = vlm.image_tokens(pictures(2).unbind(1))
    vlm.whole(prompt, seen, tokens)
    vlm.suffix(vlm.prefix(prompt, seen), tokens)
    with pytest.raises((RuntimeError, ValueError)):
        vlm.whole(prompt, seen[:, 1:], tokens)  # a pass that breaks leaves nothing behind either
    for count, questions in ((1, ASKED[1:2]), (2, ASKED)):
        inputs = vlm.inputs(pictures(count, batch=len(questions)).unbind(), questions)
        assert torch.equal(vlm.model(**inputs).logits, plain(**inputs).logits)
        settings = {"max_new_tokens": 5, "do_sample": False}
        assert torch.equal(vlm.model.generate(**inputs, **settings), plain.generate(**inputs, **settings))
    words = {"input_ids": inputs["input_ids"][:1, -4:], "attention_mask": inputs["attention_mask"][:1, -4:]}
    words |= {name: inputs[name][:1, -4:] for name in prompt.types}
    assert torch.equal(vlm.model(**words).logits, plain(**words).logits)
    assert not moved(dict(plain.named_parameters()), dict(vlm.model.named_parameters()))


def test_prompt(vlm: VLM) -> None:
    """What goes in is what Hugging Face's own `apply_chat_template` makes of the same turn."""
    if vlm.processor.chat_template is None:
        pytest.skip("this family has no turns")
    images = pictures(2)[1]
    turn = [{"type": "image", "image": to_pil_image(image)} for image in images]
    turn += [{"type": "text", "text": ASKED[1]}]
    own = vlm.processor.apply_chat_template(
        [{"role": "user", "content": turn}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    inputs = vlm.inputs([images], [ASKED[1]])
    assert torch.equal(inputs["input_ids"], own["input_ids"])
    assert torch.equal(inputs["pixel_values"], own["pixel_values"])


@pytest.mark.parametrize(("count", "height", "width"), [(1, 64, 64), (2, 64, 64), (2, 48, 96)])
@torch.no_grad()
def test_images(vlm: VLM, count: int, height: int, width: int) -> None:
    """Image tokens computed once enter as the model itself would merge them, and their number depends on size alone."""
    images = pictures(count, height, width)
    whole, alone = vlm.inputs(images.unbind(), ASKED), vlm.pixels(images)
    assert "pixel_values" in alone and all(torch.equal(value, whole[name]) for name, value in alone.items())
    assert alone.keys() == {name for name, value in whole.items() if value.shape != whole["input_ids"].shape}
    prompt, seen = vlm.prompt(ASKED, ((height, width),) * count), vlm.image_tokens(images.unbind(1))
    for row in range(len(ASKED)):
        inputs = vlm.inputs([images[row]], [ASKED[row]])
        kept = prompt.mask[row].bool()
        assert torch.equal(prompt.ids[row, kept], inputs["input_ids"][0])  # made with blank images
        near(vlm.image_tokens(images[row : row + 1].unbind(1)), seen[row : row + 1])
        own = vlm.model.base_model(**inputs).last_hidden_state[0]
        near(vlm._pass(prompt, seen, None, use_cache=False).last_hidden_state[row, kept], own)


@torch.no_grad()
def test_images_of_different_sizes(vlm: VLM) -> None:
    """Each has the tokens of its own size, at its own place in the prompt."""
    sizes = ((64, 64), (48, 96), (64, 64))
    images = [pictures(1, *size)[:, 0] for size in sizes]
    images[2] = images[2].flip(-1)
    prompt, seen = vlm.prompt(ASKED, sizes), vlm.image_tokens(images)
    near(seen, torch.cat([vlm.image_tokens([image, image]).chunk(2, 1)[0] for image in images], 1))
    image_token = vlm.model.config.image_token_id
    assert (prompt.ids == image_token).sum(1).tolist() == [seen.shape[1]] * len(ASKED)
    for row in range(len(ASKED)):
        inputs = vlm.inputs([[image[row] for image in images]], [ASKED[row]])
        assert torch.equal(prompt.ids[row, prompt.mask[row].bool()], inputs["input_ids"][0])
    tokens = torch.randn(3, 4, vlm.hidden_size)
    near(vlm.suffix(vlm.prefix(prompt, seen), tokens), vlm.whole(prompt, seen, tokens))


def shifted(prompt: Prompt, side: str) -> Prompt:
    """The same prompts, padded on the given side."""
    if side == "left":
        return prompt
    missing = (prompt.mask == 0).sum(1).tolist()

    def roll(rows: Tensor) -> Tensor:
        return torch.stack([row.roll(-n, -1) for row, n in zip(rows.unbind(-2), missing, strict=True)], -2)

    types = {name: roll(value) for name, value in prompt.types.items()}
    return Prompt(roll(prompt.ids), roll(prompt.mask), roll(prompt.positions), types)


@pytest.mark.parametrize("side", ["left", "right"])
def test_split(vlm: VLM, side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefix and suffix give what the whole pass gives, gradients included, for unequal prompts, padded either side."""
    monkeypatch.setattr(vlm.processor.tokenizer, "padding_side", side)
    assert vlm.splits
    prompt = shifted(vlm.prompt(ASKED, SIZES), side)
    assert len(set(prompt.mask.sum(1).tolist())) == 3 and prompt.mask[0, 0 if side == "left" else -1] == 0
    tokens = torch.randn(3, 5, vlm.hidden_size, generator=torch.Generator().manual_seed(1)).requires_grad_()
    with torch.no_grad():
        seen = vlm.image_tokens(pictures(2).unbind(1))
        prefix = vlm.prefix(prompt, seen)
        packed = prefix.pack()
    whole, split = vlm.whole(prompt, seen, tokens), vlm.suffix(prefix, tokens)
    near(split, whole)
    near(*(torch.autograd.grad(out.square().mean(), tokens)[0] for out in (split, whole)))
    if side == "left":  # as `prompt` does it; on the right, padding takes room in a sliding window
        near(vlm.whole(vlm.prompt(ASKED[:1], SIZES), seen[:1], tokens[:1]), whole[:1])
    if packed is not None:
        near(vlm.suffix(Prefix.unpack(packed, prompt, vlm.model), tokens), whole)


@torch.no_grad()
def test_cached_prefix(vlm: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The prefix fits into one tensor on disk, unless a window forgets a part of the prompt."""
    prompt, seen = vlm.prompt(ASKED, SIZES), vlm.image_tokens(pictures(2).unbind(1))
    tokens = torch.randn(3, 5, vlm.hidden_size, generator=torch.Generator().manual_seed(1))
    text = vlm.model.get_decoder().config
    if "sliding_attention" in (getattr(text, "layer_types", None) or []):
        assert text.sliding_window < prompt.ids.shape[1] and vlm.prefix(prompt, seen).pack() is None
        monkeypatch.setattr(text, "sliding_window", 1024)
    packed = vlm.prefix(prompt, seen).pack()
    assert packed is not None
    near(vlm.suffix(Prefix.unpack(packed, prompt, vlm.model), tokens), vlm.whole(prompt, seen, tokens))


def conversation(vlm: VLM, images: Tensor, question: str, answer: str) -> Any:
    """What the family's own processor makes of a question, an answer and the question again."""
    content = [{"type": "image"}] * len(images) + [{"type": "text", "text": question}]
    user = {"role": "user", "content": content}
    turns = [user, {"role": "assistant", "content": [{"type": "text", "text": answer}]}, user]
    text = vlm.processor.apply_chat_template(turns, add_generation_prompt=True)
    special = not text.startswith(vlm.processor.tokenizer.bos_token or "none")
    pictures = [[*images, *images.flip(-1)]]
    return vlm.processor(images=pictures, text=[text], return_tensors="pt", add_special_tokens=special)


@torch.no_grad()
def test_turns(vlm: VLM) -> None:
    """A chat is what the family's own template, processor and forward pass make of it, our tokens its answers."""
    if vlm.processor.chat_template is None:
        pytest.skip("this family has no turns")
    images = pictures(2, batch=1)
    inputs = conversation(vlm, images[0], ASKED[1], " bowl")
    prompts = [vlm.prompt(ASKED[1:2], SIZES, first=[first]) for first in (True, False)]
    begin, later = (prompt.ids[prompt.mask.bool()] for prompt in prompts)
    ids = inputs["input_ids"][0]
    assert torch.equal(ids[: len(begin)], begin) and torch.equal(ids[-len(later) :], later)
    answer = ids[len(begin) : -len(later)]
    own = vlm.model.base_model(**inputs).last_hidden_state[0, len(begin) : -len(later)]
    of_text = {k: v for k, v in inputs.items() if v.shape == (1, len(ids))}
    longer = {k: torch.cat([v, v[:, -1:].expand(-1, len(answer))], 1) for k, v in of_text.items()}
    longer["input_ids"] = torch.cat([ids, answer])[None]
    last = vlm.model.base_model(**{**inputs, **longer}).last_hidden_state[0, -len(answer) :]
    seen = torch.stack([vlm.image_tokens(each.unbind(1)) for each in (images, images.flip(-1))], 1)
    tokens = vlm.model.get_input_embeddings()(answer).expand(1, 2, -1, -1)
    near(vlm.turns(prompts, seen, tokens)[0][0], torch.stack([own, last]))


@torch.no_grad()
def test_history(vlm: VLM) -> None:
    """Turns with keys and values carried from one to the next give what all turns in one pass give; turns from before
    an episode leave no trace.
    """
    steps, size = 4, SIZES
    assert vlm.converses
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(3, steps, 5, vlm.hidden_size, generator=generator)
    seen = torch.stack([vlm.image_tokens(pictures(2).roll(step, -1).unbind(1)) for step in range(steps)], 1)
    prompts = [vlm.prompt(ASKED, size, first=[step == 0] * 3) for step in range(steps)]
    assert len(set(prompts[1].mask.sum(1).tolist())) == 3
    whole, past = vlm.turns(prompts, seen, tokens)[0], None
    for step in range(steps):
        now = slice(step, step + 1)
        carried, past = vlm.turns(prompts[now], seen[:, now], tokens[:, now], past, keep=True)
        near(carried, whole[:, now])
    assert (whole[:, -1] - vlm.turns(prompts[:1], seen[:, -1:], tokens[:, -1:])[0][:, 0]).abs().max() > 1e-2
    late = torch.tensor([0, 1, 3])  # the turns that these rows lack
    prompts = [vlm.prompt(ASKED, size, first=(late == step).tolist()).without(late > step) for step in range(steps)]
    together = vlm.turns(prompts, seen, tokens)[0]
    near(together[0], whole[0])
    for row in (1, 2):
        alone = [vlm.prompt(ASKED, size, first=[k == 0] * 3) for k in range(steps - late[row])]
        near(vlm.turns(alone, seen[:, late[row] :], tokens[:, late[row] :])[0][row], together[row, late[row] :])


def test_history_step(folder: Path, small_dataset: Path, small_expert: Path) -> None:
    """A student with a history learns in both stages, and plans from what it remembers as from all of it anew."""
    student = make_student(small_dataset, small_expert, folder, n_obs_steps=3)
    batch = make_history(small_dataset, student.config, (0, 9, 30))
    assert not batch["observation.state_is_pad"][1].any() and batch["observation.state_is_pad"][0, :2].all()
    for stage in TRAINED:
        student.set_stage(stage)
        losses = steps(student, batch)
        assert losses[-1] < losses[0]
    seen = {key: value[1:2] for key, value in batch.items()}
    student.reset()
    for step in range(3):
        plan = student.predict_action_chunk({k: v[:, step] if k.startswith("obs") else v for k, v in seen.items()})
    near(plan, student.predict_action_chunk(seen))


def test_align_step(student: ApprenticePolicy, batch: dict[str, Any]) -> None:
    before = weights(student)
    losses = steps(student, batch)
    assert losses[-1] < losses[0]
    names = moved(before, weights(student))
    assert {name.split(".")[0] for name in names} == {"action_tokens", "state_encoder", "mapper"}


def test_finetune_step(student: ApprenticePolicy, batch: dict[str, Any]) -> None:
    split = student.latents(batch)
    with torch.no_grad():
        student.set_stage("finetune")
        near(student.latents(batch), split)
    before = weights(student)
    losses = steps(student, batch)
    assert losses[-1] < losses[0]
    parts = {id(p): part for part, parameters in student.parts().items() for p in parameters}
    names = moved(before, weights(student))
    assert {parts[id(p)] for name, p in student.named_parameters() if name in names} == set(TRAINED["finetune"])


def test_lora(student: ApprenticePolicy, batch: dict[str, Any], tmp_path: Path) -> None:
    """LeRobot's own PEFT: adapters in the language model, ours trains whole; adapters and base act as before."""
    from peft import PeftConfig, PeftModel

    student.save_pretrained(tmp_path / "base")
    policy = ApprenticePolicy.from_pretrained(tmp_path / "base")
    policy.config.pretrained_path = tmp_path / "base"
    policy.set_stage("finetune")
    adapted = policy.wrap_with_peft(peft_cli_overrides={"method_type": "LORA", "r": 2})
    before = weights(adapted)
    losses = steps(adapted, batch)
    assert losses[-1] < losses[0]
    names = moved(before, weights(adapted))
    language = {name for name in names if ".vlm." in name}
    assert language and all(".lora_" in name for name in language)
    assert {name.split(".")[2] for name in names} == {"vlm", "action_tokens", "state_encoder", "mapper", "decoder"}
    adapted.save_pretrained(str(tmp_path / "adapter"))
    base = ApprenticePolicy.from_pretrained(tmp_path / "base")
    again = PeftModel.from_pretrained(
        base, str(tmp_path / "adapter"), config=PeftConfig.from_pretrained(str(tmp_path / "adapter"))
    )
    for each in (adapted, again):
        each.get_base_model().set_stage("finetune")
    assert torch.equal(again.predict_action_chunk(batch), adapted.predict_action_chunk(batch))


def test_checkpoint(student: ApprenticePolicy, batch: dict[str, Any], tmp_path: Path) -> None:
    """A fine-tuned student, loaded without VLM and expert, acts and answers as it did."""
    student.set_stage("finetune")
    steps(student, batch, 1)
    student.config.vlm = student.config.expert = "gone"
    student.save_pretrained(tmp_path)
    again = ApprenticePolicy.from_pretrained(tmp_path).eval()
    assert torch.equal(again.predict_action_chunk(batch), student.predict_action_chunk(batch))
    inputs = student.vlm.inputs(pictures(2).unbind(), ASKED)
    answers = [policy.vlm.model.generate(**inputs, max_new_tokens=5, do_sample=False) for policy in (again, student)]
    assert torch.equal(*answers)


def test_the_committed_table_is_what_was_found() -> None:
    if len(table.results) < len(FAMILIES) * len(table.COLUMNS):
        pytest.skip("only a part of the suite has run")
    assert table.page() == table.PAGE.read_text(), "fix: python -m tests.vlm.table"
