import shutil

import pytest
from example_evaluation import CHANGED, write_evaluation, write_run
from selenium import webdriver
from selenium.webdriver.chrome.service import Service


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Keyword arguments for `write_report`, apart from `out`."""
    root = tmp_path_factory.mktemp("runs")
    for name in ("evaluation", "probe", "swap"):
        (root / name).mkdir()
    probe_fails = {"two-stage": {1: [0, 1, 6], 8: [5]}, "only-ft": {1: [2, 3, 4, 5, 6, 7, 8], 8: [0, 1, 2, 3]}}
    return {
        "evaluation": write_evaluation(root / "evaluation", probes=("plain", *CHANGED)),
        "probe": [write_evaluation(root / "probe", instructed=((1, 8), (8, 1)), fails=probe_fails)],
        "variants": [write_evaluation(root / "swap", suite="libero_goal_swap")],
        "runs": {
            "align": write_run(root / "align", "align", 254.0, 0.02, 412_000),
            "two-stage": write_run(root / "two-stage", "finetune", 402.0, 0.012, 7_700_000),
            "only-ft": write_run(root / "only-ft", "finetune", 655.0, 0.014, 7_700_000),
        },
    }


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """Headless Chromium."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no Chromium here: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
        "disable-component-update", "disable-sync", f"user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    window = webdriver.Chrome(options, Service(driver))
    yield window
    window.quit()
