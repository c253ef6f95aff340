"""What flags must satisfy beside their types, before anything heavy is imported: names that exist, flags that go
together, folders and files that are there.

It knows names and places; what is inside of a file is checked by whoever reads it.
"""

import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from apprentice.common.errors import UserError, meant

CHOICES: dict[str, Collection[str]] = {"align_loss": ("mse", "l2"), "render": ("fast", "exact")}
DRAWING = ("collect", "correct", "doctor", "eval", "selfcheck", "scenes")


def check(command: str, given: dict[str, Any], positional: Collection[str] = (), folders: bool = True) -> None:
    """Raise UserError for a flag of `command` that names nothing, or does nothing beside the others; with `folders`,
    also for a place where there is nothing of its kind, or where nothing can be written. `positional` are no flags.
    """
    for name, known in CHOICES.items():
        for value in _several(given.get(name)):
            _one_of(_flag(name), value, known)
    if given.get("probes"):
        from apprentice.evaluate.episode.probes import PROBES

        for probe in given["probes"]:
            _one_of("--probes", probe, PROBES)
    if "suite" in given or "suites" in given:
        _suites(given)
    if command == "eval":
        _episodes(given)
        for name, place in given["policies"].items():
            if is_address(place):
                _address(f"policy {name}", place)
    if command in ("align", "finetune"):
        _student(command, given)
    if folders and (command in DRAWING or given.get("rollouts")):
        _drawing(given)
    if folders:
        _places(command, given, positional)


def is_address(place: str) -> bool:
    """Whether a policy is a server's address, and no folder."""
    return "://" in str(place)


def _suites(given: dict[str, Any]) -> None:
    from apprentice.simulators.base import simulator_of, suites

    for suite in _several(given.get("suite") or given.get("suites")):
        _one_of("--suite" if "suite" in given else "--suites", suite, suites())
    tasks = [*_several(given.get("tasks"))]
    for pair in (given.get("instruct") or {}).items():
        tasks += pair
    for task in tasks:
        if task >= (count := simulator_of(given["suite"]).task_count(given["suite"])):
            raise UserError(f"--tasks: expected tasks 0 to {count - 1} of {given['suite']}, found {task}; fix: others")
    if len(set(named := _several(given.get("tasks")))) < len(named):
        raise UserError(f"--tasks: expected each task once, found {' '.join(map(str, named))}; fix: leave out doubles")


def _drawing(given: dict[str, Any]) -> None:
    """Can the simulators draw that the command may use?"""
    from apprentice.simulators.base import simulator_of, simulators

    named = _several(given.get("suite") or given.get("suites"))
    for each in [simulator_of(suite) for suite in named] or simulators():
        each.check_drawing()


def _episodes(given: dict[str, Any]) -> None:
    from apprentice.simulators.base import simulator_of

    states = simulator_of(given["suite"]).test_states
    if given["layouts"] == "test" and given["episodes"] > states:
        raise UserError(
            f"--episodes: expected 1 to {states}, one for each initial state of the test, found "
            f"{given['episodes']}; fix: as many as there are, or --layouts fresh"
        )


def _student(command: str, given: dict[str, Any]) -> None:
    for name in ("vlm", "expert") if not given["student"] else ():
        if not given[name]:
            raise UserError(f"{command}: expected --{name} or --student, found neither; fix: --{name}=FOLDER")


def _address(what: str, place: str) -> None:
    try:
        parts = urlsplit(place)
        fits = parts.scheme in ("ws", "wss") and parts.hostname and (parts.port or parts.scheme == "wss")
    except ValueError:
        fits = False
    if not fits:
        raise UserError(f"{what}: expected an address ws://HOST:PORT, found {place}; fix: write it so")


def _places(command: str, given: dict[str, Any], positional: Collection[str]) -> None:
    """Look for the inputs, then whether outputs can be written."""
    for name, (kinds, test, wanted) in INPUTS.items():
        if command not in kinds.split():
            continue
        for place in _several(given.get(name)):
            if place not in ("", None) and not is_address(str(place)):
                _there(name.upper() if name in positional else _flag(name), str(place), test, wanted)
    for name in ("out", "output", "out_dir", "file", "folder"):
        if given.get(name) and (command, name) != ("split", "folder"):
            _writable(_flag(name), Path(given[name]), name == "file" or command == "report")


def _there(flag: str, place: str, test: Callable[[Path], bool], wanted: str) -> None:
    path = Path(place).expanduser()
    if test(path):
        return
    usual = ("checkpoint", "checkpoints/last/pretrained_model", "model") if path.is_dir() else ()
    inside = [path / name for name in usual if test(path / name)]
    advice = f"did you mean {inside[0]}?" if inside else f"name {wanted}" if path.exists() else _near(path)
    found = "nothing" if not path.exists() else "a file" if path.is_file() else "another folder"
    raise UserError(f"{flag}: expected {wanted} at {place}, found {found}; fix: {advice}")


