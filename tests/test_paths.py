"""A name that somebody else wrote into a file does not lead out of the folder that it is about."""

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from apprentice.common.errors import UserError
from apprentice.common.files import inside
from apprentice.evaluate.results import Evaluation, read_episodes
from apprentice.offline import pack, parts

EPISODE: dict[str, Any] = dict.fromkeys(("task", "instructed", "init_state", "steps"), 0)
EPISODE |= dict.fromkeys(("seconds", "reset_seconds", "policy_seconds", "render_seconds", "physics_seconds"), 1)
EPISODE |= {"policy": "a", "checkpoint": "b", "conditions": "c", "suite": "d", "instruction": "go"}
EPISODE |= {"success": True, "instructed_success": True, "video": None}


def test_a_name_from_a_file_stays_inside_its_folder(tmp_path: Path) -> None:
    home, secret = tmp_path / "home", tmp_path / "secret.mp4"
    (home / "videos").mkdir(parents=True)
    secret.write_text("")
    (home / "videos" / "link.mp4").symlink_to(secret)
    (home / "up").symlink_to(tmp_path)
    assert inside(home, "videos/a.mp4", "info.json") == home / "videos" / "a.mp4"
    outside = ("../secret.mp4", str(secret), "videos/../../secret.mp4", "videos/link.mp4", "up/secret.mp4", "..", ".")
    for name in (*outside, "", None, 3, ["a"], "a\0b", "a" * 5000, "\ud800"):
        with pytest.raises(UserError, match=r"info\.json"):
            inside(home, name, "info.json")


def test_a_folder_that_is_itself_a_link_is_as_good_as_another(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "a.mp4").write_text("")
    (tmp_path / "videos").symlink_to(tmp_path / "disk")
    assert inside(tmp_path / "videos", "a.mp4", "episodes.jsonl").is_file()


def test_a_snapshot_of_the_hub_links_to_its_blobs(tmp_path: Path) -> None:
    blob, snapshot = tmp_path / "blobs" / "5eed", tmp_path / "snapshots" / "main"
    for folder in (blob.parent, snapshot):
        folder.mkdir(parents=True)
    blob.write_text("")
    (snapshot / "config.json").symlink_to("../../blobs/5eed")
    assert inside(snapshot, "config.json", "index.json").is_file()


def evaluation(folder: Path, **fields: Any) -> Evaluation:
    """An evaluation of one episode; what else stands in its folder does not matter here."""
    (folder / "episodes.jsonl").write_text(json.dumps(EPISODE | fields) + "\n")
    return Evaluation(folder, None, {}, read_episodes(folder / "episodes.jsonl"))  # type: ignore[arg-type]


def test_a_film_or_a_trace_of_an_episode_lies_in_its_folder(tmp_path: Path) -> None:
    folder, secret = tmp_path / "evaluation", tmp_path / "secret"
    (folder / "videos").mkdir(parents=True)
    (folder / "videos" / "film.mp4").touch()
    (folder / "videos" / "link.mp4").symlink_to(secret)
    secret.touch()
    assert evaluation(folder).file("videos", None) is None
    assert evaluation(folder).file("videos", "gone.mp4") is None
    found = evaluation(folder, video="film.mp4")
    assert found.file("videos", found.episodes[0].video) == folder / "videos" / "film.mp4"
    for name in ("../../secret", str(secret), "link.mp4"):
        for kind in ("videos", "traces"):
            if (kind, name) != ("traces", "link.mp4"):
                with pytest.raises(UserError, match=r"expected in .*episodes\.jsonl the name of a file inside"):
                    evaluation(folder).file(kind, name)


def listed(folder: Path, content: bytes, name: str, files: int = 1) -> None:
    digest = hashlib.sha256(content).hexdigest()
    part = {"name": name, "bytes": len(content), "sha256": digest}
    (folder / "parts.json").write_text(json.dumps({"parts": [part], "files": files}))


def test_parts_lie_beside_their_list_and_put_nothing_elsewhere(tmp_path: Path) -> None:
    folder, stream = tmp_path / "parts", io.BytesIO()
    folder.mkdir()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("../escaped"))
    for place in (folder / "part-000", tmp_path / "elsewhere"):
        place.write_bytes(stream.getvalue())
    listed(folder, stream.getvalue(), "part-000")
    with pytest.raises(UserError, match=r"expected files of one folder in .*escaped"):
        parts.join(folder, tmp_path / "whole")
    for name in ("../elsewhere", str(tmp_path / "elsewhere")):
        listed(folder, stream.getvalue(), name)
        with pytest.raises(UserError, match=r"found ValueError.*elsewhere"):
            parts.join(folder, tmp_path / "whole")
    for content in ("[]", '{"parts": [{}]}', '{"parts": 3}'):
        (folder / "parts.json").write_text(content)
        with pytest.raises(UserError, match=r"parts\.json, found"):
            parts.join(folder, tmp_path / "whole")
    assert not (tmp_path / "escaped").exists() and not (tmp_path / "whole").exists()


def test_a_link_does_not_take_another_file_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_text("secret")
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "notes").write_text("mine")
    (tmp_path / "disk" / "same").symlink_to("notes")
    (tmp_path / "checkpoint").symlink_to(tmp_path / "disk")
    parts.split(tmp_path / "checkpoint", tmp_path / "parts")
    monkeypatch.chdir(tmp_path)
    pack.pack(["checkpoint"], "packed", wheels=())
    (tmp_path / "disk" / "notes.txt").symlink_to(tmp_path / "key")
    with pytest.raises(UserError, match=r"found .*notes\.txt, a link to .*key"):
        parts.split(tmp_path / "checkpoint", tmp_path / "other parts")
    with pytest.raises(UserError, match=r"found .*notes\.txt, a link to .*key"):
        pack.pack(["checkpoint"], "packed again", wheels=())
