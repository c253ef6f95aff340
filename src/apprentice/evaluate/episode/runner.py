"""One closed-loop episode: a policy is loaded, acts (`loop.py`), and what is kept of it is made (`outcome.py`)."""

from contextlib import closing
from pathlib import Path

from apprentice.common.device import best_device
from apprentice.data.contract import Contract
from apprentice.evaluate.episode.job import EpisodeJob, Policy
from apprentice.evaluate.episode.loop import Stopwatch, act
from apprentice.evaluate.episode.outcome import kept
from apprentice.evaluate.episode.probes import MOVED, said
from apprentice.evaluate.protocol import Protocol
from apprentice.evaluate.results import Episode
from apprentice.serve.checkpoint import Checkpoint, inspect_checkpoint
from apprentice.serve.client import RemotePolicy, inspect_server, is_address
from apprentice.serve.policy_card import PolicyCard
from apprentice.serve.policy_per_task import folder_of, inspect_by_task
from apprentice.simulators.base import Environment, simulator_of

FRESH_SEED = 2_000_000_000  # beyond those of collection


def inspect(name: str, place: str, environment: Contract, protocol: Protocol) -> PolicyCard:
    """Look at a policy before anything runs. Raises UserError if it does not fit."""
    if is_address(place):
        return inspect_server(name, place, environment, protocol.execution)
    if Path(place).is_file():
        instructions = [
            simulator_of(protocol.suite).tasks(protocol.suite)[instructed].instruction
            for _, instructed in protocol.pairs
        ]
        return inspect_by_task(name, Path(place), environment, protocol.execution, instructions)
    return inspect_checkpoint(name, Path(place), environment, protocol.execution)


_policies: dict[tuple, Policy] = {}  # of this process


def load(job: EpisodeJob, instruction: str) -> Policy:
    """The policy of a job; loaded once in a process."""
    protocol = job.protocol
    place = job.place if is_address(job.place) else str(folder_of(job.policy, job.place, instruction))
    key = (place, job.checkpoint, protocol.execution)
    if key not in _policies:
        contract = simulator_of(protocol.suite).contract(protocol.suite, protocol.image_size, protocol.render)
        actions = len(contract.action or ())
        _policies[key] = (
            RemotePolicy(job.policy, place, actions, protocol.n_action_steps)
            if is_address(place)
            else Checkpoint(job.policy, Path(place), best_device(), protocol.execution, actions)
        )
    return _policies[key]


def run_episode(job: EpisodeJob) -> tuple[Episode, dict[str, bytes]]:
    """Run one episode in this process; returns it and the files to keep in the evaluation's folder."""
    protocol = job.protocol
    simulator = simulator_of(protocol.suite)
    env = simulator.environment(protocol.suite, job.task, render=protocol.render, size=protocol.image_size)
    cameras = simulator.contract(protocol.suite, protocol.image_size, protocol.render).cameras or ()
    seed = protocol.seed + job.init_state
    instruction = said(job.probe, simulator.tasks(protocol.suite)[job.instructed].instruction, seed, simulator)
    policy = load(job, instruction)
    clock = Stopwatch()
    begin(protocol, env, job.init_state, moved=job.instructed if job.probe == MOVED else None)
    policy.reset(seed)
    observer = simulator.observer(env, job.instructed)
    clock.lap("reset")
    with closing(policy):
        run = act(job, env, policy, observer, instruction, clock, cameras)
    return kept(job, run, env.observe, instruction, seed, policy.n_action_steps)


def begin(protocol: Protocol, env: Environment, init_state: int, moved: int | None = None) -> None:
    """Reset to an episode's initial state or fresh layout; with `moved`, what that task carries stands elsewhere."""
    fresh, seed = protocol.layouts == "fresh", protocol.seed + init_state
    simulator_of(protocol.suite).begin(
        env,
        seed=FRESH_SEED + seed if fresh else seed,
        init_state=None if fresh else init_state,
        settle_steps=protocol.settle_steps,
        moved=moved,
    )
