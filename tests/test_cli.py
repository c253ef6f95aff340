"""The command line: help that is immediate and complete, flags that arrive, failures in one line."""

import errno
import importlib
import resource
import shlex
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest
from safetensors import SafetensorError

import apprentice.cli
from apprentice.cli import COMMANDS, main
from apprentice.errors import UserError
from apprentice.flags import parameters

HELP = """
import sys
from apprentice.cli import main
try:
    main(sys.argv[1:])
finally:
    heavy = {"torch", "transformers", "lerobot", "mujoco"} & set(sys.modules)
    assert not heavy, heavy
"""


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_complete_and_imports_nothing_heavy(command: str) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    words = [command, "--help"] if command else ["--help"]
    done = subprocess.run([sys.executable, "-c", HELP, *words], capture_output=True, text=True, check=True)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 1  # s of CPU; about 0.1
    for name in [] if command else COMMANDS:
        assert name in done.stdout


@pytest.mark.parametrize("place", sorted({place for _, place, _ in COMMANDS.values()}))
def test_every_flag_has_a_description(place: str) -> None:
    undescribed = [parameter.name for parameter in parameters(place) if not parameter.description]
    assert not undescribed


@pytest.mark.parametrize("place", sorted({place for command in COMMANDS.values() for place in command[1:]}))
def test_every_command_leads_somewhere(place: str) -> None:
    module, name = place.split(":")
    assert callable(getattr(importlib.import_module(module), name))


SAMPLE = '''
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

SIZE = 128

@dataclass
class Config:
    """A sample.

    Attributes:
        dataset: where it is,
            in two lines.
        size: of an image (px).
        tasks, others: indices.
        loss: which.
        told: pairs.
        resume: or not.
        limit: at most so many.
    """

    dataset: Path
    size: int = SIZE
    tasks: list[int] | None = None
    others: tuple[int, ...] = (1, 2)
    loss: Literal["mse", "l2"] = "mse"
    told: dict[int, int] | None = None
    resume: bool = True
    limit: float | None = None
    nested: dict[str, int] = field(default_factory=dict)

received = []

def command(config: Config) -> None:
    received.append(config)

def plain(policies: dict[str, Path], *, workers: int = 2) -> None:
    """Args:
        policies: by name.
    """
    received.append((policies, workers))
'''


@pytest.fixture
def sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    (tmp_path / "sample.py").write_text(SAMPLE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "sample", raising=False)
    commands = {
        "do": ("do it", "sample:Config", "sample:command"),
        "call": ("call", "sample:plain", "sample:plain"),
    }
    monkeypatch.setattr(apprentice.cli, "COMMANDS", commands)
    received: list[object] = importlib.import_module("sample").received
    return received


def test_flags_become_the_fields_of_a_dataclass(sample: list[object]) -> None:
    words = shlex.split("do --dataset a/b --tasks 1 4 --loss l2 --told 1=8 4=1 --no-resume --limit 0.5")
    assert main(words) == 0
    config = importlib.import_module("sample").Config
    expected = config(Path("a/b"), tasks=[1, 4], loss="l2", told={1: 8, 4: 1}, resume=False, limit=0.5)
    assert sample == [expected]


def test_flags_become_the_arguments_of_a_function(sample: list[object]) -> None:
    assert main(["call", "--policies", "expert=assets/expert", "two-stage=runs/a=b"]) == 0
    assert sample == [({"expert": Path("assets/expert"), "two-stage": Path("runs/a=b")}, 2)]


@pytest.mark.parametrize(
    "words", ["do", "do --dataset a --tasks x", "do --dataset a --loss l3", "call --policies a", "nonsense"]
)
def test_wrong_flags_end_with_2_and_usage(sample: list[object], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ending:
        main(words.split())
    assert ending.value.code == 2 and "usage: apprentice" in capsys.readouterr().err and not sample


def test_defaults_and_descriptions_are_shown(sample: list[object], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["do", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for text in (
        "where it is, in two lines",
        "of an image (px) (default: 128)",
        "(default: 1 2)",
        "{mse,l2}",
    ):
        assert text in shown


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (UserError("expected a, found b; fix: c"), 2, "apprentice: expected a, found b; fix: c\n"),
        (OSError(errno.ENOSPC, "No space left on device", "runs/model"), 2, "runs/model; what was finished"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), 2, "a file; what was finished"),
        (KeyboardInterrupt(), 130, "interrupted; run the same command again to resume"),
    ],
)
def test_failures_that_a_user_can_mend_are_one_line(
    sample: list[object],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    raised: BaseException,
    code: int,
    message: str,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr("sample.plain", fail)
    assert main(["call", "--policies", "a=b"]) == code
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1


def test_other_failures_keep_their_traceback(sample: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise FileNotFoundError("a bug")

    monkeypatch.setattr("sample.plain", fail)
    with pytest.raises(FileNotFoundError):
        main(["call", "--policies", "a=b"])


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    """/dev/full is a disk that is full."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    (tmp_path / "full.py").write_text(
        "def fill() -> None:\n    with open('/dev/full', 'w') as stream:\n        stream.write('x' * 9999)\n"
    )
    program = (
        "import apprentice.cli as cli, sys\n"
        "cli.COMMANDS = {'fill': ('fill', 'full:fill', 'full:fill')}\n"
        "sys.exit(cli.main(['fill']))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "found none left" in done.stderr and "Traceback" not in done.stderr


def test_the_installed_name_is_one_that_lerobot_looks_for() -> None:
    assert distribution("lerobot_policy_apprentice").metadata["Name"] == "lerobot_policy_apprentice"
    names = [point.name for point in distribution("lerobot_policy_apprentice").entry_points]
    assert names == ["apprentice"]
