"""How well a linear map reads the place of a named thing off a frozen VLM's image tokens.

For each name a ridge regression is fitted on layouts that the VLM was trained on and judged on layouts that it never
saw: from the agent view's tokens to the place in the workspace, and from both images' to the way from the hand.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apprentice.nano.batches import ENTITIES, positions
from apprentice.nano.forward import image_tokens, pixels_of
from apprentice.nano.scenes.dataset import load, rows_of_part

FITTED = 3000  # at most so many layouts
FEWEST = 40  # places of a name, below which no map is fitted
PENALTIES = 10.0 ** np.arange(-3, 3)  # of the ridge, times the mean square of the features
HELD_BACK = 4  # of every so many layouts one chooses the penalty


@dataclass
class Probed:
    """Median errors (mm) over things of layouts not seen: of the probe and of the mean place of the name.

    `from_hand`: of the way from the hand; otherwise of the place in the workspace. `places`: how many were judged.
    """

    part: str
    from_hand: bool
    places: int
    error: float
    constant: float


def probe(model: Any, data: Path | str, parts: tuple[str, ...], fitted: int = FITTED) -> list[Probed]:
    """Fit on `fitted` training layouts of `data`, judge on at most as many of each of `parts`.

    Names that come up in too few layouts are left out, and a part with none of the others.
    """
    known = _read(model, data, "train", fitted)
    found = []
    for part in parts:
        unseen = _read(model, data, part, fitted)
        for sort in (0, 1):
            errors, fixed = [], []
            for e in range(len(ENTITIES) - 1):
                fit, judge = known.known[:, sort, e], unseen.known[:, sort, e]
                if fit.sum() < FEWEST or not judge.any():
                    continue
                place = known.positions[fit, sort, e]
                guess = linear(known.features[sort][fit], place, unseen.features[sort][judge])
                truth = unseen.positions[judge, sort, e]
                errors.append((guess - truth).norm(dim=-1))
                fixed.append((place.mean(0) - truth).norm(dim=-1))
            if not errors:
                continue
            far, constant = torch.cat(errors), torch.cat(fixed)
            medians = [float(1000 * each.quantile(0.5)) for each in (far, constant)]
            found.append(Probed(part, bool(sort), len(far), *medians))
    return found


def linear(features: Tensor, targets: Tensor, queries: Tensor) -> Tensor:
    """Ridge regression of targets (N, D) on features (N, F), read off at features (M, F): (M, D).

    The penalty is the one of `PENALTIES` that does best on every fourth row, fitted on the others. Solved in the space
    of the rows, which are fewer than the features.
    """
    rows = torch.arange(len(features)) % HELD_BACK == 0
    best = min(PENALTIES, key=lambda p: float((_ridge(features[~rows], targets[~rows], features[rows], p)
                                               - targets[rows]).norm(dim=-1).median()))  # fmt: skip
    return _ridge(features, targets, queries, best)


def _ridge(features: Tensor, targets: Tensor, queries: Tensor, penalty: float) -> Tensor:
    middle, centre = features.mean(0), targets.mean(0)
    centred = (features - middle).double()
    kernel = centred @ centred.T
    damped = kernel + penalty * kernel.diagonal().mean() * torch.eye(len(kernel), dtype=torch.float64)
    weights = torch.linalg.solve(damped, (targets - centre).double())
    return (((queries - middle).double() @ centred.T) @ weights).to(targets.dtype) + centre


@dataclass
class _Reading:
    features: tuple[Tensor, Tensor]  # agent view's tokens, all tokens, flattened
    positions: Tensor  # (N, 2, E, 3) m
    known: Tensor  # (N, 2, E)


@torch.inference_mode()
def _read(model: Any, data: Path | str, part: str, most: int) -> _Reading:
    stored = load(data, part, ("images",))
    rows = rows_of_part(len(stored["facts"]), most)
    places, known = positions([stored["facts"][row] for row in rows])
    tokens = []
    for chunk in np.array_split(rows, max(1, len(rows) // 32)):
        seen = image_tokens(model, pixels_of(stored["images"][chunk], model.device)).float().cpu()
        tokens.append(seen.reshape(len(chunk), 2, -1))
    both = torch.cat(tokens)
    return _Reading((both[:, 0], both.flatten(1)), torch.from_numpy(places), torch.from_numpy(known))
