"""Every expert can do what the table in docs/experts.md says, and the table says all of it."""

from pathlib import Path

import pytest
from tests.experts.conformance import CHECKS, Candidate, recorded
from tests.experts.zoo import ZOO

from apprentice.experts import EXPERTS


@pytest.fixture(scope="module", params=ZOO)
def candidate(
    request: pytest.FixtureRequest, small_dataset: Path, small_vlm: Path, tmp_path_factory: pytest.TempPathFactory
) -> Candidate:
    return Candidate(request.param, small_dataset, small_vlm, tmp_path_factory.mktemp("candidate"))


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> pytest.MonkeyPatch:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("APPRENTICE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield patch


@pytest.mark.parametrize("check", CHECKS)
def test_conforms(candidate: Candidate, check: str) -> None:
    CHECKS[check](candidate)
    assert recorded()[candidate.name][check] == "yes"


def test_the_table_is_complete() -> None:
    assert list(recorded()) == list(ZOO) and all(list(row) == list(CHECKS) for row in recorded().values())
    assert {name.split(",")[0] for name in ZOO} == set(EXPERTS)