def _near(path: Path) -> str:
    """Advice from the names beside the first part of a path that is not there."""
    for part in [*reversed(path.parents), path]:
        if not part.exists():
            try:
                beside = list(part.parent.iterdir())
            except OSError:
                beside = []
            advice = meant(part.name, [entry.name for entry in beside], "")
            if not advice:
                break
            lead, name = advice[: advice.rindex(" ") + 1], advice[advice.rindex(" ") + 1 :]
            return f"{lead}{part.parent / name}"
    return "name one that is there"


def _writable(flag: str, path: Path, is_file: bool) -> None:
    if path.exists() and path.is_dir() == is_file:
        kinds = ("a file", "a folder") if is_file else ("a folder", "a file")
        raise UserError(f"{flag}: expected {kinds[0]} to write at {path}, found {kinds[1]}; fix: another place")
    for parent in path.absolute().parents:
        if parent.exists():
            if not parent.is_dir():
                raise UserError(f"{flag}: expected a folder at {parent}, found a file; fix: another place")
            return


def _one_of(flag: str, value: str, known: Collection[str]) -> None:
    if value not in known:
        raise UserError(f"{flag}: expected one of {', '.join(known)}, found {value}; fix: {meant(value, known)}")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _several(value: Any) -> list[Any]:
    """The words of a flag: one, several, or what names stand for."""
    if value is None:
        return []
    if isinstance(value, dict):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple) else [value]


def _has(*names: str) -> Callable[[Path], bool]:
    return lambda path: any((path / name).is_file() for name in names)


def _is_dataset(path: Path) -> bool:
    if not path.exists():  # FOLDER=WEIGHT
        folder, equals, weight = str(path).rpartition("=")
        path = Path(folder) if equals and re.fullmatch(r"[0-9.eE+-]+", weight) else path
    return (path / "meta" / "info.json").is_file()


def _is_checkpoint(path: Path) -> bool:
    return (path / "config.json").is_file()


def _is_expert(path: Path) -> bool:
    return _is_checkpoint(path) or path.is_file()


def _is_run(path: Path) -> bool:
    """A run or a checkpoint."""
    return _is_checkpoint(path / "checkpoint") or _is_checkpoint(path)


def _is_vlm(path: Path) -> bool:
    """A folder, or what can only be a name on the hub: OWNER/NAME, without such an OWNER among our folders."""
    owner, slash, name = str(path).partition("/")
    on_hub = bool(slash and re.fullmatch(r"[\w.-]+", owner + name)) and owner.strip(".") and not Path(owner).exists()
    return _is_run(path) or bool(on_hub)


TRAINING = "train-expert align finetune"
# flag: (commands, what is true of its place, what to call that)
INPUTS: dict[str, tuple[str, Callable[[Path], bool], str]] = {
    "dataset": (f"{TRAINING} doctor expert-check plan", _is_dataset, "a LeRobotDataset (a folder with meta/info.json)"),
    "expert": ("align finetune plan", _is_expert, "an expert's checkpoint (a folder with config.json) or a YAML file"),
    "student": ("align finetune", _is_run, "a student's run or checkpoint (a folder with config.json)"),
    "init": ("train-expert", _is_run, "a run or checkpoint (a folder with config.json)"),
    "vlm": ("align finetune plan", _is_vlm, "a VLM (a folder with config.json, or OWNER/NAME on the hub)"),
    "model": ("ask", _is_vlm, "a student or a VLM (a folder with config.json, or OWNER/NAME on the hub)"),
    "images": ("ask", Path.is_file, "a picture"),
    "policies": ("eval", _is_expert, "a checkpoint (a folder with config.json) or an experts.yaml"),
    "policy": ("correct", _is_expert, "a checkpoint (a folder with config.json) or an experts.yaml"),
    "checkpoint": ("serve expert-check", _is_expert, "a checkpoint (a folder with config.json)"),
    "evaluation": ("report record", _has("protocol.json"), "an evaluation (a folder with protocol.json)"),
    "probe": ("report", _has("protocol.json"), "an evaluation (a folder with protocol.json)"),
    "variants": ("report", _has("protocol.json"), "an evaluation (a folder with protocol.json)"),
    "runs": ("compare rates", _has("protocol.json"), "an evaluation (a folder with protocol.json)"),
    "data": ("pretrain-vlm score-vlm build-vlm", Path.is_dir, "a folder of scenes"),
    "run": ("score-vlm", Path.is_dir, "the folder of a pre-trained VLM"),
    "twin": ("score-vlm", Path.is_dir, "the folder of a pre-trained VLM"),
    "parts": ("join", _has("parts.json"), "a folder of parts (with parts.json)"),
    "paths": ("pack", Path.exists, "a file or folder"),
    "folder": ("split", Path.is_dir, "a folder"),
    "path": ("run", Path.is_file, "a recipe (a YAML file, see recipes/)"),
}
