"""A scripted expert: reads a task's goal and the simulator's state, and acts through the policy's own interface."""

import numpy as np

from apprentice.simulators.base import Demonstration, Record
from apprentice.simulators.libero.demonstrator import articulated, dragging, placements
from apprentice.simulators.libero.demonstrator.controller import UP, Controller, Failure, Style
from apprentice.simulators.libero.demonstrator.inserting import insert
from apprentice.simulators.libero.demonstrator.resuming import holds
from apprentice.simulators.libero.demonstrator.skills import pick_and_place
from apprentice.simulators.libero.simulator.env import LiberoEnv
from apprentice.simulators.libero.simulator.geometry import Geometry

START_NOISE = 0.04  # m, on each axis; test states differ by 5-9 mm (one standard deviation)
AFTER_SUCCESS = 20  # steps kept after the goal is reached for good: release and retreat
PATIENCE = 1.5  # times the steps that a policy has: what slipped may be taken up again
SETTLE_STEPS = 25  # most to wait for what falls
TRIES, ROUNDS = 3, 2
Goal = tuple[str, ...]  # such as ("on", "bowl_1", "plate_1")


def demonstrate(env: LiberoEnv, seed: int) -> Demonstration:
    """Reset the environment and solve its task; everything that varies is decided by `seed`."""
    rng = np.random.default_rng([seed, 2])
    env.reset(seed=seed, start_noise=START_NOISE)
    return solve(env, draw_style(rng), rng)


def draw_style(rng: np.random.Generator) -> Style:
    return Style(
        speed=float(rng.uniform(0.75, 1.0)),
        noise=float(rng.choice([0.0, 0.2, 0.3])),
        approach=rng.uniform(-0.02, 0.02, 3),
    )


def solve(env: LiberoEnv, style: Style, rng: np.random.Generator, after: np.ndarray | None = None) -> Demonstration:
    """Solve the task from where the environment is; `rng` decides what `style` leaves open.

    `after` (7,) is the action before, if there was one: the first one then fits it, and what the hand holds is kept.
    """
    hand, geometry = Controller(env, style, rng, int(PATIENCE * env.max_steps)), env.geometry()
    if after is not None:
        hand.take_over(after)
    failure = None
    try:
        _solve(hand, geometry)
        hand.stay(3)
    except Failure as reason:
        failure = str(reason)
    if failure is None and not hand.record.successes[-1]:
        failure = "goal not reached"
    if failure is None:
        _trim(hand.record)
    return Demonstration(hand.record, failure, hand.retries)


def _solve(hand: Controller, geometry: Geometry) -> None:
    """Reach all goals, and once more what a later one undid. Raises Failure."""
    goals = in_order([tuple(goal) for goal in geometry.domain.parsed_problem["goal_state"]])
    if in_hand := [goal for goal in goals if holds(hand, geometry, goal[1])]:
        goals.sort(key=lambda goal: goal not in in_hand)
    else:
        _settle(hand, geometry)
    for _ in range(ROUNDS):
        for goal in goals:
            _achieve(hand, geometry, goal, goals)
        if all(geometry.holds(goal) for goal in goals):
            return


def _settle(hand: Controller, geometry: Geometry) -> None:
    """Wait for what falls."""
    for _ in range(SETTLE_STEPS):
        if geometry.still():
            return
        hand.stay(1)


def in_order(goals: list[Goal]) -> list[Goal]:
    """Goals in the order in which they can be reached: open, fill, close, and then what goes on top.

    What is only closed, with nothing put inside before, is closed first. What goes into something comes before what
    is stacked on it, so that no stack is carried.
    """
    filled = [goal[2].removesuffix("_heating_region") for goal in goals if goal[0] == "in"]

    def rank(goal: Goal) -> int:
        match goal:
            case ("close", part):
                return 3 if part in filled else 0
            case ("open" | "turnon" | "turnoff", _):
                return 1
            case ("in", *_):
                return 2
        return 4

    return sorted(goals, key=rank)


def _achieve(hand: Controller, geometry: Geometry, goal: Goal, goals: list[Goal]) -> None:
    """Make a goal true by the skill for it, in a few tries. Raises Failure."""
    for attempt in range(TRIES):
        if geometry.holds(goal):
            return
        try:
            _attempt(hand, geometry, goal, goals)
            _settle(hand, geometry)
        except Failure:
            if attempt == TRIES - 1:
                raise
            hand.retries += 1
            hand.release(0.08 * UP)


def _attempt(hand: Controller, geometry: Geometry, goal: Goal, goals: list[Goal]) -> None:
    match goal:
        case ("open", part) if geometry.is_site(part):
            articulated.open_drawer(hand, geometry, part)
        case ("open", part):
            articulated.open_door(hand, geometry, part)
        case ("close", part) if geometry.is_site(part):
            articulated.close_drawer(hand, geometry, part)
        case ("close", part):
            articulated.close_door(hand, geometry, part)
        case ("turnon" | "turnoff" as verb, stove):
            articulated.turn_knob(hand, geometry, stove, verb == "turnon")
        case ("on", name, site) if name.startswith("plate"):
            dragging.drag(hand, geometry, name, site)
        case ("in", name, site) if site.startswith(("microwave", "wooden_two_layer_shelf")):
            insert(hand, geometry, name, site)
        case ("in", name, site) if "cabinet" in site:
            if articulated.Part(geometry, site).value > -0.12:
                way = articulated.way_aside(geometry, site, name)
                if way.any() and "bowl" in name:
                    hand.style.speed = 1.0  # or the step limit may come first
                    dragging.lead(hand, geometry, name, (geometry.position(name) + way)[:2], 0.012, tries=1)
                articulated.open_drawer(hand, geometry, site, until=-0.14)
            pick_and_place(hand, geometry, name, placements.in_drawer(geometry, name, site))
        case ("in", name, site):
            pick_and_place(hand, geometry, name, placements.in_region(geometry, name, site, _slot(goal, goals)))
        case ("on", name, site) if site.startswith("wine_rack"):
            pick_and_place(hand, geometry, name, placements.on_rack(geometry, name, geometry.parent(site)))
        case ("on", name, site) if geometry.is_site(site):
            pick_and_place(hand, geometry, name, placements.on_region(geometry, name, site, _slot(goal, goals)))
        case ("on", name, other):
            pick_and_place(hand, geometry, name, placements.on_object(geometry, name, other))
        case _:
            raise NotImplementedError(f"no skill for the goal {' '.join(goal)}")


def _slot(goal: Goal, goals: list[Goal]) -> float:
    """The object's place among those that go to the same destination: 0 alone, else -0.5, 0.5."""
    same = [other for other in goals if other[0] == goal[0] and other[-1] == goal[-1]]
    return same.index(goal) - (len(same) - 1) / 2


def _trim(record: Record) -> None:
    """Cut the episode AFTER_SUCCESS steps after the goal was reached for good."""
    last_miss = max((step for step, success in enumerate(record.successes) if not success), default=0)
    end = last_miss + 1 + AFTER_SUCCESS
    for series in vars(record).values():
        del series[end:]
