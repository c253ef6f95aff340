"""What a command found, as data: `--json` prints it, and whether something is wrong decides the exit code."""

import json
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Result:
    """What a command returns that found something out.

    Attributes:
        content: what it found: dataclasses, dicts, lists, numbers and texts.
        good: False if something is wrong; the command's exit code is then 1.
    """

    content: Any
    good: bool = True


def as_json(value: Any) -> str:
    """A value as JSON; numbers that are not finite become null."""
    return json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False)


def plain(value: Any) -> Any:
    """A value in JSON's own types. Raises TypeError for one that has no such form."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(each) for each in value]
    if hasattr(value, "tolist"):  # NumPy's and PyTorch's
        return plain(value.tolist())
    if isinstance(value, float):
        return value if value - value == 0 else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"no JSON for {type(value).__name__}")
