"""Runs that are killed and started again: what is there in the end must be what a run that was never killed leaves.

    python benchmarks/kills.py                              # 50 moments and all file operations of six commands
    python benchmarks/kills.py --moments 9 --operations 9 --only align      # fewer

Each trial starts a command in a fresh folder with fresh caches, kills it (SIGKILL), starts the same command again and
compares all files with those of a run that was not killed, byte by byte. Some kills come at a random moment; the others
right before a file operation (open to write, rename, remove, make a folder, ...), one after the other through all that
the command does, which Python's audit events tell. Left out of the comparison is what a clock says: fields called
seconds, ..._seconds, date or created in JSON, and the checksums of files that hold such fields.

Two caches of the simulator are there from the start, for to fill them takes longer than all else: simplified meshes,
and the answer of the check of the simulator. Trials that are done are kept in --out and not done again, as long as the
code stays the same.

All modules are imported once; each run is a fork of this process. Runs are as small as they can be, and save a
checkpoint after every step. When `collect` and `eval` are killed at file operations, which all are of their first
process, they do their jobs in that process; at random moments they have workers, which must go with them.
"""

import argparse
import hashlib
import importlib
import json
import math
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import resumable

from apprentice.common.files import fingerprint

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
os.environ["TTY_COMPATIBLE"] = "0"  # a thread draws the bar on a terminal, and forks do not have it
OPERATIONS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink", "os.utime"}
CLOCKED = ("manifest.json",)  # they hold checksums of files that hold times
SLOW = ("meshes", "selfcheck")  # caches
TRAINING = ["--steps", "3", "--batch-size", "4", "--track", "none", "--dataset", "{inputs}/data"]
COMMANDS = {
    "align": ["align", "--vlm", "{inputs}/vlm", "--expert", "{inputs}/expert", "--out", "{out}/run", *TRAINING],
    "finetune": ["finetune", "--student", "{inputs}/aligned/checkpoint", "--out", "{out}/run", *TRAINING],
    "train-expert": ["train-expert", "--set", "width=48", "layers=1", "heads=2", "--out", "{out}/run", *TRAINING],
    "collect": ["collect", "--suite", "libero_goal", "--tasks", "1", "--episodes", "1", "--size", "32", "--images",
                "--workers", "1", "--out", "{out}/data"],
    "eval": ["eval", "--policies", f"seer={ROOT}/assets/seer", "--suite", "libero_goal", "--tasks", "1", "--episodes",
             "2", "--max-steps", "3", "--film", "none", "--workers", "1", "--out-dir", "{out}/eval"],
    "run": ["run", "{inputs}/recipe.yaml", "--out", "{out}/recipe"],
}  # fmt: skip
RECIPE = """name: kills
out: unused
steps:
  one:
    run: sh -c "sleep 0.2; echo one > {out}/one.new; mv {out}/one.new {out}/one"
    outputs: ["{out}/one"]
  two:
    run: sh -c "mkdir -p {out}/two; cat {out}/one > {out}/two/copy; sleep 0.2; echo two >> {out}/two/copy"
    inputs: ["{out}/one"]
    outputs: ["{out}/two"]
  three:
    run: sh -c "cat {out}/one {out}/two/copy > {out}/three; sleep 0.2"
    inputs: ["{out}/one", "{out}/two"]
    outputs: ["{out}/three"]
"""


def forked(work: Callable[[], int | None], log: Path, wait: float = math.inf) -> tuple[int, float]:
    """Do some work in a fork of this process, killed after `wait` seconds; its exit code, and how long it took (s)."""
    start = time.monotonic()
    child = os.fork()
    if not child:
        stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for number in (1, 2):
            os.dup2(stream, number)
        code = 99
        try:
            code = work() or 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), time.monotonic() - start
        if time.monotonic() - start > wait:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.005)


