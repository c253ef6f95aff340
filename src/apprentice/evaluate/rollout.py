"""Closed-loop episodes in a simulator: many policies, the same initial states, several processes, resumable.

Every episode is a job of its own and is written down as soon as it ends. It depends on nothing but the protocol and the
checkpoint, so it does not matter which process runs it, or in which order.
"""

from collections import Counter
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import Literal, cast

from apprentice.common.errors import UserError
from apprentice.common.files import only_one, replacing
from apprentice.common.pool import spread
from apprentice.common.progress import Meter, show
from apprentice.common.result import Result
from apprentice.evaluate.compare import rates_of, summary
from apprentice.evaluate.episode.job import EpisodeJob
from apprentice.evaluate.episode.recording import check_rerun
from apprentice.evaluate.episode.runner import inspect, run_episode
from apprentice.evaluate.episode.trace import write_table
from apprentice.evaluate.protocol import Protocol
from apprentice.evaluate.results import Episode, Evaluation, append_episode, drop_half_line
from apprentice.evaluate.selfcheck.selfcheck import before_hours
from apprentice.evaluate.sequential import Claim, verdict
from apprentice.simulators.base import simulator_of

FRESH_LAYOUTS = 10_000  # a task


def evaluate(
    policies: dict[str, str],
    suite: str,
    out_dir: Path,
    *,
    tasks: list[int] | None = None,
    episodes: int = 50,
    workers: int = 2,
    ray: str | None = None,
    instruct: dict[int, int] | None = None,
    probes: list[str] | None = None,
    render: Literal["fast", "exact"] = "fast",
    size: int = 128,
    max_steps: int | None = None,
    settle_steps: int = 10,
    seed: int = 0,
    n_action_steps: int | None = None,
    ensembling: float | None = None,
    until: str | None = None,
    layouts: Literal["test", "fresh"] = "test",
    film: Literal["some", "all", "none"] = "some",
    rerun: bool = False,
) -> Result:
    """Run policies in closed loop on a benchmark's initial states; every finished episode is kept in `out_dir`.

    Args:
        policies: name=place of each policy; a place is a LeRobot checkpoint folder, an experts.yaml with one checkpoint
            a task (lines `instruction: folder`), or the address ws://HOST:PORT of a policy server (openpi's protocol).
        suite: name of a simulator's suite, such as libero_goal, or of a variant, such as libero_goal_swap.
        tasks: indices of the tasks; all tasks if not given.
        episodes: run the initial states 0 to N - 1 of each task, the same for every policy.
        out_dir: folder of the evaluation; an evaluation in it is continued.
        workers: number of processes.
        ray: address of a Ray cluster whose machines do the work ("auto": the cluster of this machine).
        instruct: run the language probe instead: 1=8 sets up task 1 (scene, initial states) and gives the instruction
            of task 8.
        probes: change one thing in the episodes; one or more of plain (nothing), paraphrase, empty (no words),
            black-agent, black-wrist (a camera is black) and moved (the object to carry stands elsewhere). A probe
            leaves out the tasks that it does not suit.
        render: "fast" draws simplified meshes; "exact" draws the benchmark's meshes, for numbers to publish.
        size: width of the images (px); the simulator decides how high they are.
        max_steps: an episode fails after so many actions, instead of the suite's limit.
        settle_steps: number of no-op actions before the policy's first action.
        seed: episode k resets with seed + k, which also seeds the policy's sampling.
        n_action_steps: execute so many actions of each chunk before a policy plans again, instead of the number in its
            checkpoint.
        ensembling: coefficient of temporal ensembling, instead of the checkpoint's; 0.01 is ACT's.
        until: stop when the question is decided, such as "B>A+0.05": is policy B better than A by 5 points?
        layouts: "test" runs the benchmark's initial states. "fresh" draws as many new layouts, from seeds that neither
            the benchmark nor `apprentice collect` uses: choose settings and checkpoints on these.
        film: "some" keeps films of failures and of the first two initial states of each task.
        rerun: also write a Rerun recording of each episode.

    Raises UserError if a checkpoint does not fit, a policy's actions are unusable, or a worker process dies.
    """
    policies = {name: str(place) for name, place in policies.items()}
    if rerun:
        check_rerun()
    simulator = simulator_of(suite)
    known = simulator.tasks(suite)
    protocol = Protocol.with_installed_versions(
        suite=suite,
        tasks=tuple(range(len(known)) if tasks is None else tasks),
        episodes=episodes,
        instructed=tuple((instruct or {}).items()),
        step_limit=max_steps or simulator.suites[suite],
        image_size=size,
        render=render,
        settle_steps=settle_steps,
        seed=seed,
        n_action_steps=n_action_steps,
        ensembling=ensembling,
        until=until,
        probes=tuple(probes) if probes else None,
        layouts=None if layouts == "test" else layouts,
    )
    _check(protocol)
    question = Claim.parse(until, policies) if until else None
    environment = simulator.contract(suite, size, render)
    cards = {name: inspect(name, place, environment, protocol) for name, place in policies.items()}
    with only_one(out_dir):
        evaluation = Evaluation(Path(out_dir), protocol, cards, [])
        evaluation.save()
        drop_half_line(evaluation.log)
        evaluation = Evaluation.load(out_dir)
        finished = {episode.key for episode in evaluation.episodes}
        jobs = [
            EpisodeJob(name, policies[name], checkpoint, task, other, state, protocol, film, rerun, probe)
            for name, checkpoint, conditions, task, other, probe, state in evaluation.wanted
            if (name, checkpoint, conditions, task, other, probe, state) not in finished
        ]
        if jobs and not (question and verdict(question, evaluation).decided):
            before_hours(protocol, policies)
            _run(jobs, evaluation, min(workers, len(jobs)), question, ray)
        evaluation = Evaluation.load(out_dir)
        write_table(evaluation)
    show(summary(evaluation))
    answer = verdict(question, evaluation).text(question) if question else None
    if answer:
        show(answer)
    return Result(rates_of(evaluation) | {"verdict": answer})


