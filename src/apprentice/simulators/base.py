"""One interface of a simulator: what evaluation, collection and serving ask of any, and the list of those that we have.

A new simulator is a folder beside this file and a line in `SIMULATORS`. The attribute that the line names is an object
with everything that `Simulator` lists. Its module must import nothing heavy at its top: the command line asks for names
of suites before it does anything else. Shapes: S numbers of state, A of action, H x W pixels.
"""

import importlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from apprentice.common.errors import UserError

if TYPE_CHECKING:  # each takes a tenth of a second to import, which whoever mistypes a flag would wait for
    import numpy as np

    from apprentice.data.contract import Contract

# what names of its suites begin with: "module:attribute"
SIMULATORS = {
    "libero": "apprentice.simulators.libero.interface:LIBERO",
    "so101": "apprentice.simulators.so101.interface:TWIN",
}

PASSED, DIFFERS, INVALID = "passed", "differs", "invalid"
Observation = dict[str, "np.ndarray"]  # LeRobot's keys: images uint8 (H, W, 3), observation.state float32 (S,)


class Task(Protocol):
    """A task of a suite, or a variant of it."""

    @property
    def suite(self) -> str: ...
    @property
    def index(self) -> int: ...
    @property
    def instruction(self) -> str: ...


class Environment(Protocol):
    """One task, simulated. `Simulator.begin` or `Demonstrator.begin` comes first, then `step` and `observe`."""

    @property
    def max_steps(self) -> int:
        """Actions that an episode may take."""

    def step(self, action: "np.ndarray") -> bool:
        """Run one action (A,) for 1 / `fps` s; says whether the goal holds now."""

    def observe(self) -> Observation:
        """The observation of now; the only call that draws."""

    def proprioception(self) -> "np.ndarray":
        """The state (S,) float32 of now."""

    def success_of(self, task: int) -> bool:
        """Does the goal of another task of the suite hold now? Raises UserError if it is impossible in this scene."""

    def restore(self, snapshot: Any) -> None:
        """Let `observe` show what a snapshot of a demonstration shows."""

    def capture(self) -> Any:
        """All that an episode goes on from, bit for bit: a dataclass of arrays."""

    def resume(self, state: Any) -> None:
        """Go on from a captured state."""

    def close(self) -> None:
        """Free what it holds."""


class Observer(Protocol):
    """Watches one episode, and names how it failed."""

    def observe(self, action: "np.ndarray") -> None:
        """Take in what the last step did, with its action (A,)."""

    def kind(self) -> str:
        """The kind of failure, one of `Simulator.failures`."""


class Watcher(Protocol):
    """Watches a policy until the demonstrator takes over: may it do so now, with an object in the hand?"""

    usable: bool
    holding: bool
    mistake: int | None  # the step from which on nothing is usable

    def observe(self, action: "np.ndarray") -> None:
        """Take in what the last step did, with its action (A,)."""


class Noise(Protocol):
    """Leads a policy astray."""

    def disturbed(self, action: "np.ndarray") -> "np.ndarray":
        """What is executed in place of an action (A,)."""


@dataclass
class Record:
    """A demonstration, step by step: what was seen, the action that was meant and the one that was executed."""

    snapshots: list[Any] = field(default_factory=list)  # for `Environment.restore`
    actions: "list[np.ndarray]" = field(default_factory=list)
    executed: "list[np.ndarray]" = field(default_factory=list)
    successes: list[bool] = field(default_factory=list)


@dataclass
class Demonstration:
    """What came of one seed: the record, why it failed if it did, and how often it had to try something again."""

    record: Record
    failure: str | None
    retries: int = 0
    start: Any = None  # the captured state where it began, if not with `Demonstrator.begin`
    notes: dict[str, Any] = field(default_factory=dict)  # what else a dataset should tell of it


class Demonstrator(Protocol):
    """Solves tasks through the policy's own action interface, with the simulator's privileged state."""

    start_noise: float  # how far starts are spread, which a dataset keeps
    robot_type: str  # LeRobot's name of the robot
    state_names: Sequence[str]  # S names, as LeRobot has them in `info.json`
    action_names: Sequence[str]  # A

    def begin(self, env: Any, seed: int) -> None:
        """Draw the layout that a demonstration of this seed begins in."""

    def demonstrate(self, env: Any, seed: int) -> Demonstration:
        """Begin, and solve the task; everything that varies is decided by `seed`.

        Raises NotImplementedError if it cannot do this task, whatever the seed.
        """

    def take_over(self, env: Any, seed: int, action: "np.ndarray") -> Demonstration:
        """Solve the task from where the environment is, after a policy's action (A,)."""

    def watch(self, env: Any) -> Watcher:
        """Watch a policy that acts in the environment from now on."""

    def noise(self, deviation: float, rng: "np.random.Generator") -> Noise:
        """What disturbs a policy, of this standard deviation (the largest action is 1)."""

    def state(self, arrays: "Mapping[str, np.ndarray]") -> Any:
        """A captured state again, from the fields that a dataset keeps of it."""


@dataclass(frozen=True)
class Usual:
    """What the statistics of a policy without a contract are compared with.

    Attributes:
        start: (S,) state in which episodes of the suite begin.
        colours: (C, 3) mean level, 0 to 1, of each camera's images over a demonstration.
        limit: largest absolute value of an action.
        moving: how many of an action's first numbers move the hand.
        least: absolute value that one of those exceeds in any dataset.
    """

    start: "np.ndarray"
    colours: "np.ndarray"
    limit: float
    moving: int
    least: float