def run(words: list[str], here: bool, at: int = 0, count: Path | None = None, below: str = "") -> int:
    """In a fork: run a command; kill it before its file operation number `at` in the folder `below`, or `count` all."""
    from tests.support import spread_here

    import apprentice.distill.runs.tracking
    import apprentice.distill.trainer
    import apprentice.evaluate.rollout
    import apprentice.simulators.collection.episode_jobs
    from apprentice.cli import main

    apprentice.distill.trainer.SAVE_EVERY, apprentice.distill.runs.tracking.SAVE_SHARE = 0.0, math.inf
    if here:
        apprentice.evaluate.rollout.spread = apprentice.simulators.collection.episode_jobs.spread = spread_here  # type: ignore[assignment]
    seen: list[str] = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[1], str) and bool(set(arguments[1]) & set("wax+"))
        writes = writes or (event == "open" and arguments[1] is None and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR)))
        if (writes or event in OPERATIONS) and str(arguments[0]).startswith(below):
            seen.append(f"{event} {arguments[0]}")
            if len(seen) == at:
                os.kill(os.getpid(), signal.SIGKILL)

    if at or count:
        sys.addaudithook(watch)
    code = main(words)
    if count:
        count.write_text("\n".join(list(seen)))
    return code


def prepare(inputs: Path) -> None:
    """In a fork: the small dataset, expert, VLM and aligned student that the commands start from."""
    from tests import support

    from apprentice.cli import main
    from apprentice.data.dataset import open_dataset

    support.make_dataset(inputs / "data", video=False)
    support.make_expert(inputs / "expert", open_dataset(inputs / "data"))
    support.make_vlm(inputs / "vlm")
    words = [word.format(inputs=inputs, out=inputs) for word in COMMANDS["align"]]
    assert main(words) == 0
    (inputs / "run").rename(inputs / "aligned")
    (inputs / "recipe.yaml").write_text(RECIPE)


def timeless(content: Any) -> Any:
    """JSON without what a clock says."""
    if isinstance(content, dict):
        return {
            k: timeless(v) for k, v in content.items() if not k.endswith("seconds") and k not in ("date", "created")
        }
    return [timeless(each) for each in content] if isinstance(content, list) else content


def digests(folder: Path) -> dict[str, str]:
    """Each file's SHA-256, of JSON and Parquet without times; folders as well: an empty one is litter, too."""
    import pyarrow.parquet as pq

    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir():
            found[name + "/"] = ""
            continue
        content = path.read_bytes()
        if path.suffix in (".json", ".jsonl") and path.name not in CLOCKED:
            content = "\n".join(
                json.dumps(timeless(json.loads(part)))
                for part in (content.decode().splitlines() if path.suffix == ".jsonl" else [content.decode()])
            ).encode()
        elif path.name == "episodes.parquet" and b"seconds" in content:
            table = pq.read_table(path)
            kept = [column for column in table.column_names if "seconds" not in column and "latenc" not in column]
            content = repr(table.select(kept).to_pylist()).encode()
        elif path.parent.name == "traces" or path.name in (*CLOCKED, "cost.json") or "logs" in path.parts:
            content = b""  # clocks through and through: that it is there has to do
        found[name] = hashlib.sha256(content).hexdigest()
    return found


@dataclass(frozen=True)
class Kill:
    """Before a file operation (the first one is 1), or after a part of the time that the command takes."""

    operation: int | None = None
    part: float | None = None

    def __str__(self) -> str:
        return f"before operation {self.operation}" if self.operation else f"after {self.part:.3f} of the run"


@dataclass(frozen=True)
class Ending:
    job: Kill
    code: str  # fingerprint of our sources
    same: bool | None  # the end as that of a run that was not killed; None: the kill came too late

    @classmethod
    def of_line(cls, line: str) -> "Ending":
        fields = json.loads(line)
        return cls(**{**fields, "job": Kill(**fields["job"])})


