"""One process at a time works in a folder; files are written whole, and what is read is what it should be."""

import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from apprentice.common import files
from apprentice.common.errors import UserError
from apprentice.distill.expert import ExpertConfig, train_expert
from apprentice.distill.stages import StageConfig, align, finetune
from apprentice.evaluate.rollout import evaluate
from apprentice.nano.build import BuildConfig, build_vlm
from apprentice.nano.pretrain import PretrainConfig, pretrain
from apprentice.simulators.collection.collect import collect
from apprentice.simulators.collection.config import CollectConfig

HOLD = """
import sys, time
from apprentice.common.files import only_one
with only_one(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_folder_is_one_process_and_free_when_that_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PATIENCE", 0.2)
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE) as other:
        assert other.stdout and other.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match=f"process {other.pid}\\)"), files.only_one(tmp_path / "run"):
            pass
        other.send_signal(signal.SIGKILL)
    for _ in range(2):
        with files.only_one(tmp_path / "run"):
            pass


def stage(out: Path) -> StageConfig:
    return StageConfig(dataset=["none"], out=str(out), vlm="none", expert="none")


COMMANDS: dict[str, Callable[[Path], Any]] = {
    "align": lambda out: align(stage(out)),
    "finetune": lambda out: finetune(stage(out)),
    "train-expert": lambda out: train_expert(ExpertConfig(dataset=["none"], out=str(out))),
    "collect": lambda out: collect(CollectConfig(suite="libero_goal", episodes=1, out=out, tasks=[8])),
    "eval": lambda out: evaluate({"expert": "assets/seer"}, "libero_goal", out, tasks=[8], episodes=1),
    "pretrain-vlm": lambda out: pretrain(PretrainConfig("none", str(out))),
    "build-vlm": lambda out: build_vlm(BuildConfig("none", str(out))),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_writes_asks_first(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PATIENCE", 0.0)
    held = tmp_path / (".run.episodes" if command == "collect" else "run")
    with files.only_one(held), pytest.raises(UserError, match="another run at work"):
        COMMANDS[command](tmp_path / "run")
    assert [path.name for path in held.iterdir()] == [".lock"]


WRITE = """
import sys, time
from apprentice.common.files import replacing
with replacing(sys.argv[1]) as fresh:
    fresh.mkdir()
    (fresh / "new").touch()
    print("writing", flush=True)
    time.sleep(600)
"""


def test_what_a_killed_process_was_writing_is_swept_away_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    (target / "old").mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-c", WRITE, str(target)], stdout=subprocess.PIPE) as other:
        assert other.stdout and other.stdout.readline() == b"writing\n"
        with files.replacing(target) as fresh:
            fresh.mkdir()
        files.sweep(tmp_path)
        assert len(list(tmp_path.iterdir())) == 2 and not list(target.iterdir())
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert len(list(tmp_path.iterdir())) == 2
    with files.only_one(tmp_path):
        assert {path.name for path in tmp_path.iterdir()} == {"folder", ".lock"}


SWAP = """
import sys
from pathlib import Path
from apprentice.common.files import replacing
while True:
    for name in ("one", "two"):
        with replacing(sys.argv[1]) as fresh:
            fresh.mkdir()
            (fresh / name).touch()
"""


def test_a_folder_is_replaced_in_one_step(tmp_path: Path) -> None:
    """At no moment is there none, or a half one."""
    target = tmp_path / "folder"
    target.mkdir()
    (target / "one").touch()
    other = tmp_path / "other"
    other.mkdir()
    if not files._exchange(target, other):
        pytest.skip("this file system cannot exchange names")
    assert files._exchange(target, other) and (target / "one").exists()
    with subprocess.Popen([sys.executable, "-c", SWAP, str(target)]) as process:
        seen = set[str]()
        while seen != {"one", "two"}:
            seen.update(os.listdir(target))  # raises if there is none
        process.kill()


FULL = """
import resource, sys
from pathlib import Path
import numpy as np
from safetensors.numpy import save_file
from apprentice.cli import explained
from apprentice.common.files import disk_full_at, replacing
target, how = Path(sys.argv[1]), sys.argv[2]
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    if how == "append":
        with disk_full_at(target), target.open("ab") as stream:
            stream.write(bytes(10**6))
    else:
        with replacing(target) as fresh:
            fresh.mkdir()
            (fresh / "config.json").write_text("{}")
            if how == "safetensors":
                save_file({"a": np.zeros(10**6)}, fresh / "model.safetensors")
            else:
                (fresh / "model.safetensors").write_bytes(bytes(10**6))
except Exception as error:
    print(*explained(error))
"""


@pytest.mark.parametrize("how", ["append", "python", "safetensors"])
def test_a_full_disk_names_the_file(tmp_path: Path, how: str) -> None:
    """A limit of a file's size stands for the disk's: libraries see the same failure of `write`."""
    target = tmp_path / "target"
    done = subprocess.run([sys.executable, "-c", FULL, str(target), how], capture_output=True, text=True)
    named = target if how == "append" else target / "model.safetensors"
    assert f"found none left while writing {named}; what was finished" in done.stdout, done.stdout + done.stderr
    assert done.stdout.endswith(" 2\n") and [p.name for p in tmp_path.iterdir()] == ["target"] * (how == "append")


@dataclass(frozen=True)
class Thing:
    steps: int
    pairs: tuple[tuple[int, int], ...] = ()
    rate: float | None = None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "invalid JSON"),
        ("{", "invalid JSON"),
        ("[" * 9999, "invalid JSON: recursion limit"),
        ("[]", "found: input should be"),
        ("null", "found: input should be"),
        ("{}", "found in steps: field required"),
        ('{"steps": "3"}', "found in steps: input should be a valid integer, '3'"),
        ('{"steps": true}', "found in steps: input should be a valid integer, True"),
        ('{"steps": 1, "pairs": [[1]]}', "found in pairs.0.1: field required"),
        ('{"steps": 1, "step": 2}', "found in step: an unknown key; did you mean steps?"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0", "found a Git LFS pointer; fix: git lfs pull"),
    ],
)
def test_a_file_of_ours_that_is_damaged_is_named_with_the_field(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "thing.json"
    path.write_text(content)
    with pytest.raises(UserError, match=re.escape(message)) as error:
        files.read_json(path, Thing, "a thing")
    assert str(path) in str(error.value) and "; fix: " in str(error.value)


def test_what_is_whole_is_read_with_its_types(tmp_path: Path) -> None:
    path = tmp_path / "thing.json"
    path.write_text('{"steps": 3, "pairs": [[1, 8]], "rate": NaN}')
    found = files.read_json(path, Thing, "a thing")
    assert found.steps == 3 and found.pairs == ((1, 8),) and math.isnan(found.rate)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="found bytes that are no text"):
        files.read_json(path)
    with pytest.raises(UserError, match="Is a directory"):
        files.read_json(tmp_path)
    with pytest.raises(FileNotFoundError):
        files.read_json(tmp_path / "none")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [", "on line"),
        ("a: *b", "on line 1: found undefined alias"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("\t", "on line 1"),
        ("a: 3", "found in a: input should be a valid string, 3"),
        ("- a", "input should be"),
        ("a: 2020-01-01\nb: 1", "found in b"),
    ],
)
def test_yaml_that_is_none_or_of_another_kind_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "some.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        files.read_yaml(path, dict[str, str], "lines")
