"""Several datasets as one: how often each is sampled, what they must have in common, and their statistics together.

my/dataset                  one dataset
published corrections       two; each as often as it has frames
published=4 corrections=1   two; four of five samples come from the first
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lerobot.configs import PolicyFeature
from lerobot.datasets.compute_stats import aggregate_stats
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.utils.feature_utils import dataset_to_policy_features

from apprentice.data.contract import Contract
from apprentice.data.dataset import open_dataset, task_names
from apprentice.errors import UserError


@dataclass(frozen=True)
class Mixture:
    """Datasets with the same features and conventions.

    Attributes:
        datasets: one or more.
        weights: how often each is sampled, in relation to the others; None for as often as it has frames.
        contract: what is known of the conventions of all of them.
    """

    datasets: list[LeRobotDataset]
    weights: list[float] | None
    contract: Contract

    @cached_property
    def meta(self) -> Any:
        """LeRobot's metadata of the first, with the statistics of all frames of all datasets, whatever the weights."""
        first = self.datasets[0].meta
        if len(self.datasets) == 1:
            return first
        together = copy.copy(first)
        together.stats = aggregate_stats([dataset.meta.stats for dataset in self.datasets])
        return together

    @property
    def features(self) -> dict[str, PolicyFeature]:
        """What a policy can read and do, images (3, h, w)."""
        return dataset_to_policy_features(self.datasets[0].meta.features)

    @property
    def instructions(self) -> list[str]:
        """All instructions, sorted."""
        return sorted({name for dataset in self.datasets for name in task_names(dataset).values()})

    @property
    def name(self) -> str:
        """What errors call it."""
        return " and ".join(f"dataset {dataset.root}" for dataset in self.datasets)


def open_mixture(words: str | Sequence[str]) -> Mixture:
    """Open FOLDER or FOLDER=WEIGHT words. Raises UserError if a dataset cannot be read, or two do not fit together."""
    words = [words] if isinstance(words, str) else list(words)
    if not words:
        raise UserError("expected a dataset, found none; fix: --dataset=FOLDER")
    folders, weights = zip(*map(_weighed, words), strict=True)
    if None in weights and any(weights):
        raise UserError(
            f"expected a weight for every dataset or for none, found {' '.join(words)}; fix: FOLDER=WEIGHT for all"
        )
    datasets = [open_dataset(folder) for folder in folders]
    contract = Contract.of_dataset(datasets[0].root)
    for dataset in datasets[1:]:
        names = f"dataset {datasets[0].root}", f"dataset {dataset.root}"
        _check_same_features(datasets[0], dataset, *names)
        other = Contract.of_dataset(dataset.root)
        contract.check(other, *names)
        contract = contract.completed(other)
    return Mixture(datasets, None if None in weights else list(weights), contract)


def _weighed(word: str) -> tuple[str, float | None]:
    folder, equals, weight = word.rpartition("=")
    if not equals or Path(word).exists():
        return word, None
    try:
        value = float(weight)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise UserError(f"expected FOLDER=WEIGHT with a weight above 0, found {word}; fix: {folder}=1")
    return folder, value


def _check_same_features(one: LeRobotDataset, other: LeRobotDataset, name: str, other_name: str) -> None:
    mine, theirs = (_described(dataset.meta.features) for dataset in (one, other))
    problems = [
        f"{key}: {name} has {mine.get(key, 'none')}, {other_name} has {theirs.get(key, 'none')}"
        for key in sorted(mine.keys() | theirs.keys())
        if mine.get(key) != theirs.get(key)
    ]
    if problems:
        fix = "train on datasets with the same features, or convert one of them"
        raise UserError(f"{name} and {other_name} do not fit together; fix: {fix}\n  " + "\n  ".join(problems))


def _described(features: dict[str, Any]) -> dict[str, str]:
    """The shape of each feature that a policy can use, and the names of its columns if it has any."""
    found = {}
    for key, feature in dataset_to_policy_features(features).items():
        names = features[key].get("names") if features[key]["dtype"] not in ("image", "video") else None
        found[key] = f"{tuple(feature.shape)}" + (f" {names}" if names else "")
    return found
