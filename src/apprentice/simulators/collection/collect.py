"""Demonstrations by the scripted demonstrator, written as a LeRobotDataset v3.0.

An episode is planned and acted without cameras; only if it succeeded are its recorded states drawn. How episodes are
kept and written: `episode_jobs.py`.
"""

from functools import partial
from typing import Any

from apprentice.simulators.base import simulator_of
from apprentice.simulators.collection.config import CollectConfig
from apprentice.simulators.collection.episode_jobs import Collected, CollectJob, attempt, gather


def collect(config: CollectConfig) -> dict[str, Any]:
    """Write successful demonstrations of each task into a dataset; returns a summary.

    Finished episodes wait in a folder beside `out` until all are there: start again to go on after a kill. Starts from
    fresh scenes, never from the test states.

    Raises UserError if `out` exists, if what waits beside it was collected with other settings, if a task can have no
    variant, or, when all else is done, if a task could not be demonstrated.
    """
    return gather(config, partial(CollectJob, **config.shared), _collect_one, config.shared)


def _collect_one(job: CollectJob) -> Collected:
    """Collect one episode in a worker."""
    return attempt(job, simulator_of(job.suite).demonstrator().demonstrate)
