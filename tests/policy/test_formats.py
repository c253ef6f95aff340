"""Datasets as they are published: v3.0 trains as it is; v2.1 is refused, with a command that converts it."""

import json
import runpy
import shlex
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from lerobot.datasets.utils import BackwardCompatibilityError
from tests.support import CAMERAS, TASKS, call, make_dataset, train

from apprentice.cli import main
from apprentice.data.dataset import column, frames, instructions, open_dataset


@pytest.fixture(scope="module", params=["video", "image"])
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """No contract, a file an episode, and names of columns in groups, as in the public LIBERO datasets."""
    root = tmp_path_factory.mktemp("published") / request.param
    make_dataset(root, video=request.param == "video", file_mb=1e-4)
    (root / "meta" / "contract.json").unlink()
    info = json.loads((root / "meta" / "info.json").read_text())
    for key in ("observation.state", "action"):
        info["features"][key]["names"] = {"motors": info["features"][key]["names"]}
    (root / "meta" / "info.json").write_text(json.dumps(info))
    assert len(list(root.glob("data/*/*.parquet"))) == 3
    return root


def test_v30_trains_as_it_is(published: Path, small_expert: Path, small_vlm: Path, tmp_path: Path) -> None:
    seer = train(published, tmp_path / "seer", "--policy.type=seer", "--steps=1")
    assert (seer / "model.safetensors").exists()
    parts = [f"--policy.vlm={small_vlm}", f"--policy.expert={small_expert}"]
    student = train(published, tmp_path / "student", "--policy.type=apprentice", *parts, "--steps=1")
    assert (student / "model.safetensors").exists()
    ours = ["--vlm", str(small_vlm), "--expert", str(seer), "--dataset", str(published), "--out", str(tmp_path / "out")]
    assert main(["align", *ours, "--steps", "1", "--batch-size", "4"]) == 0
    assert (tmp_path / "out" / "checkpoint" / "model.safetensors").exists()


def old(root: Path, new: Path) -> Path:
    """The dataset `new`, of one image file an episode, in the format v2.1."""
    dataset = open_dataset(new)
    meta = dataset.meta
    (root / "meta").mkdir(parents=True)
    (root / "data" / "chunk-000").mkdir(parents=True)
    rows = {"tasks": [], "episodes": [], "episodes_stats": []}  # type: dict[str, list[dict]]
    for task, index in meta.tasks["task_index"].items():
        rows["tasks"].append({"task_index": int(index), "task": str(task)})
    for number, episode in enumerate(meta.episodes):
        table = pq.read_table(new / meta.get_data_file_path(number))
        pq.write_table(table, root / "data" / "chunk-000" / f"episode_{number:06}.parquet")
        rows["episodes"].append({key: episode[key] for key in ("episode_index", "tasks", "length")})
        stats: dict[str, dict] = {}
        for key, value in episode.items():
            if key.startswith("stats/"):
                stats.setdefault(key.split("/")[1], {})[key.split("/")[2]] = np.asarray(value).tolist()
        rows["episodes_stats"].append({"episode_index": number, "stats": stats})
    for name, content in rows.items():
        (root / "meta" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    info = json.loads((new / "meta" / "info.json").read_text())
    info |= {"codebase_version": "v2.1", "total_chunks": 1, "total_videos": 0, "video_path": None}
    info["data_path"] = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    (root / "meta" / "info.json").write_text(json.dumps(info))
    return root


def test_v21_is_refused_with_the_command_that_converts_it(
    tmp_path: Path, small_expert: Path, small_vlm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = make_dataset(tmp_path / "new", video=False, file_mb=1e-4)
    root = old(tmp_path / "old", new)
    with pytest.raises(BackwardCompatibilityError, match="convert_dataset_v21_to_v30"):
        train(root, tmp_path / "seer", "--policy.type=seer")
    ours = [
        "--vlm",
        str(small_vlm),
        "--expert",
        str(small_expert),
        "--dataset",
        str(root),
        "--out",
        str(tmp_path / "o"),
    ]
    assert main(["align", *ours]) == 2
    message = capsys.readouterr().err.partition("found v2.1; fix: ")[2].strip()
    words = shlex.split(message)
    assert words[:3] == ["python", "-m", "lerobot.scripts.convert_dataset_v21_to_v30"]
    call(lambda: runpy.run_module(words[2], run_name="__main__"), *words[3:])
    before, after = open_dataset(new), open_dataset(root)
    np.testing.assert_array_equal(column(after, "action"), column(before, "action"))
    assert instructions(after) == instructions(before) and set(instructions(after)) == set(TASKS)
    for mine, wanted in zip(frames(after, CAMERAS[1]), frames(before, CAMERAS[1]), strict=True):
        np.testing.assert_array_equal(mine, wanted)