class Trials:
    """One command, killed again and again in a folder of its own."""

    def __init__(self, name: str, work: Path, code: str):
        self.name, self.work, self.out, self.code = name, work, work / name / "out", code
        self.log, self.operations = work / name / "output.log", work / name / "operations.txt"
        self.words = [word.format(inputs=work / "inputs", out=self.out) for word in COMMANDS[name]]
        self.expected, self.took = self.unkilled()
        self.steps = self.operations.read_text().splitlines()

    def fresh(self) -> None:
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir(parents=True)
        (self.out / "cache").mkdir()
        os.environ["APPRENTICE_CACHE"] = str(self.out / "cache")
        for kept in SLOW:
            if self.name in ("collect", "eval") and (self.work / kept).exists():
                shutil.copytree(self.work / kept, self.out / "cache" / kept)

    def unkilled(self) -> tuple[dict[str, str], float]:
        begun = lambda: run(self.words, True, count=self.operations, below=str(self.out))  # noqa: E731
        while True:
            self.fresh()
            code, took = forked(begun, self.log)
            if code:
                raise SystemExit(f"{self.name}: expected it to run, found exit code {code}; fix: see {self.log}")
            missing = [
                kept for kept in SLOW if (self.out / "cache" / kept).exists() and not (self.work / kept).exists()
            ]
            if not missing:
                return digests(self.out), took
            for kept in missing:
                shutil.copytree(self.out / "cache" / kept, self.work / kept)

    def trial(self, kill: Kill) -> Ending:
        """Kill and start again."""
        self.fresh()
        at, wait = kill.operation or 0, math.inf if kill.part is None else kill.part * self.took
        code, _ = forked(lambda: run(self.words, bool(at), at, below=str(self.out)), self.log, wait)
        if code == 0:
            return Ending(kill, self.code, None)
        code, _ = forked(lambda: run(self.words, bool(at)), self.log)
        found = digests(self.out)
        wrong = sorted(name for name in found | self.expected if found.get(name) != self.expected.get(name))
        if code or wrong:
            print(f"{self.name}, {kill}: exit code {code}; {', '.join(wrong[:5])}", flush=True)
        return Ending(kill, self.code, not code and not wrong)

    def all(self, operations: int | None, moments: int, seed: int) -> list[Ending]:
        """Of kills before `operations`, evenly spread (None: each), and at random moments."""
        number = min(operations or len(self.steps), len(self.steps))
        chosen = {1 + round(i * (len(self.steps) - 1) / max(1, number - 1)) for i in range(number)}
        draw = random.Random(seed)
        kills = [Kill(operation=at) for at in sorted(chosen)]
        kills += [Kill(part=0.8 * draw.random()) for _ in range(moments)]
        log = self.work / self.name / "trials.jsonl"
        return resumable.run(kills, self.trial, 1, log, Ending.of_line, self.code, self.name, through=one_by_one)

    def row(self, endings: list[Ending]) -> str:
        """Of the table."""
        at_files = [each for each in endings if each.job.operation]
        cells = [self.name]
        for kind in (at_files, [each for each in endings if not each.job.operation]):
            counted = [each.same for each in kind if each.same is not None]
            cells += [str(len(counted)), str(sum(counted))]
        return f"| {' | '.join(cells)} | {len(at_files)} of {len(self.steps)} |"


def one_by_one(measure: Callable[[Any], Any], jobs: list[Any], _: int) -> Iterable[Any]:
    """In this process, which has imported all."""
    return map(measure, jobs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=50, help="random moments of each command (default: 50)")
    parser.add_argument("--operations", type=int, help="file operations of each command (default: all)")
    parser.add_argument("--only", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-kills"))
    options = parser.parse_args()
    work = options.out.resolve()
    work.mkdir(parents=True, exist_ok=True)
    os.environ |= {"APPRENTICE_CACHE": str(work / "cache"), "HF_HOME": str(work / "huggingface")}
    import_all()
    if not (work / "inputs" / "recipe.yaml").exists():
        shutil.rmtree(work / "inputs", ignore_errors=True)
        code, _ = forked(lambda: prepare(work / "inputs"), work / "prepare.log")
        if code:
            raise SystemExit(f"expected small inputs, found exit code {code}; fix: see {work / 'prepare.log'}")
    rows, failures = [], []
    sources = fingerprint(*sorted((ROOT / "src").rglob("*.py")), Path(__file__))
    for name in options.only:
        (work / name).mkdir(exist_ok=True)
        trials = Trials(name, work, sources)
        endings = trials.all(options.operations, options.moments, options.seed)
        rows.append(trials.row(endings))
        failures += [f"{name}, {each.job}" for each in endings if each.same is False]
        print(rows[-1], flush=True)
    print("\n| command | killed at a file operation | same end | at a random moment | same end | operations tried |")
    print("| --- | --: | --: | --: | --: | --: |")
    print("\n".join(rows))
    if failures:
        raise SystemExit("\n".join([f"{len(failures)} ended otherwise:", *failures]))


def import_all() -> None:
    """What the commands need, once for all forks. Nothing here may start a thread: forks do not have them."""
    import torch

    from apprentice.commands import modules_of

    torch.set_num_threads(1)
    for words in COMMANDS.values():
        own, of_simulators = modules_of([word.format(inputs="in", out="out") for word in words])
        for module in (*own, *of_simulators, "tests.support"):
            importlib.import_module(module)


if __name__ == "__main__":
    main()