@dataclass(frozen=True)
class Check:
    """One answer; `verdict`: passed, differs (a warning), or invalid (results would be those of another simulator)."""

    name: str
    verdict: str
    expected: str
    found: str
    fix: str

    def __str__(self) -> str:
        return f"{self.name}: expected {self.expected}, found {self.found}; fix: {self.fix}"


class Simulator(Protocol):
    """A simulator. Everything here is known, or found out, without MuJoCo, unless it says "the simulator is needed".

    Attributes:
        name: as people call it.
        suites: the most actions that an episode may take, by suite; variants of suites are among them.
        variants: what is changed in a suite that is named after another one, by the ending of its name; with "lan"
            here, the suite x_lan is a variant of x. For tests alone.
        fps: control frequency (Hz).
        test_states: numbered states of each task that are kept for tests.
        failures: what each kind of failure means.
        fast_version: of what the renderer "fast" draws; None if there is no such renderer.
        checked: suites that `examine` has references of.
        doctor: "module:function" that replays a dataset, prints what is wrong with it, and says whether all is well,
            with the arguments of `apprentice doctor`; None if it cannot.
    """

    name: str
    suites: Mapping[str, int]
    variants: Mapping[str, str]
    fps: int
    test_states: int
    fast_version: int | None
    checked: Sequence[str]
    doctor: str | None

    @property
    def failures(self) -> Mapping[str, str]: ...

    def task_count(self, suite: str) -> int:
        """How many tasks a suite has."""

    def tasks(self, suite: str) -> Sequence[Task]:
        """The tasks of a suite, in order; the simulator is needed. Raises UserError if there is none, or no suite."""

    def task(self, suite: str, index: int, variant: int | None = None) -> Task:
        """A task, or its variant of that number, for collection. Raises UserError if it has no variants."""

    def paraphrases(self, instruction: str) -> Sequence[str]:
        """Other instructions of the same meaning; empty if none are known."""

    def check_drawing(self) -> None:
        """Raise UserError if nothing can be drawn here."""

    def versions(self) -> dict[str, str]:
        """Of the packages that decide physics, pictures and tasks; the simulator is needed."""

    def contract(self, suite: str, size: int, render: str) -> "Contract":
        """The conventions of the suite's observations and actions; its images are `size` px wide.

        The first camera sees the scene; the second one, if there is one, is at the wrist.
        """

    def environment(self, suite: str, task: int, variant: int | None = None, *, render: str, size: int) -> Environment:
        """The environment of a task; one that this process has already may be given again."""

    def begin(
        self, env: Any, *, seed: int, init_state: int | None, settle_steps: int, moved: int | None = None
    ) -> None:
        """Start an episode: a numbered test state, or a layout that `seed` draws; let it settle without the policy.

        With `moved`, a task, what has to be carried for that task's goal stands elsewhere, by a few centimetres.
        """

    def can_move(self, suite: str, task: int) -> bool:
        """Is there something to carry, which `begin` can move?"""

    def observer(self, env: Any, task: int) -> Observer:
        """Watch, from now on, how the goal of a task of the suite fails. Raises UserError if it is impossible here."""

    def film(self, observation: Observation) -> "np.ndarray":
        """The picture (H, W, 3) uint8 that a film shows of an observation: left is where the instruction says left."""

    def demonstrator(self) -> Demonstrator:
        """Raises UserError if there is none."""

    def usual(self, suite: str) -> Usual | None:
        """What policies of a suite usually look like, if it is known."""

    def examine(self, suite: str, render: str) -> Sequence[Check]:
        """Is the simulator the one that results are compared with? Takes seconds; the simulator is needed."""

    def setting(self, suite: str, render: str) -> str:
        """Hash of all that the answer of `examine` depends on."""


def simulator_of(suite: str) -> Simulator:
    """The simulator of a suite. Raises UserError if no simulator has it."""
    for each in _likely(suite):
        if suite in each.suites:
            return each
    raise UserError(f"expected a suite of {', '.join(suites())}, found {suite!r}; fix: name one of them")


def simulators() -> list[Simulator]:
    """All of them."""
    return [_load(place) for place in SIMULATORS.values()]


def suites() -> list[str]:
    """Names of all suites."""
    return [suite for each in simulators() for suite in each.suites]


def variant_of(suite: str) -> tuple[str, str]:
    """The suite that a suite is a variant of, and the ending of its name; itself and "" if it is no variant."""
    known = simulator_of(suite)
    base, _, ending = suite.rpartition("_")
    return (base, ending) if ending in known.variants and base in known.suites else (suite, "")


def suites_with(instructions: Collection[str]) -> Iterator[tuple[str, list[int]]]:
    """Suites, no variants, that have a task for each instruction; and the indices of these tasks.

    Raises UserError if there are none and a simulator is not installed.
    """
    wanted, missing, matched = set(instructions), None, False
    for each in simulators():
        for suite in each.suites:
            if variant_of(suite) != (suite, ""):
                continue
            try:
                found = [task for task in each.tasks(suite) if task.instruction in wanted]
            except UserError as error:  # another simulator may be the one
                missing = error
                break
            if {task.instruction for task in found} == wanted:
                matched = True
                yield suite, [task.index for task in found]
    if missing and not matched:
        raise missing


def modules(suite: str | None = None) -> list[str]:
    """The modules of the simulator of a suite, or of all."""
    places = [place for prefix, place in SIMULATORS.items() if suite is None or suite.startswith(prefix)]
    return [place.partition(":")[0] for place in places]


def doctors() -> list[str]:
    """The modules of the simulators' doctors."""
    return [each.doctor.partition(":")[0] for each in simulators() if each.doctor]


def _likely(suite: str) -> list[Simulator]:
    """Those whose prefix fits."""
    return [_load(place) for prefix, place in SIMULATORS.items() if suite.startswith(prefix)]


def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
