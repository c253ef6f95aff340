"""Command-line flags from a signature: one for each parameter, described by the docstring.

Signatures are read from the source and not by importing it: help must not wait for torch.
"""

import argparse
import ast
import importlib.util
import re
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REQUIRED = object()


@dataclass(frozen=True)
class Parameter:
    """A parameter of a function or a field of a dataclass; `default` is REQUIRED if it has none."""

    name: str
    kind: Any
    default: Any
    description: str


def add_flags(parser: argparse.ArgumentParser, place: str, positional: Sequence[str] = ()) -> None:
    """Add a flag for each parameter of what is at `place`; `parse_args` then yields its keyword arguments.

    A parameter without default is required; a bool makes --x and --no-x; a list takes several words; a dict
    takes words KEY=VALUE. The parameters named in `positional` are given without a flag, a list as one or more words,
    or as any number if it has a default.
    """
    for parameter in parameters(place):
        options = _options(parameter.kind)
        text = parameter.description.replace("%", "%%")
        if parameter.name in positional:
            words = {"nargs": "+" if parameter.default is REQUIRED else "*"} if "nargs" in options else {}
            parser.add_argument(parameter.name, help=text, **{**options, **words, "metavar": parameter.name.upper()})
            continue
        if parameter.default is REQUIRED:
            options["required"] = True
        else:
            options["default"] = parameter.default
            if parameter.default not in (None, "", (), {}):
                shown = parameter.default if isinstance(parameter.default, list | tuple) else [parameter.default]
                text += f" (default: {' '.join(map(str, shown))})"
        parser.add_argument(f"--{parameter.name.replace('_', '-')}", help=text, **options)


def parameters(place: str) -> list[Parameter]:
    """The parameters of a function, or the fields of a dataclass, at "module:name".

    Nested dataclasses are left out. Defaults must be literals or constants of the same module, descriptions
    stand in the docstring's `Args:` or `Attributes:`. Raises KeyError, NameError or ValueError otherwise.
    """
    module, _, name = place.partition(":")
    top, *below = module.split(".")
    spec = importlib.util.find_spec(top)  # of the whole name it would import the packages in between
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"no module {module}")
    source = Path(spec.origin)
    tree = ast.parse((source.parent.joinpath(*below).with_suffix(".py") if below else source).read_text())
    constants = {
        n.targets[0].id: n.value for n in tree.body if isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Name)
    }
    node = next(n for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name == name)
    found: list[tuple[str, ast.expr | None, ast.expr | None]]
    if isinstance(node, ast.ClassDef):
        fields = [n for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
        found = [(ast.unparse(n.target), n.annotation, n.value) for n in fields]
    else:
        plain, named = node.args.args, node.args.kwonlyargs
        defaults = [None] * (len(plain) - len(node.args.defaults)) + node.args.defaults + node.args.kw_defaults
        found = [(a.arg, a.annotation, default) for a, default in zip(plain + named, defaults, strict=True)]
    texts = described(ast.get_docstring(node) or "")
    flat = [(name, annotation, default) for name, annotation, default in found if not _is_nested(default)]
    return [Parameter(n, _kind(kind), _value(default, constants), texts.get(n, "")) for n, kind, default in flat]


def described(docstring: str) -> dict[str, str]:
    """The entries of a docstring's `Args:` or `Attributes:`, by name."""
    section = re.search(r"^(?:Args|Attributes):\n((?: +.*\n?|\n)+)", docstring, re.MULTILINE)
    entries: dict[str, str] = {}
    names: list[str] = []
    for line in section[1].splitlines() if section else []:
        if entry := re.match(r"    (\w+(?:, \w+)*): +(.*)", line):
            names = entry[1].split(", ")
            entries |= dict.fromkeys(names, entry[2])
        elif line.strip():
            entries |= {name: f"{entries[name]} {line.strip()}" for name in names}
    return {name: text.rstrip(".") for name, text in entries.items()}


def _kind(annotation: ast.expr | None) -> Any:
    if annotation is None:
        raise ValueError("a parameter without annotation makes no flag")
    return eval(ast.unparse(annotation), {"Path": Path, "Literal": typing.Literal, "Sequence": Sequence})


def _is_nested(default: ast.expr | None) -> bool:
    """Whether a field holds a dataclass of its own, made by a `field(...)`: it makes no flag."""
    return isinstance(default, ast.Call)


def _value(default: ast.expr | None, constants: dict[str, ast.expr]) -> Any:
    if default is None:
        return REQUIRED
    if isinstance(default, ast.Name):
        default = constants[default.id]
    return ast.literal_eval(default)


def _options(kind: Any) -> dict[str, Any]:
    """The keyword arguments of `add_argument` for a type."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (
        types.UnionType,
        typing.Union,
    ):  # of `Path | str` either will do, and None is for a flag that is not given
        return _options(inner[0])
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if origin is typing.Literal:
        return {"choices": inner}
    if origin is dict:
        return {"nargs": "*", "action": _Pairs, "type": _pair(*inner), "metavar": "KEY=VALUE"}
    if origin in (list, tuple, Sequence):
        return {"nargs": "*", "type": inner[0], "metavar": inner[0].__name__.upper()}
    return {"type": kind, "metavar": kind.__name__.upper()}


def _pair(key: Callable[[str], Any], value: Callable[[str], Any]) -> Callable[[str], tuple[Any, Any]]:
    def pair(text: str) -> tuple[Any, Any]:
        left, equals, right = text.partition("=")
        if not equals:
            raise ValueError(text)
        return key(left), value(right)

    return pair


class _Pairs(argparse.Action):
    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        setattr(namespace, self.dest, {**(getattr(namespace, self.dest) or {}), **dict(values)})
