"""The wheel holds the arm: setuptools takes all that the model of the arm names, and its licence."""

import re
from pathlib import Path

import pytest
from setuptools import Distribution

ROOT = Path(__file__).parents[3]
PACKAGE = "apprentice.simulators.so101.simulator"
FOLDER = ROOT / "src" / PACKAGE.replace(".", "/")


def test_the_wheel_holds_the_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    distribution = Distribution()
    distribution.parse_config_files()
    build = distribution.get_command_obj("build_py")
    build.ensure_finalized()
    build.manifest_files = {}  # no files beside those that pyproject.toml names
    assert PACKAGE in build.packages
    packed = {Path(file).name for file in build.find_data_files(PACKAGE, str(FOLDER))}
    assert packed == {file.name for file in (FOLDER / "arm").iterdir()}
    meshes = set(re.findall(r'file="([^"]+)"', (FOLDER / "arm" / "so101.xml").read_text()))
    assert len(meshes) > 10 and {*meshes, "LICENSE", "PROVENANCE.md", "so101.xml"} <= packed
