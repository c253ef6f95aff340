"""What a check found: how a doctor of a dataset, and the check of a simulator, print it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from apprentice.common.errors import UserError
from apprentice.common.progress import console
from apprentice.common.result import Result
from apprentice.data.contract import Contract
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


def told(dataset: Path | str, findings: Sequence[Finding]) -> Result:
    """Print what a doctor found of a dataset, and give it as the command's result."""
    show(dataset, findings)
    return Result(findings, good=all(finding.passed for finding in findings))


def agrees(name: str, kept: Contract, ours: Contract, expected: str) -> Finding:
    """Does what a dataset keeps of its contract fit the installed simulator's, `ours`?"""
    try:
        kept.check(ours, "the dataset", "the simulator")
    except UserError as error:
        return Finding(name, False, expected, str(error).split("\n", 1)[1].strip(), "see above")
    return Finding(name, True, expected, "as expected" if kept != Contract() else "not recorded", "")
