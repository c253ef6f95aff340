from collections.abc import Generator

import pytest
from tests.vlm import table


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note what the conformance suite finds of each family."""
    report = yield
    test = getattr(item, "originalname", "")
    if test in table.COLUMNS and (report.when == "call" or report.failed):
        table.record(test, item.callspec.params["family"], report.passed)  # type: ignore[attr-defined]
    return report
