"""Items, in order and in any, against LeRobot's own."""

import pickle
import subprocess
from pathlib import Path

import av
import lerobot.datasets.dataset_reader
import numpy as np
import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from tests.support import CAMERAS, make_dataset
from torch.utils.data import DataLoader

from apprentice.common.errors import UserError
from apprentice.data.dataset import open_dataset
from apprentice.data.images import Video
from apprentice.data.items import Items, observed

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("video", [True, False])
def test_items_are_those_of_lerobot(tmp_path: Path, video: bool) -> None:
    """In a process of the data loader, from several files, with windows that leave the episode on both sides."""
    root = make_dataset(tmp_path / "data", video=video, episodes=4, file_mb=0.001)
    assert not video or len(list(root.glob("videos/*/*/*.mp4"))) > len(CAMERAS)
    past = [-9, -1, 0]
    windows = {"action": list(range(-1, 9)), "observation.state": past, CAMERAS[1]: past}
    deltas = {key: [step / 20 for step in steps] for key, steps in windows.items()}
    peer = LeRobotDataset("local/data", root=root, delta_timestamps=deltas, video_backend="pyav", return_uint8=True)
    items = pickle.loads(pickle.dumps(Items(open_dataset(root), windows)))
    order = np.random.default_rng(0).permutation(len(peer)).tolist()
    sides = (DataLoader(data, 7, sampler=order, num_workers=workers) for data, workers in ((items, 1), (peer, 0)))
    batches = list(zip(*sides, strict=True))
    assert sum(len(ours["task"]) for ours, _ in batches) == len(items) == len(peer) == 50
    for ours, theirs in batches:
        assert ours.keys() == theirs.keys() and ours.pop("task") == theirs.pop("task")
        for key, value in theirs.items():
            if key in CAMERAS and not video:
                value = (value * 255).round().to(torch.uint8)
            assert ours[key].dtype == value.dtype and torch.equal(ours[key], value), key


@pytest.mark.parametrize("distance", [2, 12, 250])
def test_a_video_in_order_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distance: int) -> None:
    """However far apart key frames are, with the past too; then with gaps, backwards, and in a fork."""
    root = make_dataset(tmp_path / "data")
    for path in root.rglob("*.mp4"):
        with av.open(str(path)) as film:
            pictures = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
        with av.open(str(path), "w") as film:
            stream = film.add_stream("libx264", rate=20, options={"g": str(distance), "bf": "2", "sc_threshold": "0"})
            stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
            for picture in pictures:
                film.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            film.mux(stream.encode())
    with av.open(str(next((root / "videos" / CAMERAS[0]).rglob("*.mp4")))) as film:
        wanted = torch.stack([torch.from_numpy(f.to_ndarray(format="rgb24")) for f in film.decode(video=0)])
    wanted = wanted.permute(0, 3, 1, 2)
    searches, search = [], Video._search
    monkeypatch.setattr(Video, "_search", lambda film, time: searches.append(time) or search(film, time))
    items = observed(open_dataset(root), 3, [CAMERAS[0]])
    batches = [items.batch(part)[CAMERAS[0]] for part in np.array_split(np.arange(36), 5)]
    assert torch.equal(torch.cat(batches)[:, -1], wanted) and torch.equal(torch.cat(batches)[2:11, 0], wanted[:9])
    assert len(searches) == 1
    items = observed(open_dataset(root), keys=[CAMERAS[0]])
    for index in [*range(0, 36, 10), 35, 34, 3, 4]:
        assert torch.equal(items[index][CAMERAS[0]], wanted[index])
    forked = DataLoader(items, 4, sampler=[5, 35, 0, 20], num_workers=1, multiprocessing_context="fork")
    assert torch.equal(next(iter(forked))[CAMERAS[0]], wanted[[5, 35, 0, 20]])
    assert torch.equal(items[6][CAMERAS[0]], wanted[6])


def test_what_is_not_asked_for_is_not_read(small_dataset: Path) -> None:
    items = Items(open_dataset(small_dataset), {"action": [0, 1], "observation.state": [0]}, ["action", CAMERAS[0]])
    assert items[-1].keys() == {"action", "action_is_pad", CAMERAS[0], "task"}
    with pytest.raises(IndexError):
        items[36]


def test_a_damaged_video_is_named(small_dataset: Path, damaged_dataset: Path) -> None:
    items = Items(open_dataset(damaged_dataset), keys=[CAMERAS[0]])
    assert torch.equal(items[3][CAMERAS[0]], Items(open_dataset(small_dataset))[3][CAMERAS[0]])
    with pytest.raises(UserError, match=r"expected a frame at 1\.750 s in .*file-000\.mp4, found none"):
        items[35]


def test_the_upstream_patch_applies(tmp_path: Path) -> None:
    """What docs/upstream-lerobot.md offers fits the installed LeRobot."""
    diff = (DOCS / "upstream-lerobot.md").read_text().split("```diff\n")[1].split("```")[0]
    file = tmp_path / "src/lerobot/datasets/dataset_reader.py"
    file.parent.mkdir(parents=True)
    file.write_bytes(Path(lerobot.datasets.dataset_reader.__file__).read_bytes())
    subprocess.run(["git", "apply", "-"], input=diff.encode(), cwd=tmp_path, check=True)
    assert "_query_column" in file.read_text()
