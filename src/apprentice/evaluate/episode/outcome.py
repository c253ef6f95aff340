"""What is kept of an episode: its line in the log, its trace, and on request a film and a recording."""

from collections.abc import Callable
from dataclasses import replace

from apprentice.evaluate.episode.job import EpisodeJob
from apprentice.evaluate.episode.loop import Run
from apprentice.evaluate.episode.recording import record
from apprentice.evaluate.episode.trace import Trace
from apprentice.evaluate.episode.video import encode
from apprentice.evaluate.results import OTHER_TASK, Episode
from apprentice.simulators.base import Observation, simulator_of

SPEED = 2  # films run at twice the real speed
FILMED = 2  # initial states of each task that are filmed even if they succeed; failures always are


def kept(
    job: EpisodeJob, run: Run, observe: Callable[[], Observation], instruction: str, seed: int, n_action_steps: int
) -> tuple[Episode, dict[str, bytes]]:
    """The episode, and the files to keep in the evaluation's folder.

    Args:
        job: what was to be run.
        run: what happened.
        observe: what the environment shows at the end; called only for a film.
        instruction: what the policy was given.
        seed: of the layout and of the policy's sampling.
        n_action_steps: actions of a plan that were executed.
    """
    simulator = simulator_of(job.protocol.suite)
    episode = _episode(job, run, instruction, seed)
    trace = Trace.of(run.states, run.actions, run.plans)
    episode = replace(episode, trace=f"{episode.stem}.npz")
    files = {f"traces/{episode.trace}": trace.to_bytes()}
    if job.film == "all" or (job.film == "some" and not (run.instructed_success and job.init_state >= FILMED)):
        film = [simulator.film(each) for each in [*run.observations, observe()]]
        episode = replace(episode, video=f"{episode.stem}.mp4")
        files[f"videos/{episode.video}"] = encode(film, SPEED * simulator.fps / n_action_steps)
    if job.rerun:
        files[f"recordings/{episode.stem}.rrd"] = record(episode, trace, run.observations, simulator.fps)
    return episode, files


def _episode(job: EpisodeJob, run: Run, instruction: str, seed: int) -> Episode:
    """Without its files."""
    return Episode(
        policy=job.policy,
        checkpoint=job.checkpoint,
        conditions=job.protocol.conditions,
        suite=job.protocol.suite,
        task=job.task,
        instructed=job.instructed,
        init_state=job.init_state,
        instruction=instruction,
        success=run.success,
        instructed_success=run.instructed_success,
        steps=len(run.actions),
        seconds=round(sum(run.seconds.values()), 3),
        reset_seconds=round(run.seconds["reset"], 3),
        policy_seconds=round(run.seconds["policy"], 3),
        render_seconds=round(run.seconds["render"], 3),
        physics_seconds=round(run.seconds["physics"], 3),
        video=None,
        seed=seed,
        probe=job.probe,
        failure=OTHER_TASK if run.success and not run.instructed_success else run.failure,
    )
