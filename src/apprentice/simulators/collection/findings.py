"""What a doctor says of a dataset."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from apprentice.common.progress import console
from apprentice.common.result import Result


@dataclass(frozen=True)
class Finding:
    """A line of the report."""

    name: str
    passed: bool
    expected: str
    found: str
    fix: str


def shown(dataset: Path | str, checks: Sequence[Finding]) -> Result:
    """Print a table of checks, and how to mend what failed."""
    table = Table("", "check", "expected", "found", title=str(dataset))
    for check in checks:
        mark = "[green]passed[/]" if check.passed else "[red]FAILED[/]"
        table.add_row(mark, check.name, check.expected, check.found if check.passed else f"[red]{check.found}[/]")
    console.print(table)
    for check in checks:
        if not check.passed:
            console.print(f"{check.name}: {check.fix}", highlight=False, soft_wrap=True)
    return Result(list(checks), good=all(check.passed for check in checks))
