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

Written by `python -m tests.vlm.table` from the results of `tests/vlm/test_families.py`: tiny random weights, the real
classes of model and processor. How to add one: [adding-a-vlm.md](adding-a-vlm.md).

{table}

- **untouched**: same class, same weights' names; logits and greedy answers bit-identical to the model's alone.
- **image tokens once**: those computed beforehand enter as the model itself merges them, for one and two images.
- **split equal**: prefix, key-value cache and suffix give the whole pass to 1e-4, gradients included, for unequal
  prompts padded on either side.
- **prefix on disk**: keys and values of the prompt are kept while aligning; where layers have a sliding window, only if
  the prompt fits into it, else they are computed again in each step.
- **history carried**: the steps of a history as turns of a chat, with keys and values carried from each to the next,
  give to 1e-4 what all of them in one pass give, for unequal prompts and histories of unequal length. Token by token
  the chat is the family's own; without a chat template (PaliGemma) turns just follow each other, and each turn's images
  and text see one another and all that was before.
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
