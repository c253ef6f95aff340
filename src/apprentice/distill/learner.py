"""A policy and how it learns: all that the training loop has to know of a student, or of an expert."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from apprentice.data.contract import Contract

WARM_UP = 0.1  # of all steps (docs/paper.md, Recipe, optimizer)


@dataclass
class Learner:
    """Attributes:
    policy: a LeRobot policy; its `forward` gives the loss of a batch, and the parts of it.
    stage: what progress, log and cost call the training.
    optimizer: what steps the policy, with the peak learning rates.
    rate: factor of the learning rates in a step.
    clip: largest norm of the gradients.
    processors: what a checkpoint holds beside the policy.
    contract: the conventions behind the policy.
    bfloat16: compute the loss in bfloat16; weights are as they are.
    settled: whether a held-out loss means something yet.
    """

    policy: Any
    stage: str
    optimizer: torch.optim.Optimizer
    rate: Callable[[int], float]
    clip: float = 1.0
    processors: Sequence[Any] = ()
    contract: Contract = field(default_factory=Contract)
    bfloat16: bool = False
    settled: Callable[[], bool] = lambda: True


def decay(steps: int, begun: int = 0) -> Callable[[int], float]:
    """From step `begun` on warm up over a tenth of what is left, then fall linearly to zero (docs/paper.md, Recipe)."""
    warm = max(1, round(WARM_UP * (steps - begun)))
    return lambda step: min((step - begun + 1) / warm, (steps - step) / max(1, steps - begun - warm))
