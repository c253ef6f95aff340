"""One process at a time works in a folder, whatever command it runs."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apprentice import files
from apprentice.distill.expert import ExpertConfig, train_expert
from apprentice.distill.stages import StageConfig, align, finetune
from apprentice.errors import UserError
from apprentice.evaluate.rollout import evaluate
from apprentice.libero.collect import collect
from apprentice.vlm.build import BuildConfig, build_vlm
from apprentice.vlm.nano.pretrain import PretrainConfig, pretrain

HOLD = """
import sys, time
from apprentice.files import only_one
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
    "collect": lambda out: collect("libero_goal", 1, out, tasks=[8]),
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
