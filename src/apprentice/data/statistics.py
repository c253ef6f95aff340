"""Statistics of a dataset's numbers: computed where `meta/stats.json` has none that describe them, and compared."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from lerobot.datasets.compute_stats import get_feature_stats
from lerobot.utils.constants import IMAGENET_STATS
from numpy.typing import NDArray

from apprentice.common.errors import UserError

Stats = dict[str, dict[str, NDArray[Any]]]

NEEDED = ("min", "max", "mean", "std", "count")
APART = 0.1  # of the standard deviation: what statistics of the same numbers differ by at most
CONSTANT = 1e-6  # of a column's size, or of 1 if that is smaller: what varies by less is constant
FAR, WIDE, FLAT = 4.0, 6.0, 0.05  # see `unlike`
SAME = 1e-4  # of its size, or of 1 if that is smaller: a constant's allowance


def described(known: Any, columns: Mapping[str, NDArray[Any]], cameras: Sequence[str]) -> tuple[Stats, list[str]]:
    """Statistics of every column (F, n) and camera, and the columns whose `known` ones are none of these numbers.

    Those of cameras cannot be known without decoding all pictures: if they are missing they are ImageNet's, which
    lerobot-train takes in any case.
    """
    known = known if isinstance(known, dict) else {}
    stats, computed = dict(known), []
    for key, values in columns.items():
        numbers = values.astype(np.float64)
        own = {name: getattr(numbers, name)(0) for name in ("mean", "std", "min", "max")}
        if not _describes(known.get(key), own):  # LeRobot's deviation, by squares, is more than 0 for a constant
            stats[key] = {**get_feature_stats(numbers, axis=0, keepdims=False), **own}
            computed.append(key)
    usual = {name: np.array(value, np.float32) for name, value in IMAGENET_STATS.items()}
    count = np.array([len(next(iter(columns.values())))])
    for key in cameras:
        if not _usable(known.get(key), (3, 1, 1)):
            stats[key] = {"min": np.zeros((3, 1, 1)), "max": np.ones((3, 1, 1)), **usual, "count": count}
    return stats, computed


def _usable(known: Any, shape: tuple[int, ...]) -> bool:
    """Whether all that is needed is there, in its shape, finite and in order."""
    if not isinstance(known, dict) or not set(NEEDED) <= set(known):
        return False
    try:
        values = {name: np.asarray(value, np.float64) for name, value in known.items()}
    except (TypeError, ValueError):
        return False
    if any(values[name].shape != ((1,) if name == "count" else shape) for name in NEEDED):
        return False
    return all(np.isfinite(value).all() for value in values.values()) and bool((values["std"] >= 0).all())


def _describes(known: Any, own: dict[str, NDArray[Any]]) -> bool:
    if not _usable(known, own["mean"].shape):
        return False
    least = CONSTANT * np.maximum(1, np.abs(own["mean"]))
    allowed = APART * own["std"] + least
    near = all((np.abs(known[name] - own[name]) <= allowed).all() for name in ("mean", "std"))
    rounding = 1e-5 * np.maximum(np.abs(own["min"]), np.abs(own["max"])) + least
    return near and bool(
        (known["min"] <= own["min"] + rounding).all() and (known["max"] >= own["max"] - rounding).all()
    )


def is_constant(scale: NDArray[Any], offset: NDArray[Any]) -> NDArray[np.bool_]:
    """Which columns (n,) vary by less than rounding does."""
    return np.asarray(np.abs(scale) <= CONSTANT * np.maximum(1, np.abs(offset)))


def unlike(stats: Mapping[str, Any], offset: NDArray[Any], scale: NDArray[Any]) -> dict[str, list[int]]:
    """Columns that are no numbers of those from which a normalisation by `offset` and `scale` (n,) comes, by reason.

    Whatever the kind of normalisation, the numbers that it was made for have a mean within it and a deviation of at
    most 1, and most of their columns not much less. Degrees in place of radians, or actions ten times as large, do not.
    A scale of 0 stands for a column that was constant: then it must be the same constant here. The identity tells
    nothing.
    """
    if (offset == 0).all() and (scale == 1).all():
        return {}
    mean, std = (np.asarray(stats[name], np.float64) for name in ("mean", "std"))
    constant, still = scale == 0, is_constant(std, mean)
    safe = np.where(constant, 1.0, scale)
    middle, spread = np.abs(mean - offset) / safe, std / safe
    apart = np.maximum(np.abs(stats["min"] - offset), np.abs(stats["max"] - offset))
    moving = ~constant & ~still
    small = moving & bool(moving.any() and np.median(spread[moving]) < FLAT)
    found = {
        "constant": constant & (apart > SAME * np.maximum(1, np.abs(offset))),
        "far": moving & ((middle > FAR) | (spread > WIDE)) | (still & ~constant & (middle > 10 * FAR)),
        "small": small,
    }
    return {reason: np.flatnonzero(columns).tolist() for reason, columns in found.items() if columns.any()}


def check_alike(
    stats: Mapping[str, Any], offset: NDArray[Any], scale: NDArray[Any], key: str, name: str, other_name: str
) -> None:
    """Raises UserError if a dataset's statistics of `key` do not fit to the normalisation of `name`."""
    found = unlike(stats, offset, scale)
    if not found:
        return
    rows = []
    for columns in found.values():
        for column in columns[:4]:
            recorded = f"{float(stats['min'][column]):.4g} to {float(stats['max'][column]):.4g}"
            middle, deviation = float(offset[column]), float(scale[column])
            seen = f"{middle:.4g}, give or take {deviation:.4g}" if deviation else f"{middle:.6g} alone"
            rows.append(f"column {column}: {name} learned from {seen}, {other_name} has {recorded}")
    raise UserError(
        f"expected {key} in the units of {name}, found other numbers in {other_name} (degrees for radians, another "
        "scale or another robot); fix: convert the dataset's columns to its units, or train on this dataset\n  "
        + "\n  ".join(rows)
    )
