"""Each fault planted in a healthy dataset is found, by its name and alone; in the healthy one nothing is."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from PIL import Image

from apprentice.cli import main
from apprentice.common.errors import UserError
from apprentice.common.files import read_json, write_json
from apprentice.data.dataset import column, frames, open_dataset
from apprentice.simulators.libero.dataset.doctor import examine
from apprentice.simulators.libero.simulator import env as libero_env
from apprentice.simulators.libero.simulator.env import LiberoEnv
from apprentice.simulators.libero.simulator.suites import tasks

SHIPPED = Path("assets/demonstrations/libero_goal")
CAMERAS = ("observation.images.image", "observation.images.image2")
Plant = Callable[[dict[str, np.ndarray]], None]


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first of the demonstrations that we ship, its images as PNG: they are easier to spoil than a video."""
    source, root = open_dataset(SHIPPED), tmp_path_factory.mktemp("healthy") / "dataset"
    steps = int(source.meta.episodes["length"][0])
    names = ("observation.state", "action", "executed")
    features = {key: {**source.features[key], "dtype": "image"} for key in CAMERAS}
    features |= {key: source.features[key] for key in names}
    dataset = LeRobotDataset.create("local/one", 20, features, root=root, robot_type="panda", use_videos=False)
    columns, text = {key: column(source, key) for key in names}, tasks("libero_goal")[1].instruction
    for index, *images in zip(range(steps), *(frames(source, key) for key in CAMERAS), strict=False):
        vectors = {key: values[index] for key, values in columns.items()}
        dataset.add_frame(dict(zip(CAMERAS, images, strict=True)) | vectors | {"task": text})
    dataset.save_episode()
    dataset.finalize()
    shutil.copy(SHIPPED / "meta" / "contract.json", root / "meta")
    collection = read_json(SHIPPED / "meta" / "collection.json")
    seeds = {"seeds": collection["per_task"]["1"]["seeds"][:1]}
    write_json(root / "meta" / "collection.json", collection | {"tasks": [1], "per_task": {"1": seeds}})
    return root


@pytest.fixture(autouse=True)
def kept(monkeypatch: pytest.MonkeyPatch, in_this_process: Callable[[], None], fast: LiberoEnv) -> None:
    """Replay here, where there is an environment."""
    in_this_process()
    monkeypatch.setattr(libero_env, "_kept", [fast])


def spoilt(healthy: Path, root: Path, plant: Plant, published: bool) -> Path:
    """A copy with a fault; a published dataset has no seeds, no contract, and its actions are those executed."""
    shutil.copytree(healthy, root)
    (path,) = root.rglob("data/**/*.parquet")
    table = pq.read_table(path)
    columns = {key: np.stack(table[key].to_numpy()) for key in ("observation.state", "action", "executed")}
    columns |= {key: np.array([picture(cell) for cell in table[key].to_pylist()]) for key in CAMERAS}
    if published:
        columns["action"] = columns["executed"]
        for name in ("collection.json", "contract.json"):
            (root / "meta" / name).unlink()
    plant(columns)
    for key, values in columns.items():
        cells = [{"bytes": png(v), "path": None} for v in values] if key in CAMERAS else list(values)
        place = table.schema.get_field_index(key)
        table = table.set_column(place, table.schema.field(key), pa.array(cells, type=table.schema.field(key).type))
    pq.write_table(table, path)
    if published:
        drop(root, "executed")
    return root


def drop(root: Path, feature: str) -> None:
    (path,) = root.rglob("data/**/*.parquet")
    table = pq.read_table(path).drop_columns([feature])
    metadata = json.loads(table.schema.metadata[b"huggingface"])
    metadata["info"]["features"].pop(feature)
    pq.write_table(table.replace_schema_metadata({b"huggingface": json.dumps(metadata).encode()}), path)
    info = read_json(root / "meta" / "info.json")
    info["features"].pop(feature)
    write_json(root / "meta" / "info.json", info)


def picture(cell: dict[str, Any]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(cell["bytes"])))


