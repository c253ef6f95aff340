"""Chats as text, by the chat template of a VLM's processor, in bounded time and length.

A chat template is a program that came with the model. Jinja's sandbox keeps it from files and from Python, but not from
running for ever or writing a thousand million characters. So another process writes the chat (`template_worker.py`).
"""

import atexit
import json
import os
import selectors
import subprocess
import sys
import threading
from typing import Any

from apprentice.common.errors import UserError
from apprentice.vlm import template_worker

ANSWER = "[[our tokens]]"  # what stands for them while a template writes a chat
PATIENCE = 120.0  # s until an answer, however busy the machine is
LIMITS = f"at most {template_worker.LONGEST:,} characters within {template_worker.SECONDS:.0f} s"
FIX = "fix: mend the model's chat template (chat_template.jinja, or in tokenizer_config.json), or use another VLM"


class Writer:
    """One process that writes chats, started when it is first needed; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def write(self, template: str, variables: dict[str, Any]) -> str:
        """The chat that a template makes of its variables (JSON-able). Raises UserError."""
        with self._lock:
            process = self._running()
            assert process.stdin and process.stdout
            try:
                process.stdin.write(json.dumps([template, variables]).encode() + b"\n")
                process.stdin.flush()
                line = _line(process.stdout)
            except BrokenPipeError:
                line = b""
            if not line.endswith(b"\n"):
                self._stop()
                line = json.dumps({"fault": "one that does not end"}).encode()
        answer = json.loads(line)
        if "fault" in answer:
            raise UserError(f"expected a chat template that writes {LIMITS}, found {answer['fault']}; {FIX}")
        text: str = answer["text"]
        return text

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            command = [sys.executable, "-I", template_worker.__file__]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            self._owner = os.getpid()
        return self._process

    def _stop(self) -> None:
        if self._process is not None and self._owner == os.getpid():
            self._process.kill()
            self._process.wait()
        self._process = None


def turn(processor: Any, question: str, images: int, first: bool, marks: list[str]) -> str:
    """The text of a user's turn with images before the question, the assistant's turn opened.

    Args:
        processor: of a VLM; without a chat template (PaliGemma) a turn is images and text.
        question: what the user says.
        images: how many.
        first: whether it begins the chat; else it begins with the end of the assistant's turn before it.
        marks: the VLM's own, see `marks_of`.

    Raises UserError if the question holds one of them, or the template drops it.
    """
    if mark := next((mark for mark in marks if mark in question), None):
        raise UserError(
            f"expected an instruction without the VLM's own marks, found {mark!r} in {question[:200]!r}; "
            "fix: write it in other words"
        )
    if processor.chat_template is None:
        return str(processor.image_token) * images + question
    user = {"role": "user", "content": [{"type": "image"}] * images + [{"type": "text", "text": question}]}
    ours = {"role": "assistant", "content": [{"type": "text", "text": ANSWER}]}
    text = write_chat(processor, [user] if first else [user, ours, user])
    if not first:
        if text.count(ANSWER) != 1:
            raise UserError(
                f"expected a chat template that repeats the assistant's answer once, found {text[:1000]!r}; "
                "fix: another VLM, or --n-obs-steps=1"
            )
        text = text.partition(ANSWER)[2]
    if question.strip() not in text:
        raise UserError(
            f"expected a chat template that repeats the instruction {question[:200]!r}, found the prompt "
            f"{text[:1000]!r}; {FIX}"
        )
    return text


def marks_of(processor: Any) -> list[str]:
    """What stands for an image, a turn's end and the like in a prompt. A mark of one character is a word, too."""
    tokenizer = processor.tokenizer
    added = [token for token in tokenizer.added_tokens_decoder.values() if token.special]
    others = [value for name, value in vars(processor).items() if name.endswith("_token") and value]
    marks = dict.fromkeys(map(str, [*tokenizer.all_special_tokens, *added, *others, ANSWER]))
    return [mark for mark in marks if len(mark) > 1]


def write_chat(processor: Any, turns: list[dict[str, Any]]) -> str:
    """What `processor.apply_chat_template(turns, add_generation_prompt=True)` gives. Raises UserError."""
    template = processor.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if not isinstance(template, str):
        raise UserError(f"expected one chat template, found several and none called default; {FIX}")
    known = {name: str(token) for name, token in processor.tokenizer.special_tokens_map.items()}
    given = {"messages": turns, "tools": None, "documents": None, "add_generation_prompt": True}
    return WRITER.write(template, {**known, **given})


def _line(stream: Any) -> bytes:
    """What is written until the end of the line, of the stream, or of our patience."""
    line = b""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while not line.endswith(b"\n") and selector.select(PATIENCE):
            piece = os.read(stream.fileno(), 1 << 16)
            if not piece:
                break
            line += piece
    return line


WRITER = Writer()
atexit.register(lambda: WRITER._stop())
