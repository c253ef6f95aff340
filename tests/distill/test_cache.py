"""Caches: what a kill and a full disk do to them."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from apprentice.distill.cache import Rows
from apprentice.errors import UserError


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rows:
    monkeypatch.setenv("APPRENTICE_CACHE", str(tmp_path))
    return Rows("test", 10, (2, 3), torch.bfloat16)


def batches(values: torch.Tensor, start: int, stop: int = 10) -> Iterator[torch.Tensor]:
    for first in range(start, stop, 4):
        yield values[first : min(first + 4, stop)]


def test_goes_on_after_a_torn_write(rows: Rows) -> None:
    values = torch.randn(10, 2, 3).bfloat16()
    rows.path.parent.mkdir(parents=True)
    rows.partial.write_bytes(values[:4].view(torch.uint8).numpy().tobytes() + b"torn")
    assert rows.done() == 4
    rows.fill(batches(values, 4), "test")
    assert torch.equal(rows[np.array([9, 0, 5])], values[[9, 0, 5]]) and rows.done() == 10


def test_full_disk_is_an_error_that_says_what_to_do(rows: Rows) -> None:
    rows.path.parent.mkdir(parents=True)
    rows.partial.symlink_to("/dev/full")
    rows.done = lambda: 0  # type: ignore[method-assign]  # a device has no length to cut
    with pytest.raises(UserError, match="full disk; fix: free some, or set APPRENTICE_CACHE"):
        rows.fill(batches(torch.randn(10, 2, 3), 0), "test")
