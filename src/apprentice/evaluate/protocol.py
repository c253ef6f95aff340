"""Everything that decides a success rate, as data: written beside every result, hashed into every episode."""

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from typing import Any

from apprentice.common.files import fingerprint
from apprentice.evaluate.episode.probes import PLAIN, applies
from apprentice.serve.policy_card import Execution
from apprentice.simulators.base import simulator_of

EXTENT = ("tasks", "episodes", "instructed", "probes", "until")  # which episodes; all other fields say how one is run


@dataclass(frozen=True)
class Protocol:
    """How episodes are run, and which.

    A field that is None is left to the policy, and stands in no hash: one that is added here leaves old hashes alone.

    Attributes:
        suite: name of a simulator's suite.
        tasks: indices of its tasks.
        episodes: benchmark's initial states 0 .. episodes - 1 of each task, the same for every policy.
        instructed: (task, other task) pairs of the language probe: `task` is set up, the policy is given the
            instruction of `other`.
        step_limit: actions before an episode counts as failed.
        settle_steps: no-op actions before the policy's first.
        image_size: width (px).
        render: "fast" (simplified meshes) or "exact".
        soft_reset: the simulation is reset in place, not rebuilt from XML.
        seed: episode k resets with `seed + k` and seeds the policy's sampling likewise.
        versions: of the packages that decide physics, pictures and tasks, as the simulator names them.
        n_action_steps: actions of a chunk that are executed before it plans again; None: as the checkpoint says.
        ensembling: coefficient of temporal ensembling: a plan after each action, and what all plans say of the next
            one is averaged with weights exp(-coefficient * i), the oldest plan's i being 0; None: as the checkpoint
            says.
        until: the question whose answer ends the evaluation early, such as "B>A+0.05"; None: all episodes are run.
        probes: what is changed in an episode, a name of `PROBES` each; None: nothing.
        fast_version: of what "fast" draws; None: "exact", or fast as it was before 7.
        layouts: "fresh" draws the layout of episode k from a seed that no test and no dataset uses; None: the
            benchmark's initial state k.
    """

    suite: str
    tasks: tuple[int, ...]
    episodes: int
    instructed: tuple[tuple[int, int], ...]
    step_limit: int
    image_size: int
    render: str
    settle_steps: int = 10
    soft_reset: bool = True
    seed: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    n_action_steps: int | None = None
    ensembling: float | None = None
    until: str | None = None
    probes: tuple[str, ...] | None = None
    fast_version: int | None = None
    layouts: str | None = None

    @classmethod
    def with_installed_versions(cls, *, suite: str, render: str, **fields: Any) -> "Protocol":
        """A protocol for the simulator installed here. Raises UserError if no simulator has the suite."""
        simulator = simulator_of(suite)
        fast = simulator.fast_version if render == "fast" else None
        return cls(**fields, suite=suite, render=render, versions=simulator.versions(), fast_version=fast)

    @property
    def execution(self) -> Execution:
        """How plans are carried out."""
        return Execution(self.n_action_steps, self.ensembling)

    @property
    def conditions(self) -> str:
        """Hash of how one episode is run. Which and how many are left out, so that an evaluation can be extended."""
        return self._hash(EXTENT)

    @property
    def hash(self) -> str:
        """Hash of everything."""
        return self._hash()

    def _hash(self, without: Collection[str] = ()) -> str:
        content = {k: v for k, v in asdict(self).items() if k not in without and v is not None}
        return fingerprint(json.dumps(content, sort_keys=True))

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """(task that is set up, task whose instruction is given) of every episode to run, once per initial state."""
        return self.instructed or tuple((task, task) for task in self.tasks)

    @property
    def variants(self) -> list[tuple[int, int, str]]:
        """The pairs with each probe that can be made of them."""
        return [
            (*pair, probe)
            for pair in self.pairs
            for probe in self.probes or (PLAIN,)
            if applies(self.suite, pair[1], probe)
        ]


def differences(a: Protocol, b: Protocol, names: tuple[str, str], across: Collection[str] = ()) -> list[str]:
    """What keeps the results of two protocols from being compared, a line each; `across`: fields that may differ.

    More initial states, probes, or a question that ended one early, do not: what both have run is compared.
    """
    mine, theirs = ({**asdict(p), **p.versions} for p in (a, b))
    skipped = {"episodes", "until", "probes", "versions", *across}
    if a.render != b.render:
        skipped.add("fast_version")
    return [
        f"{field}: {names[0]} has {_shown(field, mine)}, {names[1]} has {_shown(field, theirs)}"
        for field in mine | theirs
        if field not in skipped and mine.get(field) != theirs.get(field)
    ]


def _shown(field: str, protocol: dict[str, Any]) -> Any:
    if protocol.get(field) is not None:
        return protocol[field]
    return {"fast_version": "one before 7", "layouts": "those of the test"}.get(field, "what each checkpoint says")