def _check(protocol: Protocol) -> None:
    """Raise UserError for a task or an initial state that the suite does not have, or for no settling at all."""
    if protocol.settle_steps < 1 or protocol.step_limit < 1:
        raise UserError(
            f"expected at least 1 settle step and 1 action, found {protocol.settle_steps} and {protocol.step_limit}; "
            "fix: choose more (objects may hang in the air at first)"
        )
    simulator = simulator_of(protocol.suite)
    known = len(simulator.tasks(protocol.suite))
    for task in {task for pair in protocol.pairs for task in pair}:
        if task not in range(known):
            raise UserError(f"expected tasks 0 to {known - 1} of {protocol.suite}, found {task}; fix: choose another")
        states = FRESH_LAYOUTS if protocol.layouts else simulator.test_states
        if not 1 <= protocol.episodes <= states:
            raise UserError(
                f"expected 1 to {states} episodes, one for each layout of {protocol.suite} task {task}, found "
                f"{protocol.episodes}; fix: ask for as many as there are"
            )


def _run(
    jobs: list[EpisodeJob], evaluation: Evaluation, workers: int, question: Claim | None = None, ray: str | None = None
) -> None:
    """Run jobs in a pool and write each episode down as it ends, until the question is decided."""
    done = Counter(episode.policy for episode in evaluation.episodes)
    successes = Counter(episode.policy for episode in evaluation.episodes if episode.instructed_success)
    total = len(evaluation.wanted)
    meter = Meter(f"evaluate {evaluation.protocol.suite}", total, total - len(jobs))
    running = cast(Generator[tuple[Episode, dict[str, bytes]]], spread(run_episode, jobs, workers, ray=ray))
    try:
        with meter, closing(running):
            for episode, files in running:
                for name, content in files.items():
                    with replacing(evaluation.folder / name) as fresh:
                        fresh.write_bytes(content)
                append_episode(evaluation.log, episode)
                evaluation.episodes.append(episode)
                successes[episode.policy] += episode.instructed_success
                done[episode.policy] += 1
                meter.advance(note="  ".join(f"{name} {successes[name]}/{done[name]}" for name in done))
                if question and verdict(question, evaluation).decided:
                    return
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"stopped with {meter.done} of {total} episodes done, all of them kept in {evaluation.folder}; "
            "run the same command again to go on from there"
        ) from None
    except UserError as error:
        raise UserError(f"{error}\n{meter.done} of {total} episodes are done and kept in {evaluation.folder}") from None
