"""One checkpoint a task, evaluated as one policy: experts that read no instructions, chosen by the instruction."""

from collections.abc import Iterable
from pathlib import Path

from apprentice.common.errors import UserError
from apprentice.common.files import fingerprint
from apprentice.data.contract import Contract
from apprentice.experts import checkpoints, read_tasks
from apprentice.serve.checkpoint import inspect_checkpoint
from apprentice.serve.policy_card import Execution, PolicyCard


def inspect_by_task(
    name: str, file: Path, environment: Contract, execution: Execution, instructions: Iterable[str]
) -> PolicyCard:
    """Look at each task's checkpoint. Raises UserError if one does not fit, or one of the instructions has none."""
    for instruction in instructions:
        folder_of(name, str(file), instruction)
    cards = {folder: inspect_checkpoint(name, folder, environment, execution) for folder in checkpoints(file)}
    kinds = {(card.type, card.n_action_steps) for card in cards.values()}
    if len(kinds) > 1:
        raise UserError(
            f"policy {name}: expected checkpoints of one type that execute equally many actions of a chunk, found "
            f"{', '.join(f'{kind} with {steps}' for kind, steps in sorted(kinds))}; fix: --n-action-steps"
        )
    kind, steps = kinds.pop()
    parts = [f"{task}: {cards[folder].checkpoint}" for task, folder in sorted(read_tasks(file).items())]
    return PolicyCard(f"{kind}, one a task", fingerprint(*parts), steps)


def folder_of(name: str, place: str, instruction: str) -> Path:
    """The checkpoint that acts in an episode with this instruction. Raises UserError if there is none."""
    if not Path(place).is_file():
        return Path(place)
    known = read_tasks(place)
    if instruction not in known:
        raise UserError(
            f"policy {name}: expected one of its instructions, {', '.join(map(repr, known))}, found {instruction!r}; "
            "fix: ask for what its checkpoints were trained for"
        )
    return known[instruction]
