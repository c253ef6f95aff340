"""Whatever is wrong with a dataset's files or numbers is named, with the fix, before LeRobot or the hub are asked."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pandas as pd
import pytest
from tests.support import CAMERAS, make_dataset

from apprentice.common.errors import UserError
from apprentice.data.dataset import instructions, open_dataset

VIDEO = f"videos/{CAMERAS[0]}/chunk-000/file-000.mp4"
TABLE, TASKS = "data/chunk-000/file-000.parquet", "meta/tasks.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 123456\n"

Change = Callable[[Path], Any]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos, three episodes of 11, 12 and 13 frames."""
    return make_dataset(tmp_path_factory.mktemp("data") / "whole")


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def edit_info(change: Callable[[dict[str, Any]], Any]) -> Change:
    def edit(root: Path) -> None:
        path = root / "meta" / "info.json"
        info = json.loads(path.read_text())
        change(info)
        path.write_text(json.dumps(info))

    return edit


def edit_table(file: str, change: Callable[[pd.DataFrame], Any]) -> Change:
    def edit(root: Path) -> None:
        table = pd.read_parquet(root / file)
        changed = change(table)
        (table if changed is None else changed).to_parquet(root / file)

    return edit


def lose(file: str) -> Change:
    return lambda root: (root / file).unlink()


def cut(file: str) -> Change:
    return lambda root: (root / file).write_bytes((root / file).read_bytes()[:-400])


def put(file: str, text: str) -> Change:
    return lambda root: (root / file).write_text(text)


def set_cell(key: str, frame: int, value: float) -> Change:
    def change(table: pd.DataFrame) -> None:
        row = table[key][frame].copy()
        row[2] = value
        table.at[frame, key] = row

    return edit_table(TABLE, change)


def path_of(pattern: Any) -> Change:
    return edit_info(lambda info: info.update(video_path=pattern))


