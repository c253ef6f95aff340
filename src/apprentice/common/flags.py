"""Command-line flags from a signature: one for each parameter, described by the docstring, checked when it is read.

Signatures are read from the source and not by importing it: neither help nor a wrong value waits for torch.
"""

import argparse
import ast
import importlib.util
import math
import re
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from apprentice.common.errors import UserError, meant

REQUIRED = object()
ABOVE_0, BELOW_1 = math.nextafter(0, 1), math.nextafter(1, 0)
# The least and the largest value of numbers, by the name of their flag. Others: whole numbers from 1 on, any above 0.
LIMITS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(["seed", "train_seed", "validate", "rollouts", "variants", "tasks", "instruct"], (0, math.inf)),
    **dict.fromkeys(["cache_gb", "older_than", "noise", "language_rate_factor", "latent_weight"], (0, math.inf)),
    **dict.fromkeys(
        ["weight_decay", "checkpoint_every", "plan.frames", "patience", "gripper_state_dims"], (0, math.inf)
    ),
    **dict.fromkeys(["vision_share", "warmup"], (0, 1)),
    "collect.seed": (0, 999),  # seeds of evaluation on fresh layouts lie beyond
    "correct.seed": (0, 999),
    "collect.episodes": (1, 1000),
    "correct.episodes": (1, 1000),
    "ema": (0, BELOW_1),
    "ensembling": (-math.inf, math.inf),
    "port": (0, 65535),
}


@dataclass(frozen=True)
class Parameter:
    """A parameter of a function or a field of a dataclass; `default` is REQUIRED if it has none."""

    name: str
    kind: Any
    default: Any
    description: str


class Parser(argparse.ArgumentParser):
    """One that raises UserError, with what was meant, in place of ending the process.

    Attributes:
        named: whether it is a command's own, whose unknown flags are named before any that is missing.
    """

    named = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        for word in (args or []) if self.named else []:
            name = word.partition("=")[0]
            if word == "--":
                break
            if name.startswith("--") and " " not in name and not any(o.startswith(name) for o in self.flags):
                advice = meant(name, self.flags, f"see {self.prog} --help")
                raise UserError(f"{self.command}: expected a flag that there is, found {name}; fix: {advice}")
        return super().parse_known_args(args, namespace)

    @property
    def command(self) -> str:
        return self.prog.partition(" ")[2] or self.prog

    @property
    def flags(self) -> list[str]:
        return [o for o in self._option_string_actions if o.startswith("--")]

    def error(self, message: str) -> NoReturn:
        message = re.sub(r"^argument (?:\S+/)?(\S+): ", r"\1: ", message)
        if missing := re.match(r"the following arguments are required: (.*)", message):
            message = f"expected {missing[1]}, found none"
        fix = "" if "; fix: " in message else f"; fix: see {self.prog} --help"
        raise UserError(f"{self.command}: {message}{fix}")


def add_flags(parser: argparse.ArgumentParser, place: str, positional: Sequence[str] = ()) -> None:
    """Add a flag for each parameter of what is at `place`; `parse_args` then yields its keyword arguments.

    A parameter without default is required; a bool makes --x and --no-x; a list takes several words; a dict
    takes words KEY=VALUE. The parameters named in `positional` are given without a flag, a list as one or more words,
    or as any number if it has a default.
    """
    for parameter in parameters(place):
        limits = LIMITS.get(f"{parser.prog.split()[-1]}.{parameter.name}", LIMITS.get(parameter.name))
        options = _options(parameter.kind, limits)
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

    A dataclass's own fields come first, then those of the dataclasses that it extends. A field that is declared again
    without a description keeps the one that it had.

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
    own = [Parameter(n, _kind(kind), _value(default, constants), texts.get(n, "")) for n, kind, default in flat]
    if not (isinstance(node, ast.ClassDef) and node.bases):
        return own
    extended = [each for base in node.bases for each in parameters(_home(ast.unparse(base), module, tree))]
    known = {each.name: each.description for each in extended}
    own = [replace(each, description=each.description or known.get(each.name, "")) for each in own]
    merged = {each.name: each for each in [*own, *extended, *own]}
    return sorted(merged.values(), key=lambda each: each.default is not REQUIRED)


def _home(name: str, module: str, tree: ast.Module) -> str:
    """Where a name is declared that a module uses, as "module:name"."""
    imports = (n for n in tree.body if isinstance(n, ast.ImportFrom))
    return f"{next((n.module for n in imports if name in (a.name for a in n.names)), module)}:{name}"


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


def _options(kind: Any, limits: tuple[float, float] | None = None) -> dict[str, Any]:
    """The keyword arguments of `add_argument` for a type, whose numbers lie within `limits`."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return _options(inner[0], limits)  # of `Path | str` either will do, and None is for a flag that is not given
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if origin is typing.Literal:
        return {"type": _one_of(inner), "metavar": "{" + ",".join(map(str, inner)) + "}"}
    if origin is dict:
        return {"nargs": "+", "action": _Pairs, "type": _pair(inner[0], inner[1], limits), "metavar": "KEY=VALUE"}
    if origin in (list, tuple, Sequence):
        return {"nargs": "*", "type": _checked(inner[0], limits), "metavar": inner[0].__name__.upper()}
    return {"type": _checked(kind, limits), "metavar": kind.__name__.upper()}


def _checked(kind: type, limits: tuple[float, float] | None) -> Callable[[str], Any]:
    """What reads a word as a value of this type. It raises ArgumentTypeError."""
    if kind not in (int, float):
        return kind
    low, high = limits or ((1, math.inf) if kind is int else (ABOVE_0, math.inf))
    wanted = _range(kind, low, high)

    def read(text: str) -> Any:
        try:
            value = kind(text)
            if low <= value <= high and math.isfinite(value):
                return value
        except (ValueError, OverflowError):
            pass
        raise argparse.ArgumentTypeError(f"expected {wanted}, found {text}; fix: give such a number")

    return read


def _range(kind: type, low: float, high: float) -> str:
    noun = "a whole number" if kind is int else "a finite number"
    if low == ABOVE_0:
        return f"{noun} above 0"
    if low == -math.inf:
        return noun
    if high == math.inf:
        return f"{noun} from {low:g} on"
    return f"{noun} from {low:g} to {'below 1' if high == BELOW_1 else f'{high:g}'}"


def _one_of(choices: Sequence[str]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in choices:
            listed = ", ".join(choices)
            raise argparse.ArgumentTypeError(f"expected one of {listed}, found {text}; fix: {meant(text, choices)}")
        return text

    return read


def _pair(key: type, value: type, limits: tuple[float, float] | None = None) -> Callable[[str], tuple[Any, Any]]:
    def pair(text: str) -> tuple[Any, Any]:
        left, equals, right = text.partition("=")
        if not (left and equals and right):
            raise argparse.ArgumentTypeError(f"expected KEY=VALUE, found {text}; fix: write both, and = between them")
        return _checked(key, limits)(left), _checked(value, limits)(right)

    return pair


class _Pairs(argparse.Action):
    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        known = dict(getattr(namespace, self.dest) or {})
        for key, value in values:
            if key in known:
                parser.error(f"{option}: expected each name once, found {key} twice; fix: another name for one of both")
            known[key] = value
        setattr(namespace, self.dest, known)
