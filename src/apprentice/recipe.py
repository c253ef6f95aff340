"""Recipes: the steps of an experiment in one YAML file, run in order, each only when it has to.

    name: demo
    out: runs/demo
    steps:
      align:
        run: apprentice align --expert assets/expert --out {out}/align
        inputs: [assets/expert]
        outputs: ["{out}/align/checkpoint"]

`run` is a command line without a shell; `{out}` stands for the output folder, in which every output lies. A
step is skipped if its command, the content of its inputs and our code that it uses are what they were when it
finished, and its outputs exist. If they are the same and it did not finish, it runs again and continues by
itself from what it left. If they differ, its outputs are deleted first. OUT/.steps remembers this; OUT/logs
holds what each step printed. A step with `each: {seed: [0, 1]}` is one step for each value, NAME-0 and NAME-1,
with `{seed}` filled in; of several keys, each value of one goes with each of the others. `vars: {data: a=4 b}` of the
whole recipe fills in `{data}` everywhere; a value may hold `{out}` and `{seed}` itself.
"""

import os
import re
import shlex
import shutil
import sysconfig
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path

from apprentice.closure import PLUGIN, closure
from apprentice.commands import modules_of, parse
from apprentice.common.errors import FileError, UserError, meant
from apprentice.common.files import fingerprint, only_one, read_json, read_yaml, write_json
from apprentice.common.process import run_logged
from apprentice.common.progress import console

NAME = re.compile(r"\w[\w.-]*")  # it becomes the name of files


@dataclass(frozen=True)
class StepGiven:
    """A step as the YAML file has it."""

    run: str
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    each: dict[str, list[str | int | float | bool]] = field(default_factory=dict)


@dataclass(frozen=True)
class RecipeFile:
    """The YAML file."""

    name: str
    out: str
    steps: dict[str, StepGiven]
    vars: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class State:
    """What OUT/.steps remembers of a step: what its outcome depends on, whether it finished, and its time (s)."""

    key: dict[str, str] | None
    done: bool
    seconds: float = 0.0


@dataclass(frozen=True)
class Step:
    """One step of a recipe, with `{out}` filled in."""

    name: str
    run: str
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)

    @property
    def command(self) -> list[str]:
        return shlex.split(self.run)

    def key(self) -> dict[str, str]:
        """What the step's outcome depends on; a part that differs tells why the step must run again.

        Raises UserError if an input is missing.
        """
        key = {"command": fingerprint(*self.command), "code": _code(self.command)}
        for name in self.inputs:
            if not Path(name).exists():
                raise UserError(
                    f"step {self.name}: expected its input {name}, found nothing; "
                    "fix: run from the folder that holds it, or run the step that makes it"
                )
            key[name] = fingerprint(Path(name))
        return key


@dataclass(frozen=True)
class Recipe:
    name: str
    out: Path
    steps: list[Step]

    @classmethod
    def load(cls, path: Path | str, out: Path | str | None = None) -> "Recipe":
        """Read a recipe; `out` replaces the folder that it names. Raises UserError if it makes no sense."""
        try:
            content: RecipeFile = read_yaml(path, RecipeFile, "a recipe")
        except FileNotFoundError:
            raise UserError(f"expected a recipe at {path}, found nothing; fix: see recipes/") from None
        out = str(out or content.out)
        steps = [step for name, given in content.steps.items() for step in _steps(name, given, out, content.vars)]
        if not steps:
            raise UserError(f"expected steps in {path}, found none; fix: write one")
        if twice := [name for name, count in Counter(step.name for step in steps).items() if count > 1]:
            raise UserError(f"{path}: expected each step to have a name of its own, found {twice[0]} twice")
        return cls(content.name, Path(out), steps)


def run_recipe(path: Path | str, out: Path | str | None = None, force: list[str] | None = None) -> None:
    """Run the steps of the recipe at `path` that are not up to date, in order.

    Args:
        path: the recipe, a YAML file.
        out: output folder, instead of the recipe's own.
        force: names of steps to run again from their beginning.

    Raises UserError with the step, its log and how to resume if a step fails, KeyboardInterrupt likewise.
    """
    recipe = Recipe.load(path, out)
    names = [step.name for step in recipe.steps]
    for name in force or []:
        if name not in names:
            raise UserError(f"--force: expected one of {', '.join(names)}, found {name}; fix: {meant(name, names)}")
    resume = shlex.join(["apprentice", "run", str(path), *(["--out", str(out)] if out else [])])
    start = time.monotonic()
    with only_one(recipe.out / ".steps") as lock:
        for number, step in enumerate(recipe.steps, 1):
            label = f"[{number}/{len(names)}] {step.name}"
            _run_step(step, label, recipe.out, step.name in (force or []), resume, lock)
    _say(f"{recipe.name}: done in {clock(time.monotonic() - start)}; see {', '.join(recipe.steps[-1].outputs)}")


def clock(seconds: float) -> str:
    """Write a duration as h:mm:ss."""
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"


