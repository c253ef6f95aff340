"""The command line: help that is immediate and complete, flags that arrive, failures in one line."""

import errno
import importlib
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
from importlib.metadata import distribution, version
from pathlib import Path

import pytest
from safetensors import SafetensorError

import apprentice.cli
import apprentice.commands
from apprentice.cli import explained, main
from apprentice.commands import COMMANDS, Command
from apprentice.common.errors import UserError
from apprentice.common.flags import LIMITS, Parser, parameters
from apprentice.common.flags import _options as options_of
from apprentice.simulators import opengl

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


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"apprentice {version('lerobot_policy_apprentice')}\n"


@pytest.mark.parametrize("place", sorted({command.flags for command in COMMANDS.values()}))
def test_every_flag_has_a_description(place: str) -> None:
    undescribed = [parameter.name for parameter in parameters(place) if not parameter.description]
    assert not undescribed


@pytest.mark.parametrize("place", sorted({place for c in COMMANDS.values() for place in (c.flags, c.function)}))
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
        instruct: pairs.
        resume: or not.
        limit: at most so many.
    """

    dataset: Path
    size: int = SIZE
    tasks: list[int] | None = None
    others: tuple[int, ...] = (1, 2)
    loss: Literal["mse", "l2"] = "mse"
    instruct: dict[int, int] | None = None
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
        "do": Command("run", "do it", "sample:command", "sample:Config"),
        "call": Command("run", "call", "sample:plain"),
    }
    monkeypatch.setattr(apprentice.cli, "COMMANDS", commands)
    monkeypatch.setattr(apprentice.commands, "COMMANDS", commands)
    received: list[object] = importlib.import_module("sample").received
    return received


def test_flags_become_the_fields_of_a_dataclass(sample: list[object]) -> None:
    words = shlex.split("do --dataset a/b --tasks 1 4 --loss l2 --instruct 1=8 4=1 --no-resume --limit 0.5")
    assert main(words) == 0
    config = importlib.import_module("sample").Config
    expected = config(Path("a/b"), tasks=[1, 4], loss="l2", instruct={1: 8, 4: 1}, resume=False, limit=0.5)
    assert sample == [expected]


def test_flags_become_the_arguments_of_a_function(sample: list[object]) -> None:
    assert main(["call", "--policies", "expert=assets/expert", "two-stage=runs/a=b"]) == 0
    assert sample == [({"expert": Path("assets/expert"), "two-stage": Path("runs/a=b")}, 2)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("do", "do: expected --dataset, found none; fix: see apprentice do --help"),
        ("do --datset a", "do: expected a flag that there is, found --datset; fix: did you mean --dataset?"),
        ("do --dataset a --tasks x", "--tasks: expected a whole number from 0 on, found x"),
        ("do --dataset a --tasks -1", "--tasks: expected a whole number from 0 on, found -1"),
        ("do --dataset a --size 0", "--size: expected a whole number from 1 on, found 0"),
        ("do --dataset a --size 1e400", "--size: expected a whole number from 1 on, found 1e400"),
        ("do --dataset a --limit nan", "--limit: expected a finite number above 0, found nan"),
        ("do --dataset a --limit inf", "--limit: expected a finite number above 0, found inf"),
        ("do --dataset a --loss l3", "--loss: expected one of mse, l2, found l3"),
        ("do --dataset a --instruct 1=x", "--instruct: expected a whole number from 0 on, found x"),
        ("call --policies a", "--policies: expected KEY=VALUE, found a"),
        ("call --policies a=", "--policies: expected KEY=VALUE, found a="),
        ("call --policies a=1 a=2", "--policies: expected each name once, found a twice"),
        ("call --policies a=1 stray -x", "expected KEY=VALUE, found stray"),
        ("cal", "expected a command of do, call, found cal; fix: did you mean call?"),
        ("", "expected a command of do, call, found none"),
    ],
)
def test_wrong_flags_end_with_2_and_what_was_meant(
    sample: list[object], words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words.split()) == 2
    printed = capsys.readouterr().err
    assert message in printed and "; fix: " in printed and printed.count("\n") == 1 and not sample


def test_a_policy_can_be_named_in_several_flags(sample: list[object]) -> None:
    assert main(["call", "--policies", "a=x", "--policies", "b=y"]) == 0
    assert sample == [({"a": Path("x"), "b": Path("y")}, 2)]


CHECKED = ["--suite", "libero_goal", "--out-dir", "new", "--policies"]
TRAINED = ["--dataset", "data", "--out", "new"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["eval", *CHECKED, "a=expert", "--suite", "libero_gaol"], "found libero_gaol; fix: did you mean libero_goal?"),
        (["eval", *CHECKED, "a=expert", "--tasks", "10"], "expected tasks 0 to 9 of libero_goal, found 10"),
        (["eval", *CHECKED, "a=expert", "--tasks", "1", "1"], "expected each task once"),
        (["eval", *CHECKED, "a=expert", "--instruct", "1=10"], "found 10"),
        (["eval", *CHECKED, "a=expert", "--episodes", "51"], "expected 1 to 50"),
        (["eval", *CHECKED, "a=expert", "--probes", "blak-agent"], "did you mean black-agent?"),
        (["eval", *CHECKED, "a=exprt"], "at exprt, found nothing; fix: did you mean expert?"),
        (["eval", *CHECKED, "a=run"], "found another folder; fix: did you mean run/checkpoint?"),
        (["eval", *CHECKED, "a=ws://here"], "expected an address ws://HOST:PORT, found ws://here"),
        (["eval", *CHECKED, "a=http://here:80"], "expected an address ws://HOST:PORT"),
        (["eval", *CHECKED, "a=expert", "--out-dir", "a.png"], "expected a folder to write at a.png, found a file"),
        (["collect", "--suite", "libero_9", "--episodes", "1", "--out", "new"], "did you mean libero_90?"),
        (["collect", "--suite", "libero_10", "--episodes", "1001", "--out", "new"], "from 1 to 1000, found 1001"),
        (["collect", "--suite", "libero_10", "--episodes", "1", "--out", "new", "--render", "fat"], "mean fast?"),
        (["align", *TRAINED, "--expert", "expert", "--vlm", "vlm", "--dataset", "dta"], "fix: did you mean data?"),
        (["align", *TRAINED, "--expert", "expert", "--vlm", "vlm", "--dataset", "data=2", "dta=1"], "at dta=1"),
        (["align", *TRAINED, "--expert", "expert", "--vlm", "./vl"], "at ./vl, found nothing; fix: did you mean vlm?"),
        (["align", *TRAINED, "--expert", "expert", "--vlm", "run/vl"], "at run/vl, found nothing"),
        (["align", *TRAINED, "--expert", "data", "--vlm", "vlm"], "at data, found another folder"),
        (
            ["align", *TRAINED, "--expert", "expert", "--vlm", "vlm", "--align-loss", "l1"],
            "expected one of mse, l2, found l1",
        ),
        (["align", *TRAINED, "--expert", "expert"], "expected --vlm or --student, found neither"),
        (["finetune", *TRAINED, "--student", "data"], "--student: expected a student's run or checkpoint"),
        (["train-expert", *TRAINED, "--init", "data"], "--init: expected a run or checkpoint"),
        (["train-expert", *TRAINED, "--ema", "1"], "a finite number from 0 to below 1, found 1"),
        (["serve", "expert", "--port", "70000"], "from 0 to 65535"),
        (["serve", "exprt"], "CHECKPOINT: expected a checkpoint"),
        (["report", "--out", "new.html", "--evaluation", "run"], "expected an evaluation"),
        (["compare", "expert"], "RUNS: expected an evaluation"),
        (
            ["ask", "vlm", "b.png", "what?"],
            "IMAGES: expected a picture at b.png, found nothing; fix: did you mean a.png",
        ),
        (["join", "data", "new"], "PARTS: expected a folder of parts"),
        (["run", "recip.yaml"], "PATH: expected a recipe (a YAML file, see recipes/) at recip.yaml, found nothing"),
        (["doctor", "nothing/here"], "DATASET: expected a LeRobotDataset"),
    ],
    ids=lambda value: " ".join(value[:1] + value[-2:]) if isinstance(value, list) else "",
)
def test_what_flags_name_is_looked_for_first(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MUJOCO_GL", "egl")
    for name in ("data/meta/info.json", "expert/config.json", "vlm/config.json", "run/checkpoint/config.json", "a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr("apprentice.cli._call", lambda *_: pytest.fail("its flags were to be refused"))
    monkeypatch.setattr("apprentice.simulators.opengl.check_drawing", lambda: None)
    assert main(words) == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before, "nothing is claimed"


@pytest.mark.parametrize("command", COMMANDS)
def test_defaults_are_within_the_limits_of_their_flags(command: str) -> None:
    parser = Parser(prog=f"apprentice {command}")
    for parameter in parameters(COMMANDS[command].flags):
        if isinstance(parameter.default, int | float) and not isinstance(parameter.default, bool):
            limits = LIMITS.get(f"{command}.{parameter.name}", LIMITS.get(parameter.name))
            options = options_of(parameter.kind, limits)
            parser.add_argument(f"--{parameter.name}", **options)
            parser.parse_args([f"--{parameter.name}={parameter.default}"])


@pytest.mark.parametrize(
    "words",
    [
        "align --typo",
        "align --dataset /none --out {new} --vlm assets/nano-vlm --expert assets/seer",
        "finetune --dataset assets/demonstrations/libero_goal --out {new} --steps 0",
        "train-expert --dataset assets/demonstrations/libero_goal --out {new} --cache-gb nan",
        "eval --policies a=assets/seer --suite libero_gaol --out-dir {new}",
        "eval --policies a=/none --suite libero_goal --out-dir {new}",
        "eval --policies a=assets/seer --suite libero_goal --out-dir {new} --tasks 10",
        "collect --suite libero_goal --episodes 0 --out {new}",
        "run recipes/none.yaml",
        "serve /none",
    ],
)
def test_a_typo_costs_less_than_a_second_and_imports_nothing_heavy(words: str, tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    program = HELP.replace("main(sys.argv[1:])", "sys.exit(main(sys.argv[1:]))")
    command = [sys.executable, "-c", program, *words.format(new=tmp_path / "new").split()]
    done = subprocess.run(command, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 2 and "; fix: " in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert after.ru_utime - before.ru_utime < 1  # s of CPU; about 0.2
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"MUJOCO_GL": "eg"}, "expected one of egl, osmesa, glfw, found 'eg'; fix: did you mean egl?"),
        ({"MUJOCO_GL": "glfw"}, "expected a display, found none"),
        ({"MUJOCO_EGL_DEVICE_ID": "99"}, "MUJOCO_EGL_DEVICE_ID: expected .*0.*, found 99"),
        ({"MUJOCO_EGL_DEVICE_ID": "first"}, "found first"),
        ({"MUJOCO_GL": "egl", "PYOPENGL_PLATFORM": "osmesa"}, "expected PYOPENGL_PLATFORM to be egl"),
    ],
)
def test_what_cannot_draw_is_named_first(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], message: str
) -> None:
    for name in ("MUJOCO_GL", "PYOPENGL_PLATFORM", "MUJOCO_EGL_DEVICE_ID", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    if sys.platform != "linux" or opengl._devices() is None:
        pytest.skip("no EGL here")
    opengl.check_drawing()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        opengl.check_drawing()


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


@pytest.mark.parametrize("debug", [False, True])
def test_an_unforeseen_failure_is_one_line_that_says_where_its_traceback_is(
    sample: list[object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], debug: bool
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr("sample.plain", fail)
    assert main(["call", "--policies", "a=b", *["--debug"] * debug]) == 70
    printed = capsys.readouterr().err
    assert printed.startswith("Traceback" if debug else "apprentice: expected to finish, found KeyError at cli.py:")
    kept = Path(re.findall(r"which is in (\S+)", printed)[0])
    assert "KeyError: 'a bug'" in kept.read_text() and printed.count("\n") == (debug * kept.read_text().count("\n") + 1)
    kept.unlink()


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (FileNotFoundError(errno.ENOENT, "", "a/b.json"), "expected to read or write a/b.json, found: No such file"),
        (PermissionError(errno.EACCES, "", "a"), "found: Permission denied; fix: give yourself the right"),
        (IsADirectoryError(errno.EISDIR, "", "a"), "expected to read or write a, found: Is a directory"),
        (MemoryError("17 TB"), "expected enough memory, found too little (17 TB)"),
    ],
)
def test_what_the_system_refuses_names_the_file(raised: Exception, message: str) -> None:
    text, code = explained(raised)
    assert message in text and code == 2


SLEEP = """
import signal, sys, time
import apprentice.cli as cli
from apprentice.commands import Command
for number in (signal.SIGHUP, signal.SIGINT):  # under nohup, or behind a shell, both would be ignored
    signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
