"""Both stages of distillation with closed-loop success while they train: the simulator's rooms come after theirs."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from lerobot.configs import FeatureType

from apprentice.common.errors import UserError
from apprentice.data.mixture import open_mixture
from apprentice.distill import stages
from apprentice.distill.stages import StageConfig
from apprentice.simulators.base import suites_with


def align(config: StageConfig) -> Path:
    """Stage 1, `apprentice.distill.stages.align`. Raises UserError."""
    return stages.align(config, closed_loop(config))


def finetune(config: StageConfig) -> Path:
    """Stage 2, `apprentice.distill.stages.finetune`. Raises UserError."""
    return stages.finetune(config, closed_loop(config))


def closed_loop(config: StageConfig) -> Callable[[Path, Path], float]:
    """What runs a student on the tasks of its datasets.

    Raises UserError unless all instructions of the datasets are tasks of one suite.
    """
    mixture = open_mixture(config.dataset, config.rename, config.resize)
    instructions = set(mixture.instructions)
    for suite, found in suites_with(instructions):
        camera = next(key for key, feature in mixture.features.items() if feature.type is FeatureType.VISUAL)
        return partial(_success, suite, found, config.rollouts, mixture.meta.features[camera]["shape"][0])
    raise UserError(
        f"expected instructions of one suite for --rollouts, found {sorted(instructions)}; fix: leave --rollouts out, "
        "and run the student where its tasks are"
    )


def _success(suite: str, indices: list[int], episodes: int, size: int, student: Path, folder: Path) -> float:
    """The share of episodes that a student solves."""
    from apprentice.evaluate.results import Evaluation
    from apprentice.evaluate.rollout import evaluate

    evaluate({"student": str(student)}, suite, folder, tasks=indices, episodes=episodes, size=size, layouts="fresh")
    done = Evaluation.load(folder).episodes
    return sum(episode.instructed_success for episode in done) / len(done)
