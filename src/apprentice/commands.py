"""Every command: what it does, where its flags are declared, what it calls; and a command line read and checked.

Nothing here imports a command's own modules: a wrong flag must not wait for torch.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from apprentice.checks import check
from apprentice.common.errors import UserError, meant
from apprentice.common.flags import Parser, add_flags

# command: (what it does, where its parameters are declared, what it calls with them)
COMMANDS = {
    "collect": (
        "write demonstrations of LIBERO tasks with the scripted demonstrator",
        "apprentice.simulators.libero.dataset.collect:collect",
        "apprentice.simulators.libero.dataset.collect:collect",
    ),
    "correct": (
        "let a policy act, then the demonstrator, and write its continuations as demonstrations",
        "apprentice.evaluate.correct:correct",
        "apprentice.evaluate.correct:correct",
    ),
    "doctor": (
        "replay a dataset's actions in LIBERO and name what is wrong with it",
        "apprentice.simulators.libero.dataset.doctor:doctor",
        "apprentice.simulators.libero.dataset.doctor:doctor",
    ),
    "scenes": (
        "draw the scenes, with their truth, that the nano VLM learns from",
        "apprentice.nano.scenes.dataset:generate",
        "apprentice.nano.scenes.dataset:generate",
    ),
    "pretrain-vlm": (
        "pre-train the nano VLM on generated scenes",
        "apprentice.nano.pretrain:PretrainConfig",
        "apprentice.nano.pretrain:pretrain",
    ),
    "score-vlm": (
        "score the nano VLM on held-out scenes, against its text-only twin, and write its model card",
        "apprentice.nano.score.score:score",
        "apprentice.nano.score.score:score",
    ),
    "build-vlm": (
        "join a pretrained language model and a vision tower to a VLM, and train the projector between them",
        "apprentice.nano.build:BuildConfig",
        "apprentice.nano.build:build_vlm",
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
        "apprentice.distill.stages:align",
    ),
    "finetune": (
        "train an aligned (or a fresh) student on demonstrations",
        "apprentice.distill.stages:StageConfig",
        "apprentice.distill.stages:finetune",
    ),
    "cache": (
        "list or remove what was computed once for the frames of datasets",
        "apprentice.distill.store:cache",
        "apprentice.distill.store:cache",
    ),
    "ask": (
        "ask a student, or a plain VLM, a question about images, and tell how far it has drifted",
        "apprentice.policy.ask:ask",
        "apprentice.policy.ask:ask",
    ),
    "eval": (
        "run policies in closed loop on a benchmark's initial states",
        "apprentice.evaluate.rollout:evaluate",
        "apprentice.evaluate.rollout:evaluate",
    ),
    "selfcheck": (
        "compare the simulator with the references that results rely on; `eval` does so at its start",
        "apprentice.evaluate.selfcheck.selfcheck:selfcheck",
        "apprentice.evaluate.selfcheck.selfcheck:selfcheck",
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
        "apprentice.evaluate.report.measured:record",
        "apprentice.evaluate.report.measured:record",
    ),
    "serve": (
        "put a policy behind a port, for openpi's clients and `apprentice eval`",
        "apprentice.serve.server:serve",
        "apprentice.serve.server:serve",
    ),
    "report": (
        "write the page and results.json of an evaluation",
        "apprentice.evaluate.report.report:write_report",
        "apprentice.evaluate.report.report:write_report",
    ),
    "pack": (
        "pack what training takes, for a GPU machine without network or simulator",
        "apprentice.offline.pack:pack",
        "apprentice.offline.pack:pack",
    ),
    "split": (
        "write a folder, such as a checkpoint, as parts of limited size with checksums",
        "apprentice.offline.parts:split",
        "apprentice.offline.parts:split",
    ),
    "join": (
        "put a folder together from its parts",
        "apprentice.offline.parts:join",
        "apprentice.offline.parts:join",
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
    "run": ["path"],
}


# with --rollouts, these are called in place of the methods of the same name, which know no simulator
WITH_ROLLOUTS = {name: f"apprentice.evaluate.during_training:{name}" for name in ("align", "finetune")}


def called(command: str, keywords: Mapping[str, Any]) -> str:
    """What a command calls, as "module:function"."""
    return WITH_ROLLOUTS[command] if keywords.get("rollouts") else COMMANDS[command][2]


def modules_of(words: Sequence[str]) -> list[str]:
    """The modules that a command line calls and reads its flags from."""
    command, keywords = parse(words, folders=False)
    return [place.partition(":")[0] for place in (COMMANDS[command][1], called(command, keywords))]


def parse(words: Sequence[str], folders: bool = True) -> tuple[str, dict[str, Any]]:
    """The command of a command line, and its flags as keyword arguments, `debug` among them.

    Raises UserError for a wrong flag or value; with `folders`, also for a folder or file that is not there, or that is
    not what the flag wants. SystemExit after --help.
    """
    parser = Parser(prog="apprentice", description="A vision-language model learns to act from a small expert.")
    known = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    chosen = words[0] if words else ""
    for name, (text, place, _) in COMMANDS.items():
        command = known.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if name != chosen:
            continue
        command.named = True
        add_flags(command, place, POSITIONAL.get(name, ()))
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    if not chosen:
        raise UserError(f"expected a command of {', '.join(COMMANDS)}, found none; fix: apprentice --help")
    if not chosen.startswith("-") and chosen not in COMMANDS:
        raise UserError(f"expected a command of {', '.join(COMMANDS)}, found {chosen}; fix: {meant(chosen, COMMANDS)}")
    keywords = vars(parser.parse_args(words))
    check(keywords.pop("command"), keywords, POSITIONAL.get(chosen, ()), folders)
    return chosen, keywords