def png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "png", compress_level=1)
    return stream.getvalue()


def nothing(columns: dict[str, np.ndarray]) -> None:
    pass


def rotated(columns: dict[str, np.ndarray]) -> None:
    for key in CAMERAS:
        columns[key] = np.ascontiguousarray(columns[key][:, ::-1, ::-1])


def swapped(columns: dict[str, np.ndarray]) -> None:
    columns[CAMERAS[0]], columns[CAMERAS[1]] = columns[CAMERAS[1]], columns[CAMERAS[0]]


def multiplied(*factors: float) -> Plant:
    def plant(columns: dict[str, np.ndarray]) -> None:
        for key in ("action", "executed"):
            columns[key] = columns[key] * np.array(factors, dtype=np.float32)

    return plant


def permuted(columns: dict[str, np.ndarray]) -> None:
    columns["observation.state"] = columns["observation.state"][:, [6, 7, 0, 1, 2, 3, 4, 5]]


def labels_halved(columns: dict[str, np.ndarray]) -> None:
    columns["action"] = columns["action"] * np.float32(0.5)


flipped, halved, doubled = multiplied(*[1] * 6, -1), multiplied(*[0.5] * 7), multiplied(*[2] * 7)


@pytest.mark.parametrize(
    ("plant", "published", "failing", "found"),
    [
        (nothing, True, None, ""),
        (rotated, True, "orientation", "the scene's camera is turned by 180 degrees"),
        (swapped, False, "cameras", "swapped"),
        (flipped, False, "gripper", "flipped"),
        (flipped, True, "gripper", "flipped"),
        (halved, False, "actions", "scaled by 0.5"),
        (labels_halved, False, "actions", "scaled by 0.5"),
        (doubled, True, "actions", "scaled by 2"),
        (permuted, True, "state", "columns 2 3 4 5 6 7 0 1"),
    ],
)
def test_a_planted_fault_is_named(
    plant: Plant, published: bool, failing: str | None, found: str, healthy: Path, tmp_path: Path
) -> None:
    checks = examine(spoilt(healthy, tmp_path / "spoilt", plant, published), 1, 1)
    failed = {check.name: check.found for check in checks if not check.passed}
    assert list(failed) == [failing] * (failing is not None), failed
    assert found in failed.get(failing or "", "")


def test_a_healthy_dataset_passes_and_another_mujoco_does_not(
    healthy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", str(healthy), "--episodes", "1"]) == 0
    other = shutil.copytree(healthy, tmp_path / "other")
    contract = read_json(other / "meta" / "contract.json")
    contract["versions"]["mujoco"] = "3.4.0"
    write_json(other / "meta" / "contract.json", contract)
    capsys.readouterr()
    assert main(["doctor", str(other), "--episodes", "1"]) == 1
    assert "3.4.0" in capsys.readouterr().out


def test_a_simulator_that_drifted_fails_the_replay_alone(healthy: Path, fast: LiberoEnv) -> None:
    friction = fast.model.geom_friction.copy()
    try:
        fast.model.geom_friction[:, 0] = 0.02
        failed = [check for check in examine(healthy, 1, 1) if not check.passed]
    finally:
        fast.model.geom_friction[:] = friction
    assert [check.name for check in failed] == ["replay"] and "0 of 1 succeed" in failed[0].found


def test_what_cannot_be_replayed_is_said(healthy: Path, tmp_path: Path) -> None:
    other = shutil.copytree(healthy, tmp_path / "other")
    (other / "meta" / "collection.json").unlink()
    (table,) = (other / "meta").glob("tasks.parquet")
    content = pq.read_table(table).to_pandas()
    content.index = ["put the bowl on the moon"]
    content.index.name = "task"
    content.to_parquet(table)
    with pytest.raises(UserError, match="put the bowl on the moon"):
        examine(other, 1, 1)
    drop(other, CAMERAS[1])
    with pytest.raises(UserError, match=CAMERAS[1]):
        examine(other, 1, 1)
