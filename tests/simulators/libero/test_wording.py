"""Paraphrases of all of LIBERO's instructions."""

import re
from pathlib import Path

import pytest
from libero.libero import get_libero_path

from apprentice.simulators.libero.simulator.paraphrases import paraphrases
from apprentice.simulators.libero.simulator.suites import SUITES, tasks

VERBS = {"pick", "up", "take", "grab", "lift", "put", "place", "set", "position", "move", "push", "slide", "stack"} | {
    *("open", "pull", "get", "close", "shut", "turn", "switch")
}
GLUE = {"and", "it", "then", "both"}


def content(text: str) -> list[str]:
    """What is spoken of: every word but verbs and glue."""
    return [word for word in re.findall(r"\w+", text) if word not in VERBS | GLUE]


@pytest.mark.parametrize("suite", SUITES)
def test_every_instruction_has_others_that_speak_of_the_same_things(suite: str) -> None:
    for task in tasks(suite):
        others = paraphrases(task.instruction)
        assert len(others) >= 2 and len(set(others)) == len(others) and task.instruction not in others
        for other in others:
            missing = set(content(task.instruction)) - set(content(other))
            added = set(content(other)) - set(content(task.instruction))
            assert not missing and added <= {"open", "shut"}, other


@pytest.mark.parametrize("suite", SUITES)
def test_two_instructions_never_share_one(suite: str) -> None:
    meanings: dict[str, str] = {}
    for instruction in {task.instruction for task in tasks(suite)}:
        for text in (instruction, *paraphrases(instruction)):
            assert meanings.setdefault(text, instruction) == instruction, text


def test_the_words_of_libero_pro_are_for_tests() -> None:
    texts = [path.read_text() for path in Path(get_libero_path("bddl_files")).glob("*_lan/*.bddl")]
    tested = {" ".join(re.search(r"\(:language ([^)]*)\)", text)[1].lower().split()) for text in texts}
    ours = {text for suite in SUITES for task in tasks(suite) for text in paraphrases(task.instruction)}
    assert len(tested) >= 40 and not ours & tested


@pytest.mark.parametrize(
    ("instruction", "other"),
    [
        ("put both moka pots on the stove", "place both moka pots on the stove"),
        ("turn on the stove and put the moka pot on it", "turn the stove on, then set the moka pot on it"),
        ("pick up the milk and place it in the basket", "take the milk and put it in the basket"),
        ("close the microwave", "push the microwave shut"),
        (
            "pick up the book and place it in the back compartment of the caddy",
            "grab the book and place it in the back compartment of the caddy",
        ),
    ],
)
def test_some_are_as_one_would_say_them(instruction: str, other: str) -> None:
    assert other in paraphrases(instruction)
