"""The order of the rooms: a room imports those before it, never one behind it, and nothing imports the command line."""

import ast
from pathlib import Path

import pytest

import apprentice
from apprentice.closure import SRC, closure

PACKAGE = Path(apprentice.__file__).parent
ROOMS = ["data", "libero", "experts", "vlm", "policy", "distill", "evaluate", "serve"]
# What any room may use.
FLOOR = {"adapters", "errors", "files", "progress", "device", "intervals", "pool", "untrusted", "watch"}


def imported(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or ""}
    return {name.split(".")[1] for name in names if name.startswith("apprentice.")}


@pytest.mark.parametrize("room", [room for room in ROOMS if (PACKAGE / room).exists()])
def test_a_room_imports_only_rooms_before_it(room: str) -> None:
    allowed = FLOOR | set(ROOMS[: ROOMS.index(room) + 1])
    for file in (PACKAGE / room).rglob("*.py"):
        assert imported(file) <= allowed, file


def test_the_method_knows_no_simulator() -> None:
    """Whoever wants to understand alignment and fine-tuning reads these files and no more."""
    read = [file.relative_to(SRC / "apprentice") for file in closure(["apprentice.distill.stages"])]
    assert {file.parts[0] for file in read if len(file.parts) > 1} == {"data", "experts", "vlm", "policy", "distill"}
    assert not [file for file in read if "nano" in file.parts]