cli.COMMANDS["rates"] = Command("run", "wait", "wait:wait")
sys.exit(cli.main(["rates", sys.argv[1]]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_each_signal_that_asks_for_an_end_ends_with_130(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "protocol.json").touch()
    (tmp_path / "wait.py").write_text(
        "import time\ndef wait(runs: list[str]) -> None:\n    print('begun', flush=True)\n    time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    command = [sys.executable, "-c", SLEEP, str(tmp_path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True
    ) as process:
        assert process.stdout and process.stderr
        assert process.stdout.readline() == "begun\n"
        process.send_signal(number)
        assert process.wait(10) == 130
        assert process.stderr.read() == "apprentice: interrupted; run the same command again to resume\n"


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    """/dev/full is a disk that is full."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    (tmp_path / "full.py").write_text(
        "def fill() -> None:\n    with open('/dev/full', 'w') as stream:\n        stream.write('x' * 9999)\n"
    )
    program = (
        "import apprentice.cli as cli, sys\n"
        "from apprentice.commands import Command\n"
        "cli.COMMANDS['fill'] = Command('run', 'fill', 'full:fill')\n"
        "sys.exit(cli.main(['fill']))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "found none left" in done.stderr and "Traceback" not in done.stderr


def test_the_installed_name_is_one_that_lerobot_looks_for() -> None:
    assert distribution("lerobot_policy_apprentice").metadata["Name"] == "lerobot_policy_apprentice"
    names = [point.name for point in distribution("lerobot_policy_apprentice").entry_points]
    assert names == ["apprentice"]
