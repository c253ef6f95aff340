"""The command `apprentice`: parse, call the room that does the work, and turn expected failures into one
clear line.
"""

import argparse
import errno
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import is_dataclass
from typing import Any

from apprentice.errors import UserError
from apprentice.flags import add_flags
from apprentice.garbage import collect_rarely

# command: (what it does, where its parameters are declared, what it calls with them)
COMMANDS = {
    "collect": (
        "write demonstrations of LIBERO tasks with the scripted demonstrator",
        "apprentice.libero.collect:collect",
        "apprentice.libero.collect:collect",
    ),
    "correct": (
        "let a policy act, then the demonstrator, and write its continuations as demonstrations",
        "apprentice.evaluate.correct:correct",
        "apprentice.evaluate.correct:correct",
    ),
    "doctor": (
        "replay a dataset's actions in LIBERO and name what is wrong with it",
        "apprentice.libero.doctor:doctor",
        "apprentice.libero.doctor:doctor",
    ),
    "scenes": (
        "draw the scenes, with their truth, that the nano VLM learns from",
        "apprentice.vlm.nano.scenes:generate",
        "apprentice.vlm.nano.scenes:generate",
    ),
    "pretrain-vlm": (
        "pre-train the nano VLM on generated scenes",
        "apprentice.vlm.nano.pretrain:PretrainConfig",
        "apprentice.vlm.nano.pretrain:pretrain",
    ),
    "score-vlm": (
        "score the nano VLM on held-out scenes, against its text-only twin, and write its model card",
        "apprentice.vlm.nano.score:score",
        "apprentice.vlm.nano.score:score",
    ),
    "build-vlm": (
        "join a pretrained language model and a vision tower to a VLM, and train the projector between them",
        "apprentice.vlm.build:BuildConfig",
        "apprentice.vlm.build:build_vlm",
    ),
    "import-seer": (
        "turn a checkpoint of the public Seer code into an expert",
        "apprentice.experts.seer_full.import_seer:import_seer",
        "apprentice.experts.seer_full.import_seer:import_seer",
    ),
    "train-expert": (
        "train a small policy on demonstrations: a Seer, or another that can teach",
        "apprentice.distill.expert:ExpertConfig",
        "apprentice.distill.expert:train_expert",
    ),
    "expert-check": (
        "tell whether a policy can teach on a dataset",
        "apprentice.distill.check:expert_check",
        "apprentice.distill.check:expert_check",
    ),
    "plan": (
        "tell what training will take: parameters, memory of a GPU, disk; no weights are fetched",
        "apprentice.distill.plan:plan",
        "apprentice.distill.plan:plan",
    ),
    "align": (
        "teach a VLM to produce an expert's latents",
        "apprentice.distill.stages:StageConfig",
        "apprentice.train:align",
    ),
    "finetune": (
        "train an aligned (or a fresh) student on demonstrations",
        "apprentice.distill.stages:StageConfig",
        "apprentice.train:finetune",
    ),
    "cache": (
        "list or remove what was computed once for the frames of datasets",
        "apprentice.distill.store:cache",
        "apprentice.distill.store:cache",
    ),
    "ask": (
        "ask a student, or a plain VLM, a question about images, and tell how far it has drifted",
        "apprentice.evaluate.ask:ask",
        "apprentice.evaluate.ask:ask",
    ),
    "eval": (
        "run policies in closed loop on a benchmark's initial states",
        "apprentice.evaluate.rollout:evaluate",
        "apprentice.evaluate.rollout:evaluate",
    ),
    "selfcheck": (
        "compare the simulator with the references that results rely on; `eval` does so at its start",
        "apprentice.evaluate.selfcheck:selfcheck",
        "apprentice.evaluate.selfcheck:selfcheck",
    ),
    "compare": (
        "compare two policies on the same episodes, the worst tasks first",
        "apprentice.evaluate.compare:compare",
        "apprentice.evaluate.compare:compare",
    ),
    "rates": (
        "print the success rates of evaluations, and of all of them together",
        "apprentice.evaluate.compare:rates",
        "apprentice.evaluate.compare:rates",
    ),
    "record": (
        "write the success rates of an evaluation into a file of results",
        "apprentice.evaluate.measured:record",
        "apprentice.evaluate.measured:record",
    ),
    "serve": (
        "put a policy behind a port, for openpi's clients and `apprentice eval`",
        "apprentice.serve.server:serve",
        "apprentice.serve.server:serve",
    ),
    "report": (
        "write the page and results.json of an evaluation",
        "apprentice.evaluate.report:write_report",
        "apprentice.evaluate.report:write_report",
    ),
    "pack": (
        "pack what training takes, for a GPU machine without network or simulator",
        "apprentice.pack:pack",
        "apprentice.pack:pack",
    ),
    "split": (
        "write a folder, such as a checkpoint, as parts of limited size with checksums",
        "apprentice.parts:split",
        "apprentice.parts:split",
    ),
    "join": (
        "put a folder together from its parts",
        "apprentice.parts:join",
        "apprentice.parts:join",
    ),
    "run": (
        "run a recipe: all steps of an experiment, each only if it has to",
        "apprentice.recipe:run_recipe",
        "apprentice.recipe:run_recipe",
    ),
}
# the parameters that a command takes without a flag
POSITIONAL = {
    "doctor": ["dataset"],
    "import-seer": ["checkpoint"],
    "expert-check": ["checkpoint"],
    "cache": ["action", "names"],
    "ask": ["model", "images", "question"],
    "compare": ["runs"],
    "rates": ["runs"],
    "record": ["evaluation"],
    "serve": ["checkpoint"],
    "pack": ["paths"],
    "split": ["folder", "out"],
    "join": ["parts", "out"],
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0, 1 if it found something wrong (it returned False), 2 after a mistake that the user
    can mend, 130 after an interruption.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    collect_rarely()
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        parsed = vars(_parser(words[0] if words else "").parse_args(words))
        return int(_call(parsed.pop("command"), parsed) is False)
    except UserError as error:
        return _complain(str(error), 2)
    except KeyboardInterrupt as interruption:
        return _complain(str(interruption) or "interrupted; run the same command again to resume", 130)
    except Exception as error:  # safetensors has an error of its own for a full disk
        if getattr(error, "errno", None) not in (errno.ENOSPC, errno.EDQUOT) and os.strerror(errno.ENOSPC) not in str(
            error
        ):
            raise
        place = getattr(error, "filename", None) or "a file"
        return _complain(
            f"expected room on the disk, found none left while writing {place}; "
            "what was finished before is kept; fix: free some space and run the same command again",
            2,
        )


def _parser(chosen: str) -> argparse.ArgumentParser:
    """The parser; only the chosen command's flags are looked up."""
    parser = argparse.ArgumentParser(
        prog="apprentice", description="A vision-language model learns to act from a small expert."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (text, parameters, _) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if name == chosen == "run":
            command.add_argument("path", metavar="RECIPE", help="the YAML file, see recipes/")
            command.add_argument("--out", metavar="DIR", help="output folder, instead of the one that the recipe names")
            command.add_argument(
                "--force", metavar="STEP", action="append", help="do this step again from its beginning"
            )
        elif name == chosen:
            add_flags(command, parameters, POSITIONAL.get(name, ()))
    return parser


def _call(command: str, keywords: dict[str, Any]) -> Any:
    _, parameters, function = COMMANDS[command]
    declared = _load(parameters)
    if is_dataclass(declared):
        return _load(function)(declared(**keywords))  # type: ignore[operator]
    return _load(function)(**keywords)


def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def _complain(text: str, code: int) -> int:
    print(f"apprentice: {text}", file=sys.stderr)
    return code


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
