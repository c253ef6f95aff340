"""Finished episodes become a dataset: the same files each time."""

from pathlib import Path

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from tests.support import CAMERAS

from apprentice.data.contract import Contract
from apprentice.simulators.base import simulator_of
from apprentice.simulators.collection.dataset import assemble


def test_images_are_kept_as_they_are_and_make_the_same_file_each_time(tmp_path: Path) -> None:
    robot, rng = simulator_of("libero_goal").demonstrator(), np.random.default_rng(0)
    contract = Contract(cameras=CAMERAS, image_size=(16, 16), fps=20)
    columns = {camera: rng.integers(0, 256, (5, 16, 16, 3), np.uint8) for camera in CAMERAS}
    for name, width in {
        "observation.state": len(robot.state_names),
        "action": len(robot.action_names),
        "executed": len(robot.action_names),
    }.items():
        columns[name] = rng.standard_normal((5, width), np.float32)
    np.savez(tmp_path / "episode.npz", **columns)
    files = []
    for root in (tmp_path / "first", tmp_path / "second"):
        assemble([(tmp_path / "episode.npz", "push the plate")] * 2, root, contract, robot, images=True, longest=5)
        files.append({path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()})
    assert files[0] == files[1]
    frame = LeRobotDataset("local/first", root=tmp_path / "first")[7]  # the third of the second episode
    for camera in CAMERAS:
        np.testing.assert_array_equal((frame[camera] * 255).round().byte().permute(1, 2, 0).numpy(), columns[camera][2])
