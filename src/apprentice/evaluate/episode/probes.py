"""Does a policy listen, and does it look? The same initial states with one thing changed: words, a camera, a place."""

from collections.abc import Sequence
from functools import cache

import numpy as np

from apprentice.common.errors import UserError
from apprentice.simulators.libero.simulator.suites import goals, tasks
from apprentice.simulators.libero.simulator.wording import paraphrases

PLAIN, PARAPHRASE, EMPTY, BLACK_AGENT, BLACK_WRIST, MOVED = (
    "plain", "paraphrase", "empty", "black-agent", "black-wrist", "moved"
)  # fmt: skip
PROBES = {
    PLAIN: "nothing is changed",
    PARAPHRASE: "the instruction in other words of the same meaning, which the initial state's number chooses",
    EMPTY: "no instruction at all",
    BLACK_AGENT: "the front camera is black",
    BLACK_WRIST: "the camera at the wrist is black",
    MOVED: "what has to be carried stands 3 to 5 cm from where the initial state has it",
}
BLACK = {BLACK_AGENT: "observation.images.image", BLACK_WRIST: "observation.images.image2"}


@cache
def applies(suite: str, task: int, probe: str) -> bool:
    """Can a task be probed so? One whose words the grammar does not know cannot be said otherwise, and where nothing
    is carried nothing is moved. Raises UserError for an unknown probe."""
    if probe not in PROBES:
        raise UserError(f"expected probes among {', '.join(PROBES)}, found {probe!r}; fix: name some of them")
    if probe == PARAPHRASE:
        return bool(paraphrases(tasks(suite)[task].instruction))
    return probe != MOVED or bool(carried(goals(tasks(suite)[task].bddl)))


def said(probe: str, instruction: str, seed: int) -> str:
    """The words that the policy gets instead of an instruction."""
    if probe == PARAPHRASE:
        return str(np.random.default_rng([seed, 5]).choice(paraphrases(instruction)))
    return "" if probe == EMPTY else instruction


def seen(probe: str, observation: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The observation that the policy gets instead."""
    key = BLACK.get(probe)
    return {**observation, key: np.zeros_like(observation[key])} if key else observation


def carried(goal: Sequence[Sequence[str]]) -> list[str]:
    """The objects that have to be brought somewhere for a goal."""
    return list(dict.fromkeys(name for verb, name, *_ in goal if verb in ("on", "in")))
