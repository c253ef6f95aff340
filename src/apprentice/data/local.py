"""A LeRobotDataset in a folder of this machine, with other names and sizes than those in its files if need be."""

from typing import Any

from lerobot.datasets.lerobot_dataset import LeRobotDataset


class LocalDataset(LeRobotDataset):
    """What `open_dataset` opens.

    Attributes:
        stored: the names of features in the files, by those that they have here; of none if all are the same.
        sizes: height and width (px) in which a camera's pictures are read, if not in their own.
    """

    def __init__(self, *arguments: Any, **settings: Any):
        super().__init__(*arguments, **settings)
        self.stored: dict[str, str] = {}
        self.sizes: dict[str, tuple[int, int]] = {}

    @property
    def changes(self) -> list[str]:
        """Names and sizes that are others than those in the files; they go into the names of caches."""
        names = [f"{key}={stored}" for key, stored in sorted(self.stored.items()) if key != stored]
        return names + [f"{key}={height}x{width}" for key, (height, width) in sorted(self.sizes.items())]
