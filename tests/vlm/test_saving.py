"""What is saved of a VLM does not tell where it was loaded from, or what was asked of it meanwhile."""

from pathlib import Path

from apprentice.vlm.base import VLM


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_saved_vlm_is_the_same_after_it_was_loaded_and_used(small_vlm: Path, tmp_path: Path) -> None:
    first = VLM.from_pretrained(str(small_vlm))
    first.processor.tokenizer(["put", "put the bowl"], padding=True, truncation=True, max_length=8)
    first.save_config(tmp_path / "first")
    again = VLM.from_config(tmp_path / "first")
    again.save_config(tmp_path / "again")
    assert files(tmp_path / "first") == files(tmp_path / "again")