DAMAGES: dict[str, tuple[Change, str]] = {
    "a lost video": (lose(VIDEO), rf"expected the file .*{VIDEO}, found: No such file"),
    "a lost table": (lose(TABLE), rf"expected the file .*{TABLE}, found: No such file"),
    "lost tasks": (lose(TASKS), rf"expected the file .*{TASKS}, found: No such file"),
    "lost episodes": (lose(EPISODES), r"expected tables in .*meta/episodes/\*/, found none"),
    "a video that is a pointer": (put(VIDEO, POINTER), r"file-000\.mp4, found a pointer of Git LFS; fix: git lfs pull"),
    "a table that is a pointer": (put(TABLE, POINTER), r"parquet, found a pointer of Git LFS; fix: git lfs pull"),
    "info that is a pointer": (put("meta/info.json", POINTER), r"info\.json, found a pointer of Git LFS"),
    "an empty video": (put(VIDEO, ""), r"file-000\.mp4, found an empty file"),
    "a video cut off": (cut(VIDEO), rf"expected a video in .*{VIDEO}, found that its end is cut off"),
    "a table cut off": (cut(TABLE), rf"expected a table \(parquet\) in .*{TABLE}, found: "),
    "episodes cut off": (cut(EPISODES), rf"expected a table \(parquet\) in .*{EPISODES}, found: "),
    "tasks cut off": (cut(TASKS), rf"expected a table \(parquet\) in .*{TASKS}, found: "),
    "text for a video": (put(VIDEO, "not a video at all"), rf"expected a video in .*{VIDEO}, found: "),
    "info cut off": (put("meta/info.json", '{"codebase_version": "v3.0"'), r"expected JSON in .*info\.json, found: "),
    "info that is a list": (put("meta/info.json", "[]"), r"expected a JSON object in .*info\.json, found list"),
    "stats cut off": (put("meta/stats.json", '{"action": '), r"expected JSON in .*stats\.json.*fix: remove it"),
    "no features": (edit_info(lambda info: info.pop("features")), r"info\.json, found features None"),
    "features as a list": (edit_info(lambda info: info.update(features=[1])), r"found features \[1\]"),
    "a feature without shape": (
        edit_info(lambda info: info["features"]["action"].pop("shape")),
        r"found the feature action \{",
    ),
    "no frames a second": (edit_info(lambda info: info.update(fps="x")), r"found fps 'x'"),
    "zero frames a second": (edit_info(lambda info: info.update(fps=0)), r"found fps 0"),
    "no episodes": (edit_info(lambda info: info.update(total_episodes=0)), r"found total_episodes 0"),
    "more episodes": (edit_info(lambda info: info.update(total_episodes=4)), r"found 3 of 4 episodes"),
    "more frames": (edit_info(lambda info: info.update(total_frames=40)), r"found 36 frames, and 40 in meta/info"),
    "pictures of another size": (
        edit_info(lambda info: info["features"][CAMERAS[0]].update(shape=[48, 64, 3])),
        r"expected pictures of 48 x 64 px .*found 64 x 64; fix: correct the shape",
    ),
    "a path to the root": (path_of("/etc/{video_key}"), r"expected files inside .*found /etc/"),
    "a path upwards": (
        path_of("videos/../../{video_key}/{file_index}.mp4"),
        r"expected files inside .*found videos/\.\.",
    ),
    "a path with attributes": (path_of("{video_key.__class__}"), r"expected in .*info\.json a video_path of"),
    "a path of a gigabyte": (path_of("{chunk_index:0999999999d}"), r"expected in .*info\.json a video_path of"),
    "no path": (path_of(None), r"expected in .*info\.json a video_path of"),
    "rows that belong to no episode": (
        edit_table(EPISODES, lambda table: table.assign(dataset_from_index=[0, 12, 24])),
        r"found frames before or in episode 1 that belong to none",
    ),
    "a stranger's table": (
        lambda root: shutil.copy(root / TABLE, root / "data/chunk-000/file-007.parquet"),
        r"expected files of episodes alone in .*data, found .*file-007\.parquet; fix: remove it",
    ),
    "fewer rows": (edit_table(TABLE, lambda table: table.iloc[:-1]), r"expected 36 frames in the tables .*, found 35"),
    "rows in another order": (
        edit_table(TABLE, lambda table: table.iloc[::-1]),
        r"order of the episodes, found episode 2",
    ),
    "a lost column": (edit_table(TABLE, lambda table: table.drop(columns="action")), r"found no column action"),
    "nan in a state": (
        set_cell("observation.state", 15, np.nan),
        r"finite numbers in observation\.state of .*copy, found nan in column 2 at frame 4 of episode 1; fix: .*\[1\]",
    ),
    "infinity in an action": (
        set_cell("action", 0, -np.inf),
        r"in action .*found -inf in column 2 at frame 0 of episode 0",
    ),
    "no time": (
        edit_table(TABLE, lambda table: table.assign(timestamp=np.float32(np.nan))),
        r"finite numbers in timestamp .*and in 35 more frames",
    ),
    "milliseconds": (
        edit_table(TABLE, lambda table: table.assign(timestamp=table["timestamp"] * 1000)),
        r"expected timestamps of 0 to 0\.550 s, .*found 50\.000 at frame 1 of episode 0; fix: write timestamps in sec",
    ),
    "an instruction that is lost": (
        edit_table(TASKS, lambda table: table.iloc[:1]),
        r"an instruction for each task_index .*found none for 1, which frame 0 of episode 1 has",
    ),
    "numbers for instructions": (
        edit_table(TASKS, lambda table: table.reset_index(drop=True)),
        r"expected instructions and their numbers .*tasks\.parquet, found the columns",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_and_the_hub_is_not_asked(copy: Path, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.utils._http, "http_backoff", lambda *a, **k: asked.append(a))
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    change, message = DAMAGES[damage]
    change(copy)
    after = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert before != after
    with pytest.raises(UserError, match=message) as error:
        open_dataset(copy)
    text = str(error.value)
    assert "fix:" in text and "http" not in text and "huggingface" not in text and not asked
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == after


def test_what_lerobot_still_misses_is_not_fetched(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if a file is lost between our check and LeRobot's."""
    monkeypatch.setattr("apprentice.data.dataset.check_files", lambda folder: lose(VIDEO)(folder))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(UserError, match=r"expected a dataset that LeRobot reads in .*found HFValidationError"):
        open_dataset(copy)
    assert not (copy / VIDEO).exists()


def test_a_folder_that_is_missing_stays_missing_and_no_address_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected a LeRobotDataset in .*pusht, found no meta/info\.json") as error:
        open_dataset(tmp_path / "lerobot" / "pusht")
    assert "http" not in str(error.value) and not (tmp_path / "lerobot").exists()


def test_instructions_in_a_column_and_in_any_order(copy: Path) -> None:
    wanted = instructions(open_dataset(copy))
    assert len(set(wanted)) == 2
    whole = (copy / TASKS).read_bytes()
    for change in (
        lambda table: table.iloc[::-1],
        lambda table: table.reset_index(names="task"),
        lambda table: table.iloc[::-1].reset_index(names="task"),
    ):
        (copy / TASKS).write_bytes(whole)
        edit_table(TASKS, change)(copy)
        dataset = open_dataset(copy)
        assert instructions(dataset) == wanted
        assert [dataset[frame]["task"] for frame in (0, 12)] == [wanted[0], wanted[12]]  # LeRobot's own items as well


def test_a_picture_that_is_damaged_is_named(tmp_path: Path) -> None:
    root = make_dataset(tmp_path / "data", video=False, episodes=1)
    change = edit_table(TABLE, lambda table: table.at[0, CAMERAS[1]].update(bytes=b"\x89PNG"))
    change(root)
    with pytest.raises(UserError, match=rf"expected a picture of {CAMERAS[1]} at frame 0 of .*data, found: "):
        open_dataset(root)