def _run_step(step: Step, label: str, out: Path, force: bool, resume: str, lock: int) -> None:
    state_file, log = out / ".steps" / f"{step.name}.json", out / "logs" / f"{step.name}.log"
    key = step.key()
    state = State(None, False)
    with suppress(FileNotFoundError, FileError):  # what is damaged tells nothing
        state = read_json(state_file, State)
    missing = [path for path in step.outputs if not Path(path).exists()]
    if state.done and state.key == key and not missing and not force:
        _say(f"{label}: up to date, took {clock(state.seconds)}")
        return
    if state.done or state.key != key or force:
        if before := state.key:
            changed = [f"{part} changed" for part in key | before if key.get(part) != before.get(part)]
            reasons = ["--force"] if force else changed or [f"{path} missing" for path in missing]
            _say(f"{label}: starts from its beginning ({', '.join(reasons)})")
        write_json(state_file, asdict(State(None, False)))  # half-deleted outputs are not to be trusted
        for path in step.outputs:
            _delete(Path(path))
        log.unlink(missing_ok=True)
        state = State(key, False)
    write_json(state_file, asdict(state))
    _say(f"{label}: {shlex.join(step.command)}")

    start = time.monotonic()
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    environment["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    advice = f"log: {log}; to resume: {resume}"
    try:
        code = run_logged(_continued(step.command), log, environment, keep=lock)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted in step {step.name}; {advice}") from None
    except FileNotFoundError:
        raise UserError(f"step {step.name}: expected a command, found no {step.command[0]}; {advice}") from None
    finally:
        state = replace(state, seconds=state.seconds + time.monotonic() - start)
        write_json(state_file, asdict(state))
    missing = [path for path in step.outputs if not Path(path).exists()]
    if code or missing:
        what = f"exit code {code}" if code else f"it ended without making {', '.join(missing)}"
        raise UserError(f"step {step.name} failed ({label}): {what}; {advice}")
    write_json(state_file, asdict(replace(state, done=True)))
    _say(f"{label}: done in {clock(state.seconds)}")


def _steps(name: str, given: StepGiven, out: str, texts: dict[str, str]) -> list[Step]:
    each = given.each
    for key in each:
        for path in given.outputs:
            if f"{{{key}}}" not in path:
                raise UserError(f"step {name}: expected an output for each {key}, found {path}; fix: {path}-{{{key}}}")
    steps = []
    for chosen in product(*each.values()):
        named = {key: str(value) for key, value in zip(each, chosen, strict=True)}
        steps.append(_step("-".join([name, *named.values()]), given, {**texts, "out": out, **named}))
    return steps


def _step(name: str, given: StepGiven, values: dict[str, str]) -> Step:
    def filled(text: str) -> str:
        for key, value in values.items():
            text = text.replace(f"{{{key}}}", value)
        return text

    inputs, outputs = ([filled(path) for path in paths] for paths in (given.inputs, given.outputs))
    step = Step(name, filled(given.run), inputs, outputs)
    try:
        command = step.command
    except ValueError as error:
        raise UserError(f"step {name}: expected a command line, found: {error}; fix: close what is open") from error
    if not NAME.fullmatch(name):
        raise UserError(f"expected a step's name of letters, digits, . _ and -, found {name}; fix: another name")
    if not command:
        raise UserError(f"step {name}: expected a command under run, found nothing; fix: write one")
    if command[0] == "apprentice":
        _check_flags(step)
    begun = [word.partition("=")[2] for word in command if word.startswith("--output_dir=")]
    for path in [*step.outputs, *(begun if command[0] == "lerobot-train" else [])]:
        if Path(values["out"]).resolve() not in Path(path).resolve().parents:
            raise UserError(
                f"step {name}: expected its outputs inside {values['out']}, found {path}; fix: begin it with {{out}}/"
            )
    return step


def _check_flags(step: Step) -> None:
    """Wrong flags of a late step are named before the first one runs; what it reads may be made on the way."""
    try:
        parse(step.command[1:], folders=False)
    except UserError as error:
        raise UserError(f"step {step.name}: {error}") from error
    except SystemExit:
        raise UserError(
            f"step {step.name}: expected a command that does something, found --help; fix: another"
        ) from None


def _code(command: list[str]) -> str:
    """Fingerprint our files that `command` runs: none for a command that is not ours."""
    if command[0] == "apprentice":
        words = command[1:]
        own, simulators = modules_of(words)
        return fingerprint(*closure(own, ("apprentice.cli",), simulators))
    if command[0] in ("lerobot-train", "lerobot-eval"):
        return fingerprint(*closure(PLUGIN))
    return "none"


def _continued(command: list[str]) -> list[str]:
    """The command that goes on: our own do so by themselves, lerobot-train needs a flag for it, and refuses a
    begun folder.
    """
    folders = [word.partition("=")[2] for word in command if word.startswith("--output_dir=")]
    if command[0] != "lerobot-train" or not folders:
        return command
    config = Path(folders[0], "checkpoints", "last", "pretrained_model", "train_config.json")
    if config.exists():
        return [command[0], f"--config_path={config}", "--resume=true"]
    _delete(Path(folders[0]))
    return command


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _say(text: str) -> None:
    console.print(text, style="bold", markup=False, highlight=False, soft_wrap=True)
