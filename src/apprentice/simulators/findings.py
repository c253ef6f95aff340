"""What a check found: how a doctor of a dataset, and the check of a simulator, print it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from apprentice.common.progress import console
from apprentice.simulators.base import DIFFERS, PASSED, Check

COLOURS = {PASSED: "green", DIFFERS: "yellow"}  # all else is red


@dataclass(frozen=True)
class Finding:
    """What a doctor finds of a dataset."""

    name: str
    passed: bool
    expected: str
    found: str
    fix: str

    @property
    def verdict(self) -> str:
        return PASSED if self.passed else "FAILED"


def show(title: Path | str, checks: Sequence[Check] | Sequence[Finding]) -> None:
    """Print a table of checks, and how to mend what did not pass."""
    table = Table("", "check", "expected", "found", title=escape(str(title)))
    for check in checks:
        colour = COLOURS.get(check.verdict, "red")
        found = escape(check.found) if check.verdict == PASSED else f"[{colour}]{escape(check.found)}[/]"
        table.add_row(f"[{colour}]{check.verdict}[/]", check.name, escape(check.expected), found)
    console.print(table)
    for check in checks:
        if check.verdict != PASSED:
            console.print(f"{check.name}: {check.fix}", highlight=False, soft_wrap=True, markup=False)
