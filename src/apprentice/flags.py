"""Command-line flags from a signature: one for each parameter, described by the docstring's `Args:` or
`Attributes:`.
"""

import argparse
import inspect
import re
import types
import typing
from collections.abc import Callable
from typing import Any


def add_flags(parser: argparse.ArgumentParser, target: Callable[..., Any]) -> None:
    """Add a flag for each parameter of a function or a dataclass; `parse_args` then yields its keyword
    arguments.

    A parameter without default is required; a bool makes --x and --no-x; a tuple or list takes several words;
    a dict or a list of pairs takes words KEY=VALUE. Raises TypeError for an annotation outside these,
    KeyError for a parameter without description.
    """
    descriptions = described(target)
    for name, parameter in inspect.signature(target, eval_str=True).parameters.items():
        options: dict[str, Any] = _options(parameter.annotation)
        text = descriptions[name].replace("%", "%%")
        if parameter.default is parameter.empty:
            options["required"] = True
        else:
            options["default"] = parameter.default
            if parameter.default not in (None, "", (), {}):
                text += f" (default: {_shown(parameter.default)})"
        parser.add_argument(f"--{name.replace('_', '-')}", help=text, **options)


def described(target: Callable[..., Any]) -> dict[str, str]:
    """Parameter descriptions from the `Args:` or `Attributes:` section of a docstring."""
    section = re.search(r"^(?:Args|Attributes):\n((?:[ ]+.*\n?|\n)+)", inspect.getdoc(target) or "", re.MULTILINE)
    entries: dict[str, str] = {}
    names: list[str] = []
    for line in section[1].splitlines() if section else []:
        if entry := re.match(r"    (\w+(?:, \w+)*): +(.*)", line):
            names = entry[1].split(", ")
            entries |= dict.fromkeys(names, entry[2])
        elif line.strip():
            entries |= {name: f"{entries[name]} {line.strip()}" for name in names}
    return {name: text.rstrip(".") for name, text in entries.items()}


def _options(annotation: Any) -> dict[str, Any]:
    """The keyword arguments of `add_argument` for a type."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (types.UnionType, typing.Union):
        kinds = [kind for kind in arguments if kind is not types.NoneType]
        return _options(kinds[0])  # of `Path | str` either will do
    if annotation is bool:
        return {"action": argparse.BooleanOptionalAction}
    if origin is typing.Literal:
        return {"choices": arguments}
    if origin is dict:
        return {"nargs": "*", "action": _Pairs, "type": _pair(*arguments), "metavar": "KEY=VALUE"}
    if origin in (list, tuple):
        if typing.get_origin(arguments[0]) is tuple:
            return {"nargs": "*", "type": _pair(*typing.get_args(arguments[0])), "metavar": "KEY=VALUE"}
        return {"nargs": "*", "type": arguments[0], "metavar": arguments[0].__name__.upper()}
    if isinstance(annotation, type):
        return {"type": annotation, "metavar": annotation.__name__.upper()}
    raise TypeError(f"no flag for the type {annotation}")


def _pair(key: Callable[[str], Any], value: Callable[[str], Any]) -> Callable[[str], tuple[Any, Any]]:
    def pair(text: str) -> tuple[Any, Any]:
        left, equals, right = text.partition("=")
        if not equals:
            raise ValueError(text)
        return key(left), value(right)

    return pair


class _Pairs(argparse.Action):
    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        setattr(namespace, self.dest, dict(values))


def _shown(default: Any) -> str:
    return " ".join(map(str, default)) if isinstance(default, (list, tuple)) else str(default)
