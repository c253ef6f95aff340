"""The README's tables of what works, cut from the pages in docs/ that the conformance suites write.

python -m tests.tables     runs both suites; writes docs/families.md, docs/experts.md and README.md
"""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
BLOCK = re.compile(r"(?<=<!-- python -m tests\.tables -->\n).*?(?=<!-- end of tables -->)", re.DOTALL)
# page: what the README shows of its columns
PAGES = {
    "families": ["loads", "untouched", "split equal", "align step", "fine-tune step", "LoRA", "checkpoint round trip"],
    "experts": ["decode(encode) is its own plan", "align", "fine-tune", "student runs without it"],
}


def rows(text: str) -> list[dict[str, str]]:
    """The first table of a page, each row by column."""
    lines = re.search(r"(?m)^\|.*\n(?:\|.*\n)+", text)
    assert lines, "no table"
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[0].splitlines()]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


def block() -> str:
    """What stands between the README's marks."""
    tables = []
    for page, columns in PAGES.items():
        table = rows((ROOT / "docs" / f"{page}.md").read_text())
        names = [next(iter(table[0])), *columns]
        lines = [names, ["---", *[":-:"] * len(columns)], *([row[name] for name in names] for row in table)]
        tables.append("\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")
    return "".join(tables) + "\n"


def write() -> None:
    """Put the tables of the pages into the README."""
    text, count = BLOCK.subn(lambda _: block(), README.read_text())
    assert count == 1, "the README has lost its marks"
    README.write_text(text)


def main() -> None:
    """Run both suites; write the pages and the README."""
    from tests.experts import conformance
    from tests.vlm import table

    table.main()
    conformance.write()


if __name__ == "__main__":
    main()
