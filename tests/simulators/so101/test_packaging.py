"""The wheel holds the arm, with its licence; the script that made its meshes keeps their shape."""

import importlib.util
import re
from pathlib import Path

import numpy as np
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


def test_the_script_that_makes_the_arm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("so101_arm", ROOT / "scripts" / "so101_arm.py")
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr("sys.argv", ["so101_arm.py", str(tmp_path / "nothing"), "--out", str(tmp_path / "arm")])
    with pytest.raises(SystemExit):
        script.main()
    said = capsys.readouterr().err
    assert "expected the folder SO101_menagerie of the wheel so101-nexus 0.10.0, found no so101.xml" in said
    assert not (tmp_path / "arm").exists()

    corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 2)], np.float32) / 50
    turn = np.array([[1, 0, 0], [0, 0.8, -0.6], [0, 0.6, 0.8]], np.float32)
    around = corners @ turn.T + np.float32(0.1)
    script.write(tmp_path / "box.stl", around[[[0, 1, 3], [0, 2, 6], [0, 4, 5], [7, 6, 4], [7, 5, 1], [7, 3, 2]]])
    np.testing.assert_array_equal(script.read(tmp_path / "box.stl")[0], around[[0, 1, 3]])
    found = np.unique(script.hull(tmp_path / "box.stl").reshape(-1, 3).round(5), axis=0)
    np.testing.assert_allclose(found, np.unique(around.round(5), axis=0), atol=2e-5)  # a box is its own hull
    before = script.read(FOLDER / "arm" / "sts3215_03a_v1.stl")
    after = script.lighter(before)
    assert 0 < len(after) <= len(before)
    for side in (np.min, np.max):
        np.testing.assert_allclose(side(after, axis=(0, 1)), side(before, axis=(0, 1)), atol=2 * script.TOLERANCE)
