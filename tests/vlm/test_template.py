"""A chat template writes what Transformers would write with it, in bounded time and length, and nothing is lost."""

import json
import os
import resource
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests import support
from tests.support import TASKS
from transformers.utils.chat_template_utils import render_jinja_template

from apprentice import cli
from apprentice.common.errors import UserError
from apprentice.distill.stages import StageConfig, align
from apprentice.nano.batches import Chat
from apprentice.vlm import template_worker
from apprentice.vlm.base import VLM
from apprentice.vlm.template import Writer

TURNS = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "put it: \u00fc <b> \u4e2d"}]}]
GIVEN: dict[str, Any] = {"messages": TURNS, "tools": None, "documents": None, "add_generation_prompt": True}
HONEST = {
    "lines and blanks": "{% for m in messages %}\n  {{ m.role }}\n  {% endfor %}\n{{ bos_token }}\n",
    "json": "{{ messages | tojson }}{{ messages | tojson(indent=2) }}{{ messages | tojson(sort_keys=true) }}",
    "loops": "{% for i in range(9) %}{% if i < 2 %}{% continue %}{% elif i > 5 %}{% break %}{% endif %}"
    "{{ i }}{% endfor %}",
    "generation": "a{% generation %}{{ messages[0].role }}{% endgeneration %}b",
    "macros": "{% macro f(x) %}[{{ x }}]{% endmacro %}{% set n = namespace(s=f('y')) %}{{ n.s }}{{ tools is none }}",
    "date": "{{ strftime_now('%Y-%m') }}",
    "what is missing": "{{ nothing }}{{ eos_token is defined }}{{ add_generation_prompt }}",
}
HOSTILE = {
    "loops for ever": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "writes a thousand million characters": "{{ 'a' * 1000000000 }}",
    "writes them piece by piece": "{% for i in range(99999) %}{{ 'a' * 10000 }}{% endfor %}",
    "doubles": "{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
    "pads": "{{ '%0999999999d' % 3 }}",
    "calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "branches": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(90) }}",
    "a large number": "{{ (9 ** (9 ** 9)) is odd }}",
    "looks around": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "is none": "{% if",
    "complains": "{{ raise_exception('roles must alternate') }}",
}


@pytest.fixture(scope="module")
def writer() -> Writer:
    return Writer()


@pytest.mark.parametrize("name", HONEST)
def test_it_writes_what_transformers_would(writer: Writer, name: str) -> None:
    wanted, _ = render_jinja_template([TURNS], chat_template=HONEST[name], add_generation_prompt=True, bos_token="<s>")
    assert writer.write(HONEST[name], {**GIVEN, "bos_token": "<s>"}) == wanted[0]


@pytest.mark.parametrize("name", HOSTILE)
def test_it_is_stopped(writer: Writer, name: str) -> None:
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime, time.monotonic()
    with pytest.raises(
        UserError, match=r"expected a chat template that writes at most 100,000 characters .*; fix: mend"
    ):
        writer.write(HOSTILE[name], GIVEN)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < template_worker.SECONDS + 2
    assert time.monotonic() - began < 100
    assert writer.write("fine", {}) == "fine"


def test_a_forked_process_has_a_writer_of_its_own(writer: Writer) -> None:
    assert writer.write("{{ 1 }}", {}) == "1"
    child = os.fork()
    if not child:
        os._exit(0 if writer.write("{{ 2 }}", {}) == "2" else 1)
    assert writer.write("{{ 3 }}", {}) == "3"
    assert os.waitpid(child, 0)[1] == 0


@pytest.fixture
def vlm(small_vlm: Path) -> VLM:
    return VLM.from_pretrained(str(small_vlm))


def test_a_template_that_drops_the_instruction_is_refused(vlm: VLM) -> None:
    own = vlm.processor.chat_template
    assert len(vlm.prompt(["  put it there "], ((64, 64),)))
    for dropping in (own.replace("part['text']", "''"), "{{ messages[0]['content'][-1]['text'][:5] }}", "<image>"):
        vlm.processor.chat_template = dropping
        with pytest.raises(
            UserError, match="expected a chat template that repeats the instruction 'turn on the stove'"
        ):
            vlm.prompt(["turn on the stove"], ((64, 64),))
        with pytest.raises(UserError, match="expected a chat template that repeats a question once"):
            Chat.of(vlm.processor)


def test_so_is_one_that_drops_it_late_in_a_chat(vlm: VLM) -> None:
    vlm.processor.chat_template = (
        "{% for m in messages %}{% for part in m['content'] %}{% if part['type'] == 'image' %}<image>"
        "{% elif loop.index0 < 2 and not (m['role'] == 'user' and messages | length > 1 and loop.last) %}"
        "{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
    )
    assert len(vlm.prompt(TASKS, ((64, 64),)))
    with pytest.raises(UserError, match="expected a chat template that repeats"):
        vlm.prompt(TASKS, ((64, 64),), first=[True, False])


def test_one_that_loops_for_ever_ends_a_command(
    small_vlm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "vlm"
    VLM.from_pretrained(str(small_vlm)).save_config(folder)
    (folder / "model.safetensors").symlink_to(small_vlm / "model.safetensors")
    (folder / "chat_template.jinja").write_text(HOSTILE["loops for ever"])
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    assert cli.main(["ask", str(folder), str(tmp_path / "a.png"), "what is this?"]) == 2
    assert "found one that does not end; fix: mend the model's chat template" in capsys.readouterr().err


@pytest.mark.parametrize(
    "mark", ["<image>", "<|im_start|>", "<end_of_utterance>", "<pad>", "Assistant:", "[[our tokens]]"]
)
def test_marks_in_an_instruction_are_refused(vlm: VLM, mark: str) -> None:
    """They would be read as an image, or as the end of the turn."""
    for first in (None, [True], [False]):
        with pytest.raises(UserError, match="expected an instruction without the VLM's own marks, found") as found:
            vlm.prompt([f"put {mark} there"], ((64, 64),), first=first)
        assert json.dumps(mark)[1:-1] in str(found.value)


def test_so_are_those_of_a_dataset_before_anything_is_computed(
    small_vlm: Path, small_expert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(support, "TASKS", ("put the bowl on the stove", "turn on the <image>"))
    dataset = support.make_dataset(tmp_path / "data", episodes=2)
    given = {"vlm": str(small_vlm), "expert": str(small_expert), "dataset": str(dataset)}
    with pytest.raises(UserError, match="own marks, found '<image>' in 'turn on the <image>'"):
        align(StageConfig(**given, out=str(tmp_path / "run"), steps=1))
    assert not (tmp_path / "run" / "caches.json").exists()


def test_they_are_where_a_family_has_no_template(vlm: VLM) -> None:
    vlm.processor.chat_template = None
    with pytest.raises(UserError, match="without the VLM's own marks, found '<image>'"):
        vlm.inputs([[torch.zeros(3, 64, 64, dtype=torch.uint8)]], ["<image> and <image>"])
    assert len(vlm.prompt(["a < b > c", "[x]", "1 | 2", "\u4e2d"], ((64, 64),)))
