"""Does a policy listen, and does it look? The same initial states with one thing changed: words, a camera, a place."""

from collections.abc import Sequence
from functools import cache

import numpy as np

from apprentice.common.errors import UserError
from apprentice.simulators.base import Simulator, simulator_of

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
BLACK = {BLACK_AGENT: 0, BLACK_WRIST: 1}  # which of the contract's cameras


@cache
def applies(suite: str, task: int, probe: str) -> bool:
    """Can a task be probed so? One whose words the grammar does not know cannot be said otherwise, where nothing is
    carried nothing is moved, and what has one camera has none at the wrist. Raises UserError for an unknown probe."""
    if probe not in PROBES:
        raise UserError(f"expected probes among {', '.join(PROBES)}, found {probe!r}; fix: name some of them")
    simulator = simulator_of(suite)
    if probe == PARAPHRASE:
        return bool(simulator.paraphrases(simulator.tasks(suite)[task].instruction))
    if probe in BLACK:
        return BLACK[probe] < len(simulator.contract(suite, 1, "fast").cameras or ())
    return probe != MOVED or simulator.can_move(suite, task)


def said(probe: str, instruction: str, seed: int, simulator: Simulator) -> str:
    """The words that the policy gets instead of an instruction of this simulator."""
    if probe == PARAPHRASE:
        return str(np.random.default_rng([seed, 5]).choice(simulator.paraphrases(instruction)))
    return "" if probe == EMPTY else instruction


def seen(probe: str, observation: dict[str, np.ndarray], cameras: Sequence[str]) -> dict[str, np.ndarray]:
    """The observation that the policy gets instead."""
    if probe not in BLACK:
        return observation
    key = cameras[BLACK[probe]]
    return {**observation, key: np.zeros_like(observation[key])}
