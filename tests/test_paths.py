"""A name that somebody else wrote into a file does not lead out of the folder that it is about."""

from pathlib import Path

import pytest

from apprentice.errors import UserError
from apprentice.files import inside


def test_a_name_from_a_file_stays_inside_its_folder(tmp_path: Path) -> None:
    home, secret = tmp_path / "home", tmp_path / "secret.mp4"
    (home / "videos").mkdir(parents=True)
    secret.write_text("")
    (home / "videos" / "link.mp4").symlink_to(secret)
    (home / "up").symlink_to(tmp_path)
    assert inside(home, "videos/a.mp4", "info.json") == home / "videos" / "a.mp4"
    outside = ("../secret.mp4", str(secret), "videos/../../secret.mp4", "videos/link.mp4", "up/secret.mp4", "..", ".")
    for name in (*outside, "", None, 3, ["a"], "a\0b"):
        with pytest.raises(UserError, match="info.json"):
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
