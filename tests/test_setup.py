"""Set-up: a Python that really runs is found wherever it is, or one line says what to install."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FIND = Path("scripts/find_python.sh").resolve()
SHIM = "#!/bin/sh\necho 'shim: command not found' >&2\nexit 127\n"


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def find(tmp_path: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Look for a Python where there is none but what `variables` lead to, and a PATH of failing shims."""
    for name in ("python3.12", "python3.13", "python3", "python", "uv"):
        program(tmp_path / "shims" / name, SHIM)
    for tool in ("bash", "dirname", "env"):
        program(tmp_path / "shims" / tool, f'#!/bin/sh\nexec /usr/bin/{tool} "$@"\n')
    environment = {"PATH": str(tmp_path / "shims"), "HOME": str(tmp_path), "NO_FETCH": "1"} | variables
    return subprocess.run([FIND], env=environment, capture_output=True, text=True)


@pytest.fixture
def real() -> str:
    """An interpreter that is not a virtual environment's."""
    return os.path.realpath(sys.executable)


def test_a_failing_shim_is_passed_over(tmp_path: Path, real: str) -> None:
    behind = tmp_path / "behind"
    behind.mkdir()
    (behind / "python3").symlink_to(real)
    done = find(tmp_path, PATH=f"{tmp_path / 'shims'}:{behind}")
    assert done.returncode == 0, done.stderr
    assert os.path.realpath(done.stdout.strip()) == real


def test_pyenv_versions_are_found(tmp_path: Path, real: str) -> None:
    for version, exists in (("3.11.7", True), ("3.12.1", False), ("3.13.0", True)):
        program(
            tmp_path / "root/versions" / version / "bin/python3",
            f'#!/bin/sh\nexec {real} "$@"\n' if exists else SHIM,
        )
    done = find(tmp_path, PYENV_ROOT=str(tmp_path / "root"))
    assert os.path.realpath(done.stdout.strip()) == real


def test_uv_is_asked(tmp_path: Path, real: str) -> None:
    program(tmp_path / ".local/bin/uv", f'#!/bin/sh\n[ "$1 $2" = "python find" ] && echo {real}\n')
    done = find(tmp_path)
    assert os.path.realpath(done.stdout.strip()) == real


def test_an_unfit_choice_is_named_and_not_taken(tmp_path: Path, real: str) -> None:
    old = program(tmp_path / "old/python3", "#!/bin/sh\nexit 1\n")
    done = find(tmp_path, PYTHON=str(old), PYENV_ROOT="/none")
    assert done.returncode == 1 and f"PYTHON={old} is not" in done.stderr
    assert find(tmp_path, PYTHON=real).stdout.strip() == real


def test_none_at_all_is_one_clear_line(tmp_path: Path) -> None:
    done = find(tmp_path)
    assert done.returncode == 1 and not done.stdout
    assert re.fullmatch(r"expected Python 3\.12 or 3\.13 .*; fix: .+\n", done.stderr)


def test_set_up_does_nothing_the_second_time(tmp_path: Path) -> None:
    """A stamp that fits is all it needs: no Python, no network."""
    for name in ("scripts/setup.sh", "pyproject.toml", "constraints.txt"):
        program(tmp_path / name, Path(name).read_text())
    (tmp_path / ".venv").mkdir()
    command = "{ pwd; cat pyproject.toml constraints.txt scripts/setup.sh; } | sha256sum > .venv/setup-stamp"
    subprocess.run(command, shell=True, cwd=tmp_path, check=True)
    done = subprocess.run(
        [tmp_path / "scripts/setup.sh"], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_constraints_name_versions_only() -> None:
    lines = Path("constraints.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line) for line in lines)
    assert any(line.startswith("mujoco==3.3.") for line in lines)
