"""A LeRobotDataset in a folder of this machine, with other names and sizes than those in its files if need be."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from datasets import Dataset
from lerobot.datasets.io_utils import EPISODES_DIR
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.utils.utils import SuppressProgressBars


class LocalDataset(LeRobotDataset):
    """What `open_dataset` opens.

    Attributes:
        stored: the names of features in the files, by those that they have here; of none if all are the same.
        sizes: height and width (px) in which a camera's pictures are read, if not in their own.
    """

    def __init__(self, *arguments: Any, **settings: Any):
        from lerobot.datasets import dataset_metadata  # not above: at its end Python would clear it too early

        theirs, dataset_metadata.load_episodes = dataset_metadata.load_episodes, _episodes
        try:
            super().__init__(*arguments, **settings)
        finally:
            dataset_metadata.load_episodes = theirs
        self.stored: dict[str, str] = {}
        self.sizes: dict[str, tuple[int, int]] = {}

    @property
    def changes(self) -> list[str]:
        """Names and sizes that are others than those in the files; they go into the names of caches."""
        names = [f"{key}={stored}" for key, stored in sorted(self.stored.items()) if key != stored]
        return names + [f"{key}={height}x{width}" for key, (height, width) in sorted(self.sizes.items())]


def _episodes(root: Path) -> Dataset:
    """The table of episodes without their statistics.

    LeRobot's own function reads these hundreds of columns first, and drops them then: ten times as slow.
    """
    files = sorted((root / EPISODES_DIR).glob("*/*.parquet"))
    columns = [name for name in pq.read_schema(files[0]).names if not name.startswith("stats/")]
    with SuppressProgressBars():
        return Dataset.from_parquet([str(file) for file in files], columns=columns)
