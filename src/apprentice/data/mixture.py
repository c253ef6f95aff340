"""Several datasets as one: how often each is sampled, what they must have in common, and their statistics together.

my/dataset                  one dataset
published corrections       two; each as often as it has frames
published=4 corrections=1   two; four of five samples come from the first
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lerobot.configs import PolicyFeature
from lerobot.datasets.compute_stats import aggregate_stats

from apprentice.common.errors import UserError
from apprentice.data.contract import Contract, common_size
from apprentice.data.dataset import open_dataset, task_names
from apprentice.data.features import VECTORS, policy_features
from apprentice.data.local import LocalDataset


@dataclass(frozen=True)
class Mixture:
    """Datasets with the same features and conventions.

    Attributes:
        datasets: one or more.
        weights: how often each is sampled, in relation to the others; None for as often as it has frames.
        contract: what is known of the conventions of all of them.
    """

    datasets: list[LocalDataset]
    weights: list[float] | None
    contract: Contract

    @cached_property
    def meta(self) -> Any:
        """LeRobot's metadata of the first, with the statistics of all frames of all datasets, whatever the weights."""
        first = self.datasets[0].meta
        if len(self.datasets) == 1:
            return first
        together = copy.copy(first)
        read = [{key: dataset.meta.stats[key] for key in self.features} for dataset in self.datasets]
        together.stats = aggregate_stats(read)
        return together

    @property
    def features(self) -> dict[str, PolicyFeature]:
        """What a policy can read and do, images (3, h, w)."""
        return policy_features(self.datasets[0].meta.features)

    @property
    def instructions(self) -> list[str]:
        """All instructions, sorted."""
        return sorted({name for dataset in self.datasets for name in task_names(dataset).values()})

    @property
    def name(self) -> str:
        """What errors call it."""
        return " and ".join(f"dataset {dataset.root}" for dataset in self.datasets)


def open_mixture(
    words: str | Sequence[str], rename: Mapping[str, str] | None = None, resize: Mapping[str, str] | None = None
) -> Mixture:
    """Open FOLDER or FOLDER=WEIGHT words, each with `rename` and `resize` as `open_dataset` takes them.

    Raises UserError if a dataset cannot be read, or two do not fit together.
    """
    words = [words] if isinstance(words, str) else list(words)
    if not words:
        raise UserError("expected a dataset, found none; fix: --dataset=FOLDER")
    folders, weights = zip(*map(_weighed, words), strict=True)
    if None in weights and any(weights):
        raise UserError(
            f"expected a weight for every dataset or for none, found {' '.join(words)}; fix: FOLDER=WEIGHT for all"
        )
    datasets = [open_dataset(folder, rename, resize) for folder in folders]
    contract = contract_of(datasets[0])
    for dataset in datasets[1:]:
        names = f"dataset {datasets[0].root}", f"dataset {dataset.root}"
        _check_same_features(datasets[0], dataset, *names)
        other = contract_of(dataset)
        contract.check(other, *names)
        contract = contract.completed(other)
    return Mixture(datasets, None if None in weights else list(weights), contract)


def contract_of(dataset: LocalDataset) -> Contract:
    """The contract of a dataset as it is read: with its new names and sizes."""
    contract = Contract.of_dataset(dataset.root)
    new = {old: name for name, old in dataset.stored.items()}
    cameras = tuple(new.get(key, key) for key in contract.cameras or ()) or None
    if not dataset.sizes:
        return contract.having(cameras=cameras)
    features = {key: dataset.meta.features[key] for key in cameras or () if key in dataset.meta.features}
    return contract.having(cameras=cameras, image_size=common_size(features))


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


def _check_same_features(one: LocalDataset, other: LocalDataset, name: str, other_name: str) -> None:
    first, second = (_described(dataset.meta.features) for dataset in (one, other))
    problems = [
        f"{key}: {name} has {first.get(key, 'none')}, {other_name} has {second.get(key, 'none')}"
        for key in sorted(first.keys() | second.keys())
        if first.get(key) != second.get(key)
    ]
    if problems:
        fix = "train on datasets with the same features, or convert one of them"
        raise UserError(f"{name} and {other_name} do not fit together; fix: {fix}\n  " + "\n  ".join(problems))


def _described(features: dict[str, Any]) -> dict[str, str]:
    """The shape of each feature that a policy can use, and the names of its columns if it has any."""
    found = {}
    for key, feature in policy_features(features).items():
        names = features[key].get("names") if key in VECTORS else None
        if isinstance(names, dict):  # {"motors": [...]}, as some converters write them
            names = [name for each in names.values() for name in (each if isinstance(each, list) else [each])]
        found[key] = f"{tuple(feature.shape)}" + (f" {names}" if names else "")
    return found
