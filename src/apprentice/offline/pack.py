"""Pack what training takes, for a machine that reaches no network and has no simulator.

A pack is this checkout with what is needed of it alone, in parts of limited size: the source, the few wheels that such
a machine usually lacks, and the datasets and checkpoints that are named, at the same places as below the present
folder. So the same commands and recipes run there. The procedure is docs/offline-gpu.md.
"""

import importlib.metadata
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from apprentice.common.errors import UserError
from apprentice.common.files import cache_folder
from apprentice.common.progress import console
from apprentice.offline import parts

ROOT = Path(__file__).parents[3]
SOURCE = ("src", "tests", "benchmarks", "scripts", "recipes", "pyproject.toml")
# What training imports and a machine for PyTorch usually lacks, or has in another version; in this machine's versions.
# Expected there: torch, torchvision, numpy, pandas, pyarrow, pillow, pyyaml, rich, einops, accelerate, safetensors,
# huggingface-hub, requests, httpx, regex, tqdm, and pytest for the tests.
WHEELS = (
    "lerobot",
    "av",
    "datasets",
    "dill",
    "draccus",
    "farama-notifications",
    "gymnasium",
    "mergedeep",
    "multiprocess",
    "termcolor",
    "tokenizers",
    "toml",
    "transformers",
    "typing-inspect",
    "num2words",
    "pydantic",
    "pydantic-core",
    "annotated-types",
    "typing-inspection",
)
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
START = """#!/bin/sh
# Put the pack together, and do there all that it is for. What comes back lies in ./back.
set -e
cd "$(dirname "$0")"
[ -d whole ] || python3 parts.py join . whole
exec python3 whole/scripts/gpu_run.py --out back "$@"
"""


def pack(
    paths: Sequence[str],
    out: str,
    part_mb: float = 50.0,
    wheels: Sequence[str] = WHEELS,
    python: str = "3.12",
) -> None:
    """Write a pack: parts, their list, the script that joins them, and run.sh, which starts all.

    Args:
        paths: datasets, checkpoints and recipes to pack, as paths below the present folder.
        out: folder of the pack, which must not exist.
        part_mb: largest size of a part (MB).
        wheels: packages that the other machine lacks, in this machine's versions; they are fetched once and kept.
        python: Python version of the other machine.

    Raises UserError if a path is missing or elsewhere, holds a link to a file elsewhere, or a wheel cannot be fetched.
    """
    groups = {"source": _source(), "wheels": _wheels(wheels, python)} | {path: _files(path) for path in paths}
    written = parts.split_files({n: f for group in groups.values() for n, f in group.items()}, Path(out), part_mb)
    shutil.copyfile(parts.__file__, Path(out) / "parts.py")
    start = Path(out) / "run.sh"
    start.write_text(START)
    start.chmod(0o755)
    table = Table(title=f"{out}: {len(written)} parts", title_justify="left")
    for column in ("what", "files", "MB"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for name, group in groups.items():
        table.add_row(name, f"{len(group):,}", f"{sum(file.stat().st_size for file in group.values()) / 1e6:,.1f}")
    table.add_section()
    table.add_row("together", "", f"{sum(file.stat().st_size for file in written) / 1e6:,.1f}")
    console.print(table)
    console.print(f"copy all of {out} to the other machine, and run there: sh run.sh", highlight=False, soft_wrap=True)


def _source() -> dict[str, Path]:
    """Our files: code and what lies beside it, without compiled copies."""
    if not (ROOT / "pyproject.toml").exists():
        raise UserError(f"expected the checkout of this project around {ROOT}, found none; fix: pip install -e .")
    found = [file for name in SOURCE for file in _below(ROOT / name)]
    return {str(file.relative_to(ROOT)): file for file in found}


def _files(path: str) -> dict[str, Path]:
    """The files of a dataset or checkpoint, under its name."""
    place = Path(path)
    if not place.exists():
        raise UserError(f"expected something to pack at {path}, found nothing; fix: another path")
    if place.is_absolute() or ".." in place.parts:
        raise UserError(
            f"expected a path below the present folder, for commands find it at the same place there, found {path}; "
            "fix: put it, or a symbolic link to it, here"
        )
    files = _below(place)
    for file in files if place.is_dir() else []:  # the place itself may be a link
        parts.check_link(file, place)
    return {str(file): file for file in files}


def _below(place: Path) -> list[Path]:
    files = [place] if place.is_file() else sorted(file for file in place.rglob("*") if file.is_file())
    return [file for file in files if "__pycache__" not in file.parts and ".egg-info" not in str(file)]


def _wheels(names: Sequence[str], python: str) -> dict[str, Path]:
    """Wheels of the versions that are installed here, for another Python; from those fetched before, or by pip."""
    if not names:
        return {}
    folder = cache_folder() / "wheels" / f"python-{python}"
    try:
        wanted = {name: importlib.metadata.version(name) for name in names}
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(
            f"expected the package {error.name} here, found none; fix: install it, or name --wheels without it"
        ) from None
    missing = [name for name in wanted if not _wheel(folder, name, wanted[name])]
    if missing:
        options = ["--no-deps", "--only-binary=:all:", f"--python-version={python}", "--implementation=cp"]
        options += [f"--platform={platform}" for platform in PLATFORMS]
        pinned = [f"{name}=={wanted[name]}" for name in missing]
        pip = [sys.executable, "-m", "pip", "download", "--quiet", f"--dest={folder}", *options, *pinned]
        done = subprocess.run(pip, capture_output=True, text=True)
        if done.returncode:
            raise UserError(
                f"expected wheels of {', '.join(pinned)}, found: {done.stderr.strip().splitlines()[-1]}; fix: go "
                f"online once, or put them into {folder}"
            )
    found = [_wheel(folder, name, version) for name, version in wanted.items()]
    return {f"wheels/{file.name}": file for file in found if file}


def _wheel(folder: Path, name: str, version: str) -> Path | None:
    key = name.replace("-", "_").lower()
    return next((f for f in sorted(folder.glob("*.whl")) if f.name.lower().startswith(f"{key}-{version}-")), None)
