"""Is this the simulator that results are compared with? Asked at the start of `apprentice eval`, answered in seconds.

The simulator examines itself (`Simulator.examine`). What passes is remembered, per machine, for the same packages,
environment and references.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from rich.markup import escape

from apprentice.common.errors import FileError, UserError
from apprentice.common.files import cache_folder, fingerprint, read_json, write_json
from apprentice.common.progress import console
from apprentice.common.result import Result
from apprentice.evaluate.protocol import Protocol
from apprentice.evaluate.selfcheck.faults import check_statistics, doubts
from apprentice.experts import checkpoints
from apprentice.serve.client import is_address
from apprentice.simulators.base import DIFFERS, INVALID, Check, simulator_of, simulators
from apprentice.simulators.findings import show


def selfcheck(suites: list[str] | None = None, render: Literal["fast", "exact"] = "fast") -> Result:
    """Check the simulator against its references, print a table, and find whether results made with it are valid.

    Args:
        suites: names of suites (default: all with references).
        render: renderer, as in `apprentice eval`.

    Raises UserError if there is no simulator, or one whose physics is known to differ.
    """
    found: dict[str, Sequence[Check]] = {}
    for suite in suites or [suite for each in simulators() for suite in each.checked]:
        checks = found[suite] = simulator_of(suite).examine(suite, render)
        show(f"{suite}, {render}", checks)
    return Result(found, good=all(check.verdict != INVALID for checks in found.values() for check in checks))


def before_hours(protocol: Protocol, policies: dict[str, str]) -> None:
    """At the start of an evaluation: warn of what differs, in the simulator and in policies, by name.

    Raises UserError if results would be invalid.
    """
    known = simulator_of(protocol.suite)
    environment = known.contract(protocol.suite, protocol.image_size, protocol.render)
    usual = known.usual(protocol.suite)
    for name, place in policies.items():
        for folder in () if is_address(place) else checkpoints(place):
            check_statistics(name, folder)
            for doubt in doubts(folder, environment, usual):
                _warn(f"policy {name}: {doubt}")
    require(protocol.suite, protocol.render)


def require(suite: str, render: str) -> None:
    """Check the simulator unless this has been done; warn of what differs. Raises UserError if results were invalid."""
    simulator = simulator_of(suite)
    known = cache_folder() / "selfcheck" / f"{fingerprint(simulator.setting(suite, render), Path(__file__))}.json"
    checks: list[Check] = []
    with suppress(OSError, FileError):  # a damaged file is written again
        checks = read_json(known, list[Check])
    done = bool(checks)
    checks = checks or list(simulator.examine(suite, render))
    wrong = [str(check) for check in checks if check.verdict == INVALID]
    if wrong:
        raise UserError("\n  ".join(["the simulator is not the one that its references were made with:", *wrong]))
    if not done:
        write_json(known, [asdict(check) for check in checks])
    for check in checks:
        if check.verdict == DIFFERS:
            _warn(f"the simulator: {check}")


def _warn(text: str) -> None:
    console.print(f"[yellow]warning[/]: {escape(text)}", highlight=False, soft_wrap=True)
