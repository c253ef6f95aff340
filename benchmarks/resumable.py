"""Results of a benchmark's jobs in a file, one JSON line each: a killed benchmark goes on by the same command."""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from apprentice.common.files import write_text
from apprentice.common.pool import spread
from apprentice.common.progress import Meter


def finished(out: Path, of_line: Callable[[str], Any], code: str) -> dict[Any, Any]:
    """By job, what this `code` has in the file; a line cut off by a kill is removed from it."""
    lines = out.read_text().splitlines(keepends=True) if out.exists() else []
    whole = [line for line in lines if line.endswith("\n")]
    write_text(out, "".join(whole))
    results = [of_line(line) for line in whole if json.loads(line).get("code") == code]
    return {result.job: result for result in results}


def run(
    jobs: list[Any],
    measure: Callable[[Any], Any],
    workers: int,
    out: Path,
    of_line: Callable[[str], Any],
    code: str,
    name: str,
    note: Callable[[list[Any]], str] = lambda results: "",
    through: Callable[[Callable[[Any], Any], list[Any], int], Iterable[Any]] = spread,
) -> list[Any]:
    """Results of all jobs, those in the file included.

    Args:
        jobs: hashable.
        measure: a job's result, a dataclass with its `job` and the `code` that made it; runs where `through` runs it.
        workers: processes.
        out: the file.
        of_line: a result of its line.
        code: fingerprint of the code whose results count.
        name: what the jobs are.
        note: what to say of the results so far.
        through: yields `measure` of each job, on so many workers.
    """
    done = finished(out, of_line, code)
    missing = [job for job in jobs if job not in done]
    with out.open("a", buffering=1) as stream, Meter(name, len(jobs), len(jobs) - len(missing)) as meter:
        for result in through(measure, missing, workers):
            stream.write(json.dumps(asdict(result)) + "\n")
            done[result.job] = result
            meter.advance(note=note([done[job] for job in jobs if job in done]))
    return [done[job] for job in jobs]
