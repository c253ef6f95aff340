"""Both stages of distillation with closed-loop success while they train: the simulator's rooms come after theirs."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from lerobot.configs import FeatureType

from apprentice.common.errors import UserError
from apprentice.data.mixture import Mixture, open_mixture
from apprentice.distill import stages
from apprentice.distill.stages import StageConfig
from apprentice.simulators.base import simulator_of, suites_with


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
        return partial(_success, suite, found, config.rollouts, size_of(mixture, suite))
    raise UserError(
        f"expected instructions of one suite for --rollouts, found {sorted(instructions)}; fix: leave --rollouts out, "
        "and run the student where its tasks are"
    )


def size_of(mixture: Mixture, suite: str) -> int:
    """The --size at which a suite's images are those of the datasets. Raises UserError if there is none."""
    pictures = [tuple(each.shape[1:]) for each in mixture.features.values() if each.type is FeatureType.VISUAL]
    simulator = simulator_of(suite)
    for size in pictures[0]:  # some simulators count by the height, some by the width
        if simulator.contract(suite, size, "fast").image_size == pictures[0]:
            return size
    raise UserError(
        f"expected pictures in a size that {simulator.name} draws for --rollouts, found {pictures[0]} (height, width); "
        "fix: leave --rollouts out, or --resize to such a size"
    )


def _success(suite: str, indices: list[int], episodes: int, size: int, student: Path, folder: Path) -> float:
    """The share of episodes that a student solves."""
    from apprentice.evaluate.results import Evaluation
    from apprentice.evaluate.rollout import evaluate

    evaluate({"student": str(student)}, suite, folder, tasks=indices, episodes=episodes, size=size, layouts="fresh")
    done = Evaluation.load(folder).episodes
    return sum(episode.instructed_success for episode in done) / len(done)
