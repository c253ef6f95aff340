"""Which of our files a command runs: the modules that it imports, those that they import, and the data beside them."""

import ast
from collections.abc import Iterable
from functools import cache
from pathlib import Path

SRC = Path(__file__).parents[1]
PACKAGE = "apprentice"
LEROBOT = "lerobot_policy_apprentice"
# what LeRobot imports by itself: our plugin, and the models beside the configurations that the plugin registers
PLUGIN = [
    LEROBOT,
    "apprentice.policy.modeling_apprentice",
    "apprentice.experts.seer.modeling_seer",
    "apprentice.experts.seer_full.modeling_seer_full",
]
REGISTERS = "lerobot.utils.import_utils.register_third_party_plugins"
SIMULATORS = "apprentice.simulators.base"  # imports simulators by the names of their modules


def closure(modules: Iterable[str], front: Iterable[str] = (), simulators: Iterable[str] = ()) -> list[Path]:
    """The source files that `modules` lead to, sorted, with all data files of the packages that hold them.

    Imports are followed wherever they stand, also in functions; those for type checkers alone are not. `front`:
    modules of which only the imports at their top are followed, for what they import later depends on the command.
    `simulators`: modules that whoever imports the interface of simulators leads to.
    """
    found: set[Path] = set()
    waiting = [(name, True) for name in modules] + [(name, False) for name in front]
    seen: set[str] = set()
    while waiting:
        name, deep = waiting.pop()
        file = _file(name)
        if name in seen or file is None:
            continue
        seen.add(name)
        found.add(file)
        found |= {path for path in file.parent.iterdir() if path.is_file() and path.suffix not in (".py", ".pyc")}
        parent = name.rpartition(".")[0]
        imported = _imported(file.read_text(), deep)
        waiting += [(parent, True)] * bool(parent) + [(each, deep) for each in imported]
        if REGISTERS in imported:
            waiting += [(each, True) for each in PLUGIN]
        if SIMULATORS in imported and deep:
            waiting += [(each, True) for each in simulators]
    return sorted(found)


@cache
def _file(name: str) -> Path | None:
    """The file of a module of ours, if it is one."""
    if name.partition(".")[0] not in (PACKAGE, LEROBOT):
        return None
    path = SRC.joinpath(*name.split("."))
    return next((each for each in (path / "__init__.py", path.with_suffix(".py")) if each.is_file()), None)


@cache
def _imported(code: str, deep: bool) -> list[str]:
    names: list[str] = []
    waiting: list[ast.AST] = [ast.parse(code)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            waiting += node.orelse
        elif deep or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            waiting += ast.iter_child_nodes(node)
    return names
