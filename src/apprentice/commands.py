"""Every command: what it does, where its flags are declared, what it calls; and a command line read and checked.

Nothing here imports a command's own modules: a wrong flag must not wait for torch.
"""

from argparse import SUPPRESS, RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import groupby
from typing import Any

from apprentice.checks import check
from apprentice.common.errors import UserError, meant
from apprentice.common.flags import Parser, add_flags


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        group: under which `apprentice --help` lists it.
        text: what it does.
        function: what it calls, as "module:function".
        declared: where its flags are declared, if they are not the parameters of `function`: a dataclass, which
            `function` is then given.
        found: whether it returns a `Result`, which --json prints.
    """

    group: str
    text: str
    function: str
    declared: str = ""
    found: bool = False

    @property
    def flags(self) -> str:
        return self.declared or self.function


COMMANDS = {
    "collect": Command(
        "data",
        "write demonstrations of a simulator's tasks with its scripted demonstrator",
        "apprentice.simulators.collection.collect:collect",
        "apprentice.simulators.collection.config:CollectConfig",
    ),
    "correct": Command(
        "data",
        "let a policy act first, let the demonstrator finish, and write the demonstrator's part as demonstrations",
        "apprentice.evaluate.correct:correct",
        "apprentice.evaluate.correct:CorrectConfig",
    ),
    "doctor": Command(
        "data",
        "replay a dataset's actions in the simulator and report faults of the dataset",
        "apprentice.simulators.collection.doctor:doctor",
        found=True,
    ),
    "train-expert": Command(
        "experts",
        "train an expert on demonstrations: a Seer, or a LeRobot policy that can teach",
        "apprentice.distill.expert:train_expert",
        "apprentice.distill.expert:ExpertConfig",
    ),
    "import-seer": Command(
        "experts",
        "turn a checkpoint of the public Seer code into an expert",
        "apprentice.experts.seer_full.import_seer:import_seer",
    ),
    "expert-check": Command(
        "experts",
        "test whether a policy can teach on a dataset",
        "apprentice.distill.check:expert_check",
        found=True,
    ),
    "scenes": Command(
        "vision-language models",
        "draw labelled pictures of scenes, to pre-train the built-in VLM",
        "apprentice.nano.scenes.dataset:generate",
    ),
    "pretrain-vlm": Command(
        "vision-language models",
        "pre-train the built-in VLM on the pictures of `scenes`",
        "apprentice.nano.pretrain:pretrain",
        "apprentice.nano.pretrain:PretrainConfig",
    ),
    "score-vlm": Command(
        "vision-language models",
        "score the built-in VLM on held-out pictures, and write its model card",
        "apprentice.nano.score.score:score",
    ),
    "build-vlm": Command(
        "vision-language models",
        "join a language model and a vision tower to a VLM, and train the projector between them",
        "apprentice.nano.build:build_vlm",
        "apprentice.nano.build:BuildConfig",
    ),
    "ask": Command(
        "vision-language models",
        "ask a student, or a plain VLM, a question about pictures, and measure how far the student has drifted",
        "apprentice.policy.ask:ask",
        found=True,
    ),
    "plan": Command(
        "train",
        "estimate parameters, GPU memory and disk of a training, without the weights",
        "apprentice.distill.plan:plan",
        found=True,
    ),
    "align": Command(
        "train",
        "stage 1: train a VLM to produce an expert's latents",
        "apprentice.distill.stages:align",
        "apprentice.distill.stages:StageConfig",
    ),
    "finetune": Command(
        "train",
        "stage 2: train an aligned (or a fresh) student on demonstrations",
        "apprentice.distill.stages:finetune",
        "apprentice.distill.stages:StageConfig",
    ),
    "eval": Command(
        "evaluate", "run policies in closed loop on a benchmark", "apprentice.evaluate.rollout:evaluate", found=True
    ),
    "compare": Command(
        "evaluate",
        "compare two policies on the same episodes, the worst tasks first",
        "apprentice.evaluate.compare:compare",
        found=True,
    ),
    "rates": Command(
        "evaluate",
        "print the success rates of evaluations, one by one and together",
        "apprentice.evaluate.compare:rates",
        found=True,
    ),
    "record": Command(
        "evaluate",
        "write the success rates of an evaluation into a file of results",
        "apprentice.evaluate.report.measured:record",
    ),
    "report": Command(
        "evaluate", "write the page and results.json of an evaluation", "apprentice.evaluate.report.report:write_report"
    ),
    "serve": Command(
        "serve and run",
        "serve a policy on a port, for openpi's clients and `apprentice eval`",
        "apprentice.serve.server:serve",
    ),
    "run": Command(
        "serve and run",
        "run a recipe: the steps of an experiment, without those that are done",
        "apprentice.recipe:run_recipe",
    ),
    "selfcheck": Command(
        "maintenance",
        "compare the simulator with the references of our results (`eval` starts with this)",
        "apprentice.evaluate.selfcheck.selfcheck:selfcheck",
        found=True,
    ),
    "cache": Command(
        "maintenance",
        "list or remove the caches of datasets' frames",
        "apprentice.distill.caches.store:cache",
        found=True,
    ),
    "pack": Command(
        "maintenance",
        "pack all that training needs, for a GPU machine without network or simulator",
        "apprentice.offline.pack:pack",
    ),
    "split": Command(
        "maintenance",
        "write a folder, such as a checkpoint, as parts of limited size with checksums",
        "apprentice.offline.parts:split",
    ),
    "join": Command("maintenance", "join the parts of a folder", "apprentice.offline.parts:join"),
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
    "run": ["path"],
}


# with --rollouts, these are called in place of the methods of the same name, which know no simulator
WITH_ROLLOUTS = {name: f"apprentice.evaluate.during_training:{name}" for name in ("align", "finetune")}


def called(command: str, keywords: Mapping[str, Any]) -> str:
    """What a command calls, as "module:function"."""
    return WITH_ROLLOUTS[command] if keywords.get("rollouts") else COMMANDS[command].function


def overview() -> str:
    """What `apprentice --help` shows: every command, by what one is about to do."""
    lines = ["A vision-language model learns to act from a small expert.", ""]
    for group, commands in groupby(COMMANDS.items(), key=lambda item: item[1].group):
        lines += [f"{group}:", *(f"  {name:13} {command.text}" for name, command in commands), ""]
    return "\n".join([*lines, "apprentice COMMAND --help says what a command takes."])


def modules_of(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The modules that a command line calls and reads its flags from, and those of the simulators that it may use."""
    from apprentice.simulators.base import doctors, modules

    command, keywords = parse(words, folders=False)
    own = [place.partition(":")[0] for place in (COMMANDS[command].flags, called(command, keywords))]
    suites = keywords.get("suites") or [keywords.get("suite")]
    found = dict.fromkeys(module for suite in suites for module in modules(suite))
    return own, [*found, *(doctors() if command == "doctor" else [])]


