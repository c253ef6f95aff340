"""The table of what works with which family of VLMs, from the conformance suite's results.

python -m tests.vlm.table     runs the suite; writes docs/families.md
"""

from pathlib import Path

import pytest

SUITE = Path(__file__).with_name("test_families.py")
PAGE = Path(__file__).parents[2] / "docs" / "families.md"
COLUMNS = {
    "test_loads": "loads",
    "test_untouched": "untouched",
    "test_images": "image tokens once",
    "test_split": "split equal",
    "test_cached_prefix": "prefix on disk",
    "test_history": "history carried",
    "test_align_step": "align step",
    "test_finetune_step": "fine-tune step",
    "test_history_step": "both with history",
    "test_lora": "LoRA",
    "test_checkpoint": "checkpoint round trip",
}
TEXT = """# Families of vision-language models

`python -m tests.vlm.table` writes this page from the results of `tests/vlm/test_families.py`. The tests use tiny random
weights and the real classes of model and processor. [Adding a family](adding-a-vlm.md) says how to add a row.

{table}

- **untouched**: the student's VLM has the same class and the same names of weights. Its logits and greedy answers equal
  those of the model alone, bit for bit.
- **image tokens once**: image tokens are computed beforehand. They enter the prompt as the model itself merges them,
  for one and two images.
- **split equal**: prefix, key-value cache and suffix give the result of one whole pass to 1e-4, gradients included. The
  prompts differ in length and are padded on either side.
- **prefix on disk**: the keys and values of the prompt are kept while aligning. If layers have a sliding window, they
  are kept only if the prompt fits into the window. Otherwise they are computed again in each step.
- **history carried**: the steps of a history are turns of a chat. Keys and values are carried from each turn to the
  next. The result equals one pass over all turns to 1e-4, for prompts and histories of different lengths. The chat
  equals the family's own, token by token. PaliGemma has no chat template. There turns just follow each other. The
  images and text of a turn see one another and all turns before.
- **LoRA**: LeRobot's `--peft.*` with PEFT.
"""

results: dict[tuple[str, str], bool] = {}  # (family, test): whether all of its cases passed


def record(test: str, family: str, passed: bool) -> None:
    """Note the outcome of one case."""
    results[family, test] = results.get((family, test), True) and passed


def page() -> str:
    """The page that the results make."""
    families = dict.fromkeys(family for family, _ in results)
    lines = ["| family | " + " | ".join(COLUMNS.values()) + " |", "| --- |" + " :-: |" * len(COLUMNS)]
    for family in families:
        cells = ["yes" if results[family, test] else "**no**" for test in COLUMNS]
        lines.append(f"| {family} | " + " | ".join(cells) + " |")
    return TEXT.format(table="\n".join(lines))


def main() -> None:
    """Run the suite; write the page."""
    from tests.vlm import table  # the module that conftest.py records into, which is not this one

    pytest.main([str(SUITE), "--deselect", f"{SUITE}::test_the_committed_table_is_what_was_found"])
    PAGE.write_text(table.page())


if __name__ == "__main__":
    main()
