"""Measured success rates, a line of JSON each: what `results/*.jsonl` holds and every table of results is made from."""

import json
import os
import shlex
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from apprentice.common.errors import UserError
from apprentice.common.files import read_lines, write_text
from apprentice.evaluate.episode.probes import PLAIN
from apprentice.evaluate.results import ALL, Evaluation, rows_by
from apprentice.simulators.base import variant_of

ROLES = ("expert", "two-stage", "only-ft", "scratch")
TEST = "test"


@dataclass(frozen=True)
class Measurement:
    """A policy's success rate on one suite.

    Attributes:
        suite: name of the suite.
        variant: ending of the name of the suite's variant that was run (such as swap), or "".
        layouts: "test" for the benchmark's initial states, else what drew them.
        policy: the name that the policy goes by.
        role: expert, two-stage, only-ft or scratch.
        train_seed: of its training.
        tasks: how many tasks.
        episodes, successes: over all tasks.
        low95, high95: bounds of the rate (Wilson).
        by_task: (episodes, successes) of each task, by its index.
        failures: how many episodes failed in each way.
        protocol: hash of how and which episodes were run.
        render: "exact" or "fast".
        checkpoint: fingerprint of the policy's files.
        command: what ran the episodes.
        commit: of the code that wrote this line.
        date: when it was written.
    """

    suite: str
    variant: str
    layouts: str
    policy: str
    role: str
    train_seed: int
    tasks: int
    episodes: int
    successes: int
    low95: float
    high95: float
    by_task: dict[str, tuple[int, int]]
    failures: dict[str, int]
    protocol: str
    render: str
    checkpoint: str
    command: str
    commit: str
    date: str

    @property
    def key(self) -> tuple[str, ...]:
        """What is measured: a second line with this key replaces the first."""
        return self.suite, self.variant, self.layouts, self.render, self.role, str(self.train_seed), self.policy


def record(
    evaluation: Path, *, file: Path, roles: dict[str, str] | None = None, train_seed: int = 0, command: str = ""
) -> None:
    """Write the success rates of a finished evaluation into a file of results, a line each policy.

    Args:
        evaluation: folder, written by `apprentice eval`.
        file: the .jsonl file, such as results/libero_object.jsonl; a line of the same policy and suite is replaced.
        roles: expert, two-stage, only-ft or scratch for each policy, such as mine=two-stage; not needed if a policy has
            the name of its role.
        train_seed: seed of the policies' training.
        command: the command that ran the episodes, if the one found from the protocol is wrong.

    Raises UserError if episodes are missing or a policy has no role.
    """
    found = Evaluation.load(evaluation)
    if len(found.episodes) < len(found.wanted):
        raise UserError(
            f"expected all {len(found.wanted)} episodes in {evaluation}, found {len(found.episodes)}; "
            "fix: run the same `apprentice eval` again to the end"
        )
    lines = [*measurements(found, roles or {}, train_seed, command)]
    known = {line.key: line for line in read(file)} | {line.key: line for line in lines}
    write_text(file, "".join(json.dumps(asdict(line)) + "\n" for _, line in sorted(known.items())))
    for line in lines:
        print(f"{line.policy} ({line.role}, seed {line.train_seed}): {line.successes}/{line.episodes} -> {file}")


def measurements(
    evaluation: Evaluation, roles: dict[str, str], train_seed: int, command: str = ""
) -> Iterable[Measurement]:
    """The rate of each policy of an evaluation. Raises UserError if one has no role."""
    protocol = evaluation.protocol
    suite, variant = variant_of(protocol.suite)
    plain = [e for e in evaluation.episodes if e.task == e.instructed and e.probe == PLAIN]
    for policy, card in evaluation.policies.items():
        role = roles.get(policy, policy)
        if role not in ROLES:
            raise UserError(
                f"expected a role of {', '.join(ROLES)} for policy {policy}, found {role}; fix: --roles {policy}=expert"
            )
        own = [e for e in plain if e.policy == policy]
        whole, *by_task = rows_by(own, lambda e: e.task, lambda e: e.success)
        assert whole.task == ALL
        failures = [e.failure for e in own if e.failure]
        yield Measurement(
            suite=suite,
            variant=variant,
            layouts=protocol.layouts or TEST,
            policy=policy,
            role=role,
            train_seed=train_seed,
            tasks=len(by_task),
            episodes=whole.episodes,
            successes=whole.successes,
            low95=round(whole.low95, 4),
            high95=round(whole.high95, 4),
            by_task={str(row.task): (row.episodes, row.successes) for row in by_task},
            failures={kind: failures.count(kind) for kind in sorted(set(failures))},
            protocol=protocol.hash,
            render=protocol.render,
            checkpoint=card.checkpoint,
            command=command or _command(evaluation),
            commit=_commit(),
            date=datetime.now(UTC).date().isoformat(),
        )


def read(file: Path) -> list[Measurement]:
    """The lines of a file of results; none if there is no such file. Raises UserError if a line is not one."""
    return read_lines(file, Measurement, "a measured rate") if file.exists() else []


def _command(evaluation: Evaluation) -> str:
    """The command that runs these episodes; policies go by their names alone, for folders differ between machines."""
    protocol = evaluation.protocol
    words = ["apprentice", "eval", "--suite", protocol.suite, "--episodes", str(protocol.episodes)]
    words += ["--render", protocol.render]
    if protocol.layouts:
        words += ["--layouts", protocol.layouts]
    if protocol.n_action_steps:
        words += ["--n-action-steps", str(protocol.n_action_steps)]
    if protocol.seed:
        words += ["--seed", str(protocol.seed)]
    return shlex.join([*words, "--policies", *(f"{name}=..." for name in evaluation.policies)])


def _commit() -> str:
    """The commit of this code, with a + if it was changed since; "" outside of a repository."""
    folder = os.path.dirname(__file__)
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