def parse(words: Sequence[str], folders: bool = True) -> tuple[str, dict[str, Any]]:
    """The command of a command line, and its flags as keyword arguments, `debug` among them.

    Raises UserError for a wrong flag or value; with `folders`, also for a folder or file that is not there, or that is
    not what the flag wants. SystemExit after --help.
    """
    parser = Parser(
        prog="apprentice",
        usage="apprentice [-h] [--version] COMMAND ...",
        description=overview(),
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"apprentice {version('lerobot_policy_apprentice')}")
    known = parser.add_subparsers(
        dest="command", required=True, help=SUPPRESS, metavar="", prog="apprentice", parser_class=Parser
    )
    chosen = words[0] if words else ""
    if chosen in COMMANDS:
        text = COMMANDS[chosen].text
        command = known.add_parser(chosen, description=text[0].upper() + text[1:] + ".")
        command.named = True
        add_flags(command, COMMANDS[chosen].flags, POSITIONAL.get(chosen, ()))
        if COMMANDS[chosen].found:
            command.add_argument("--json", action="store_true", help="print the result as JSON, all else to stderr")
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    if not chosen:
        raise UserError(f"expected a command of {', '.join(COMMANDS)}, found none; fix: apprentice --help")
    if chosen not in (*COMMANDS, "-h", "--help", "--version"):
        raise UserError(f"expected a command of {', '.join(COMMANDS)}, found {chosen}; fix: {meant(chosen, COMMANDS)}")
    keywords = vars(parser.parse_args(words))
    check(keywords.pop("command"), keywords, POSITIONAL.get(chosen, ()), folders)
    return chosen, keywords
