"""`apprentice doctor`: finds the simulator that a dataset was recorded in, and lets it replay the dataset."""

import importlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from apprentice.common.errors import FileError, UserError
from apprentice.common.files import read_json
from apprentice.common.result import Result
from apprentice.data.info import read_info
from apprentice.simulators.base import Simulator, simulator_of, simulators


def doctor(dataset: Path | str, episodes: int = 6, workers: int = 2) -> Result:
    """Replay episodes of a dataset in its simulator, and print a table of checks.

    Args:
        dataset: folder of a LeRobotDataset.
        episodes: number of episodes to replay, spread evenly over the dataset.
        workers: processes.

    Raises UserError if the dataset is of no simulator that can replay it.
    """
    found = recorded_in(Path(dataset))
    if found.doctor is None:
        raise UserError(f"expected a simulator that replays datasets, found {found.name}; fix: another dataset")
    module, _, name = found.doctor.partition(":")
    replay: Callable[..., Result] = getattr(importlib.import_module(module), name)
    return replay(dataset, episodes, workers)


def recorded_in(root: Path) -> Simulator:
    """The simulator that a dataset was collected in, or else the first one whose cameras it has.

    Raises UserError if there is none.
    """
    collection: dict[str, Any] = {}
    with suppress(OSError, FileError):
        collection = read_json(root / "meta" / "collection.json", dict[str, Any])
    if isinstance(suite := collection.get("suite"), str):
        return simulator_of(suite)
    features = read_info(root)["features"]
    wanted = {each.name: each.contract(next(iter(each.suites)), 1, "fast").cameras or () for each in simulators()}
    for each in simulators():
        if set(wanted[each.name]) <= set(features):
            return each
    offered = "; ".join(f"{', '.join(cameras)} of {name}" for name, cameras in wanted.items())
    raise UserError(
        f"expected the cameras of a simulator in {root} ({offered}), found {', '.join(features)}; "
        "fix: rename yours (only datasets of these simulators can be replayed here)"
    )
