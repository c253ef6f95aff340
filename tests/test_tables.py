"""The README shows what the conformance suites found; that docs/ does too is tested beside the suites."""

from tests import tables


def test_the_readme_shows_what_the_suites_found() -> None:
    found = tables.BLOCK.search(tables.README.read_text())
    assert found and found[0] == tables.block(), "fix: python -m tests.tables"
