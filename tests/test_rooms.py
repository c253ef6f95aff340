"""The order of the rooms: a room imports those before it, never one behind it, and nothing imports the command line."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import apprentice
from apprentice.closure import SRC, closure

PACKAGE = Path(apprentice.__file__).parent
ROOMS = ["common", "data", "experts", "vlm", "policy", "distill", "simulators", "nano", "serve", "evaluate"]
INTERFACE = {"apprentice.simulators.base", "apprentice.simulators.findings"} | {
    f"apprentice.simulators.{name}" for name in ("collection.config", "collection.episode_jobs", "collection.dataset")
}
ALONE = {"offline"}  # imports `common` alone, and no room imports it


def imported(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or ""}
    return {name.split(".")[1] for name in names if name.startswith("apprentice.")}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_rooms_before_it(room: str) -> None:
    allowed = set(ROOMS[: ROOMS.index(room) + 1])
    for file in (PACKAGE / room).rglob("*.py"):
        assert imported(file) <= allowed, file


def test_every_folder_is_a_room() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert folders == {*ROOMS, *ALONE}


def test_no_file_is_long_and_no_folder_crowded() -> None:
    assert [f for f in PACKAGE.rglob("*.py") if len(f.read_text().splitlines()) > 400] == []
    crowded = {f.parent for f in PACKAGE.rglob("*.py") if len(list(f.parent.glob("*.py"))) > 16}
    assert crowded == set()


def test_the_method_knows_no_simulator() -> None:
    """Whoever wants to understand alignment and fine-tuning reads these files and no more."""
    read = [file.relative_to(SRC / "apprentice") for file in closure(["apprentice.distill.stages"])]
    assert {file.parts[0] for file in read if len(file.parts) > 1} == set(ROOMS[: ROOMS.index("distill") + 1])
    code = [file for file in closure(["apprentice.distill.stages"]) if file.suffix == ".py"]
    lines = sum(len(file.read_text().splitlines()) for file in code)
    stated = re.search(r"imports: (\d+) files, ([\d,]+) lines, no simulator", (SRC.parent / "README.md").read_text())
    assert stated
    assert int(stated[1]) == pytest.approx(len(code), rel=0.05)
    assert int(stated[2].replace(",", "")) == pytest.approx(lines, rel=0.05)


def test_evaluation_serving_and_the_command_line_know_no_simulator() -> None:
    """A second simulator needs a folder and a line: only examples of suites may name one."""
    files = [*(PACKAGE / "evaluate").rglob("*"), *(PACKAGE / "serve").rglob("*"), *PACKAGE.glob("*.py")]
    sources = [file for file in files if file.suffix in (".py", ".jinja", ".css", ".js")]
    assert len(sources) > 40
    for file in sources:
        left = re.sub(r"such as (results/)?libero_\w+", "", file.read_text())
        assert "libero" not in left.lower(), file
        inside = {name for name in _names(file) if name.startswith("apprentice.simulators")}
        assert inside <= INTERFACE, file


def test_what_is_general_in_simulators_imports_no_simulator() -> None:
    for file in [*(PACKAGE / "simulators").glob("*.py"), *(PACKAGE / "simulators" / "collection").glob("*.py")]:
        assert {name for name in _names(file) if name.startswith("apprentice.simulators")} <= INTERFACE, file


def test_names_of_suites_are_known_at_once() -> None:
    """A wrong flag must not wait for a simulator."""
    code = "import sys; from apprentice.simulators.base import suites; suites(); print(*sys.modules)"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert (
        not loaded & {"mujoco", "robosuite", "numpy", "torch", "lerobot"} and "apprentice.simulators.libero" in loaded
    )


def _names(file: Path) -> set[str]:
    """The modules that a file imports, wherever its imports stand."""
    if file.suffix != ".py":
        return set()
    nodes = list(ast.walk(ast.parse(file.read_text())))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return plain | {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
