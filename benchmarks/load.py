"""Frames a second in random order, as training reads them: our items against `LeRobotDataset` as it comes.

    python benchmarks/load.py                    # about 2 minutes on a quiet core

Both are asked by PyTorch's DataLoader, in one process, for batches of 32 items: two cameras, state, 32 actions with
their padding, instruction. CPU seconds are counted, which a busy machine does not change; rounds alternate, and the
ratio is the median over them. Items are compared, tensor by tensor: LeRobot has images of an image dataset as floats,
ours are uint8, and become floats within the time that is measured. Of the demonstrations in `assets`, which are videos,
an image dataset (PNG) is made in a temporary folder.
Required: ratio at least 15 (image dataset).
"""

import argparse
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from rich.table import Table
from torch.utils.data import DataLoader, Dataset

from apprentice.common.progress import console
from apprentice.data.dataset import column, frames, instructions, open_dataset
from apprentice.data.items import Items

ROOT = Path(__file__).parents[1]
DEMONSTRATIONS, PATCH = ROOT / "assets/demonstrations/libero_goal", ROOT / "docs/upstream-lerobot.md"
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
    """Time of the processor to load batches."""
    loader = DataLoader(items, batch_sampler=batches)
    start = time.process_time()
    for _ in loader:
        pass
    return time.process_time() - start


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


def lerobot(root: Path) -> LeRobotDataset:
    """As `lerobot-train` opens it."""
    deltas = {"action": [step / 20 for step in range(CHUNK)]}
    return LeRobotDataset("local/peer", root=root, delta_timestamps=deltas, video_backend="pyav", return_uint8=True)


def patched(root: Path, scratch: Path) -> LeRobotDataset:
    """The same with the change that docs/upstream-lerobot.md offers, applied to a copy of the installed file."""
    dataset, name = lerobot(root), "lerobot.datasets.dataset_reader"
    file = scratch / f"src/{name.replace('.', '/')}.py"
    file.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(sys.modules[name].__file__, file)
    diff = PATCH.read_text().split("```diff\n")[1].split("```")[0]
    subprocess.run(["git", "apply", "-"], input=diff.encode(), cwd=scratch, check=True)
    spec = importlib.util.spec_from_file_location(f"{name}_patched", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    dataset.reader.__class__, dataset.reader._columns = module.DatasetReader, {}
    return dataset


def compare(peer: LeRobotDataset, items: Dataset[Any], rounds: int, more: int) -> np.ndarray:
    """Frames a second (rounds, 2), LeRobot's and ours; ours loads `more` batches for one of LeRobot's."""
    order = np.random.default_rng(0)
    for index in [0, len(peer) - 1, *order.permutation(len(peer))[:6].tolist()]:
        same(items[index], peer[index])
    rates = []
    for _ in range(rounds):
        batches = order.permutation(len(peer))[: more * BATCH].reshape(more, BATCH).tolist()
        rates.append((BATCH / seconds(peer, batches[:1]), more * BATCH / seconds(items, batches)))
    return np.array(rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=6, help="of the image dataset")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = Table("frames a second", "LeRobotDataset", "this", "ratio, median", "from", "to")
    ratios = {}
    with tempfile.TemporaryDirectory() as folder:
        datasets.config.HF_DATASETS_CACHE = Path(folder) / "tables"
        root = as_images(DEMONSTRATIONS, Path(folder) / "images", options.episodes)
        window, film = {"action": range(CHUNK)}, open_dataset(DEMONSTRATIONS)
        sides = {
            "ours, images (PNG) as floats": (root, Floats(open_dataset(root), window), 8),
            "ours, images left as uint8": (root, Items(open_dataset(root), window), 8),
            "LeRobotDataset with our patch": (root, patched(root, Path(folder)), 4),
            "ours, video (H.264, a key frame a second)": (DEMONSTRATIONS, Items(film, window), 2),
        }
        for name, (place, items, more) in sides.items():
            rates = compare(lerobot(place), items, options.rounds, more)
            ratio = rates[:, 1] / rates[:, 0]
            ratios[name] = float(np.median(ratio))
            spread = (ratios[name], ratio.min(), ratio.max())
            table.add_row(name, *(f"{v:.0f}" for v in np.median(rates, 0)), *(f"{v:.1f}" for v in spread))
    console.print(table)
    print("required: ratio at least 15 (images as floats)")
    print(f"ratio: {next(iter(ratios.values())):.2f}")


if __name__ == "__main__":
    main()
