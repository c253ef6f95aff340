"""The wheel holds the arm: what setuptools takes by pyproject.toml, and what the arm's model names."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
ARM = Path("apprentice/simulators/so101/simulator/arm")


def test_the_wheel_holds_the_arm() -> None:
    code = (
        "from setuptools import Distribution; d = Distribution(); d.parse_config_files(); "
        "build = d.get_command_obj('build_py'); build.ensure_finalized(); "
        "print(*(f'{folder}/{name}' for _, folder, _, names in build.data_files for name in names), sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    packed = {str(Path(os.path.relpath(line, ROOT / "src"))) for line in done.stdout.split() if "/arm/" in line}
    packed = {name[name.index(str(ARM)) :] for name in packed}
    there = {str(file.relative_to(ROOT / "src")) for file in (ROOT / "src" / ARM).iterdir()}
    assert packed == there
    model = (ROOT / "src" / ARM / "so101.xml").read_text()
    meshes = set(re.findall(r'file="([^"]+)"', model))
    assert len(meshes) > 10 and {str(ARM / name) for name in {*meshes, "LICENSE", "PROVENANCE.md"}} <= packed
