"""Frames a second in random order, as training reads them: our items against `LeRobotDataset` as it comes.

    python benchmarks/load.py                    # about 2 minutes on a quiet core

Both are asked by PyTorch's DataLoader, in one process, for the same batches: two cameras, state, 32 actions with their
padding, instruction. Rounds alternate; the ratio is the median over them. Items are compared, tensor by tensor: LeRobot
has images of an image dataset as floats, ours are uint8, and become floats within the time that is measured. Of the
demonstrations in `assets`, which are videos, an image dataset (PNG) is made in a temporary folder.
Required: ratio at least 15 (image dataset).
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

CACHE = tempfile.TemporaryDirectory()
os.environ["HF_DATASETS_CACHE"] = CACHE.name  # where `datasets` keeps the table of a dataset that is gone afterwards

import numpy as np
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from rich.table import Table
from torch.utils.data import DataLoader, Dataset

from apprentice.data.dataset import column, frames, instructions, open_dataset
from apprentice.data.items import Items
from apprentice.progress import console

DEMONSTRATIONS = Path(__file__).parents[1] / "assets/demonstrations/libero_goal"
CHUNK, BATCH = 32, 32


class Floats(Items):
    """With images as LeRobot has those of an image dataset: float32 in [0, 1]."""

    def batch(self, index: np.ndarray) -> dict[str, Any]:
        batch = super().batch(index)
        return batch | {key: batch[key].float().div(255) for key in self.images}


def as_images(source: Path, root: Path, episodes: int) -> Path:
    """A copy of a dataset's first episodes with its images as PNG."""
    film = open_dataset(source)
    features = {k: v for k, v in film.meta.features.items() if k.startswith("observation.") or k == "action"}
    features = {k: {**v, "dtype": "image" if v["dtype"] == "video" else v["dtype"]} for k, v in features.items()}
    copy = LeRobotDataset.create("local/images", film.fps, features, root=root, use_videos=False)
    cameras = film.meta.camera_keys
    streams = [frames(film, camera) for camera in cameras]
    columns = {key: column(film, key) for key in features if key not in cameras}
    task, index = instructions(film), 0
    for length in film.meta.episodes["length"][:episodes]:
        for _ in range(length):
            pictures = dict(zip(cameras, map(next, streams), strict=True))
            copy.add_frame({**{k: v[index] for k, v in columns.items()}, **pictures, "task": task[index]})
            index += 1
        copy.save_episode()
    copy.finalize()
    return root


def seconds(items: Dataset[Any], batches: list[list[int]]) -> float:
    """Time to load batches."""
    loader = DataLoader(items, batch_sampler=batches)
    start = time.perf_counter()
    for _ in loader:
        pass
    return time.perf_counter() - start


def same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Raises AssertionError unless both are the same item, whether images are uint8 or floats."""
    assert ours.keys() == theirs.keys(), ours.keys() ^ theirs.keys()
    for key, value in theirs.items():
        if isinstance(value, str):
            assert ours[key] == value, key
        else:
            pictured = ours[key].dtype == torch.uint8 and value.dtype == torch.float32
            mine = ours[key].float().div(255) if pictured else ours[key]
            assert mine.dtype == value.dtype and torch.equal(mine, value), key


def compare(root: Path, mine: type[Items], rounds: int, more: int) -> np.ndarray:
    """Frames a second (rounds, 2), LeRobot's and ours; ours loads `more` batches for one of LeRobot's."""
    dataset = open_dataset(root)
    deltas = {"action": [step / dataset.fps for step in range(CHUNK)]}
    peer = LeRobotDataset("local/peer", root=root, delta_timestamps=deltas, video_backend="pyav", return_uint8=True)
    items = mine(dataset, {"action": range(CHUNK)})
    order = np.random.default_rng(0)
    for index in order.permutation(len(items))[:12].tolist() + [0, len(items) - 1]:
        same(items[index], peer[index])
    rates = []
    for _ in range(rounds):
        batches = order.permutation(len(items))[: more * BATCH].reshape(more, BATCH).tolist()
        rates.append((BATCH / seconds(peer, batches[:1]), more * BATCH / seconds(items, batches)))
    return np.array(rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=6, help="of the image dataset")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = Table("frames a second, median", "LeRobotDataset", "ours", "ratio", "from", "to")
    ratios = {}
    with tempfile.TemporaryDirectory() as folder:
        root = as_images(DEMONSTRATIONS, Path(folder) / "images", options.episodes)
        sides = {
            "images (PNG), as floats": (root, Floats, 8),
            "images (PNG), left as uint8": (root, Items, 8),
            "video (H.264, a key frame each second)": (DEMONSTRATIONS, Items, 1),
        }
        for name, (place, mine, more) in sides.items():
            rates = compare(place, mine, options.rounds, more)
            ratio = rates[:, 1] / rates[:, 0]
            ratios[name] = float(np.median(ratio))
            spread = (ratios[name], ratio.min(), ratio.max())
            table.add_row(name, *(f"{v:.0f}" for v in np.median(rates, 0)), *(f"{v:.1f}" for v in spread))
    console.print(table)
    print("required: ratio at least 15 (images, as floats)")
    print(f"ratio: {next(iter(ratios.values())):.2f}")


if __name__ == "__main__":
    main()
