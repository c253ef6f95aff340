"""Our sequential reading of a dataset against LeRobot's own, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from tests.support import CAMERAS, make_dataset

from apprentice.common.errors import UserError
from apprentice.data.dataset import action_chunks, column, frames, instructions, open_dataset
from apprentice.data.items import observed


@pytest.mark.parametrize("video", [True, False])
def test_frames_and_columns_are_those_of_lerobot(tmp_path: Path, video: bool) -> None:
    root = make_dataset(tmp_path / "data", video=video)
    dataset = open_dataset(root)
    peer = LeRobotDataset("local/data", root=root, video_backend="pyav", return_uint8=True)
    ours = [np.stack(list(frames(dataset, camera))) for camera in CAMERAS]
    state, names = column(dataset, "observation.state"), instructions(dataset)
    assert len(ours[0]) == len(peer) == 36
    for index in range(0, 36, 5):
        item = peer[index]
        for camera, images in zip(CAMERAS, ours, strict=True):
            theirs = item[camera] if item[camera].dtype == torch.uint8 else (item[camera] * 255).round()
            np.testing.assert_array_equal(images[index], theirs.permute(1, 2, 0).numpy())
        np.testing.assert_array_equal(state[index], item["observation.state"])
        assert names[index] == item["task"]
    np.testing.assert_array_equal(next(frames(dataset, CAMERAS[0], start=17)), ours[0][17])


@pytest.mark.parametrize("window", [(0, 4), (-2, 3)])
def test_action_chunks_are_those_of_lerobot(small_dataset: Path, window: tuple[int, int]) -> None:
    chunks, pad = action_chunks(open_dataset(small_dataset), range(*window))
    deltas = {"action": [k / 20 for k in range(*window)]}
    peer = LeRobotDataset("local/small", root=small_dataset, delta_timestamps=deltas, video_backend="pyav")
    for index in (0, 1, 8, 9, 10, 11, 12, 35):
        item = peer[index]
        np.testing.assert_array_equal(chunks[index], item["action"])
        np.testing.assert_array_equal(pad[index], item["action_is_pad"])


@pytest.mark.parametrize(("every", "start"), [(1, 0), (1, 12), (3, 4)])
def test_the_past_is_that_of_lerobot(small_dataset: Path, every: int, start: int) -> None:
    dataset = open_dataset(small_dataset)
    deltas = {key: [-0.1, -0.05, 0.0] for key in (*CAMERAS, "observation.state")}
    peer = LeRobotDataset(
        "local/small", root=small_dataset, delta_timestamps=deltas, video_backend="pyav", return_uint8=True
    )
    index = np.arange(start * every, 36, every)
    items = observed(dataset, 3)
    batches = [items.batch(part) for part in np.array_split(index, -(-len(index) // 5))]
    assert sum(len(batch["task"]) for batch in batches) == len(index)
    for key in deltas:
        ours = torch.cat([batch[key] for batch in batches])
        theirs = torch.stack([peer[i][key] for i in index])
        assert torch.equal(ours, theirs if ours.dtype == theirs.dtype else (theirs * 255).round().to(torch.uint8))
        few = np.array([0, 1, len(index) - 1])
        assert torch.equal(items.batch(index[few])[key], ours[few])


def test_no_dataset_and_an_old_one_are_refused(small_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected a LeRobotDataset in .*nowhere"):
        open_dataset(tmp_path / "nowhere")
    old = Path(shutil.copytree(small_dataset, tmp_path / "old"))
    info = json.loads((old / "meta" / "info.json").read_text())
    (old / "meta" / "info.json").write_text(json.dumps(info | {"codebase_version": "v2.1"}))
    with pytest.raises(UserError, match=r"found v2\.1; fix: .*convert_dataset"):
        open_dataset(old)


def test_a_damaged_video_is_named(damaged_dataset: Path) -> None:
    with pytest.raises(UserError, match=r"expected a frame at 0\.550 s in .*file-000\.mp4, found none"):
        list(frames(open_dataset(damaged_dataset), CAMERAS[0]))
