"""The same policies on the same episodes: `apprentice eval` against `lerobot-eval`, by outcome and by the clock.

    python benchmarks/eval.py                                  # 12 episodes, about 10 minutes on two quiet cores
    python benchmarks/eval.py --episodes 34                    # the full 102
    python benchmarks/eval.py --sides exact fast --episodes 50 \\
        --policies expert=assets/seer student=runs/demo/two-stage/checkpoint

LeRobot runs as it comes, but at the policy's 128 px (its default, 360 px, is slower) and from seed 0. A side is a
command, its start included. What has been run in `--out` is not run again.
Required: exact mode ends every episode as LeRobot does, after as many steps; fast mode's rate differs from exact mode's
by an interval that holds 0 (300 episodes at least: the third command); ratio at least 8.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.table import Table

from apprentice.common.errors import UserError
from apprentice.common.files import fingerprint, read_json, write_json
from apprentice.common.intervals import tango, wilson
from apprentice.common.progress import console
from apprentice.evaluate.results import Evaluation
from apprentice.simulators.libero.simulator.suites import initial_states, tasks

SIDES = ("lerobot", "exact", "fast")
SIZE = 128  # px
REQUIRED = 8
Outcomes = dict[tuple[str, int, int], tuple[bool, int]]  # policy, task, initial state -> success, steps


def lerobot_side(options: argparse.Namespace, folder: Path) -> Outcomes:
    """`lerobot-eval`, a command for each policy. It cannot go on where it was killed: it starts over."""
    environment = os.environ | {"LIBERO_CONFIG_PATH": str(write_states(options, folder / "libero"))}
    episodes = [(task, state) for task in sorted(options.tasks) for state in range(options.episodes)]
    outcomes: Outcomes = {}
    for name, policy in options.policies.items():
        log = folder / name / "outcomes.jsonl"
        command = [sys.executable, __file__, "--as-lerobot", str(log)]
        command += [f"--policy.path={policy}", "--policy.device=cpu", "--env.type=libero", "--seed=0"]
        command += [f"--env.task={options.suite}", f"--env.task_ids={options.tasks}"]
        command += [f"--eval.n_episodes={options.episodes}", f"--output_dir={folder / name / 'output'}"]
        command += [f"--env.observation_{side}={SIZE}" for side in ("height", "width")]
        if len(lines(log)) < len(episodes):
            shutil.rmtree(folder / name, ignore_errors=True)
            timed(command, folder / name, environment)
        for (task, state), line in zip(episodes, lines(log), strict=True):
            outcomes[name, task, state] = line["success"], line["steps"]
    return outcomes


def write_states(options: argparse.Namespace, folder: Path) -> Path:
    """The initial states in the format that LeRobot reads (docs/lerobot.md); returns the folder of a configuration."""
    states = folder / "init_states" / options.suite
    states.mkdir(parents=True, exist_ok=True)
    for task in options.tasks:
        name = tasks(options.suite)[task].bddl.stem + ".pruned_init"
        torch.save(initial_states(options.suite, task), states / name)
    (folder / "config.yaml").write_text(yaml.safe_dump({"init_states": str(states.parent)}))
    return folder


def as_lerobot(log: Path, arguments: list[str]) -> None:
    """`lerobot-eval` itself; how each episode ended is written down too, for it keeps no numbers of steps."""
    from lerobot.scripts import lerobot_eval

    plain = lerobot_eval.rollout

    def rollout(*positional: Any, **named: Any) -> dict[str, Any]:
        result = plain(*positional, **named)
        with log.open("a") as stream:
            for done, success in zip(result["done"], result["success"], strict=True):
                steps = int(done.int().argmax()) + 1  # of several in a batch, some go on after their end
                stream.write(json.dumps({"success": bool(success[:steps].any()), "steps": steps}) + "\n")
        return result

    lerobot_eval.rollout = rollout
    sys.argv = ["lerobot-eval", *arguments]
    lerobot_eval.main()


def our_side(options: argparse.Namespace, folder: Path, render: str) -> Outcomes:
    """`apprentice eval`, with as many workers as asked for."""
    command = [sys.executable, "-m", "apprentice", "eval", "--suite", options.suite, "--render", render]
    command += ["--policies", *(f"{name}={policy}" for name, policy in options.policies.items())]
    command += ["--tasks", *map(str, options.tasks), "--episodes", str(options.episodes)]
    command += ["--workers", str(options.workers), "--size", str(SIZE), "--out-dir", str(folder / "evaluation")]
    wanted = len(options.policies) * len(options.tasks) * options.episodes
    if not (folder / "evaluation").exists() or len(Evaluation.load(folder / "evaluation").episodes) < wanted:
        timed(command, folder, os.environ)
    episodes = Evaluation.load(folder / "evaluation").episodes
    return {(e.policy, e.task, e.init_state): (e.success, e.steps) for e in episodes}


def timed(command: list[str], folder: Path, environment: Any) -> None:
    """Run a command and add its seconds to those in `folder`, also if it fails. Raises UserError then."""
    folder.mkdir(parents=True, exist_ok=True)
    clock, start = folder / "seconds.json", time.monotonic()
    before = read_json(clock) if clock.exists() else 0.0
    with (folder / "output.log").open("a") as log:
        code = subprocess.run(command, env=environment, stdout=log, stderr=log).returncode
    write_json(clock, before + time.monotonic() - start)
    if code:
        raise UserError(f"expected {' '.join(command[:6])} ... to succeed, found exit code {code}; fix: see {log.name}")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def report_rates(sides: dict[str, Outcomes], took: dict[str, float]) -> None:
    table = Table("side", "successes", "95 % interval", "steps", "minutes", "episodes a minute")
    for name, outcomes in sides.items():
        successes, steps = (sum(int(outcome[k]) for outcome in outcomes.values()) for k in range(2))
        interval = "{:.1%} to {:.1%}".format(*wilson(successes, len(outcomes)))
        minutes = took[name] / 60
        row = (f"{successes}/{len(outcomes)}", interval, str(steps), f"{minutes:.1f}", f"{len(outcomes) / minutes:.2f}")
        table.add_row(name, *row)
    console.print(table)


def report_pair(a: str, b: str, sides: dict[str, Outcomes]) -> None:
    """Episode by episode: outcomes, steps, and the difference of the rates."""
    pairs = {key: (sides[a][key], sides[b][key]) for key in sides[a] if key in sides[b]}
    same = sum(x[0] == y[0] for x, y in pairs.values())
    steps = sum(x == y for x, y in pairs.values())
    won, lost = (sum(x[0] > y[0] for x, y in pairs.values()), sum(x[0] < y[0] for x, y in pairs.values()))
    low, high = tango(won, lost, len(pairs))
    console.print(
        f"{a} and {b}: {same} of {len(pairs)} episodes end alike, {steps} of them after the same number of steps; "
        f"{a} - {b}: {(won - lost) / max(len(pairs), 1):+.1%} (95 %: {low:+.1%} to {high:+.1%})",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    for (policy, task, state), (x, y) in pairs.items():
        if x != y:
            said = [f"{side} {'succeeds' if x[0] else 'fails'} in {x[1]}" for side, x in ((a, x), (b, y))]
            console.print(f"  {policy}, task {task}, initial state {state}: {', '.join(said)}", highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policies", nargs="+", default=["expert=assets/seer"], help="NAME=CHECKPOINT")
    parser.add_argument("--suite", default="libero_goal")
    parser.add_argument("--tasks", nargs="+", type=int, default=[1, 4, 8])
    parser.add_argument("--episodes", type=int, default=4, help="initial states of each task (default: 4)")
    parser.add_argument("--workers", type=int, default=2, help="of apprentice eval (default: 2)")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--out", type=Path, default=Path("runs/bench-eval"))
    options = parser.parse_args()
    options.policies = dict(word.split("=", 1) for word in options.policies)
    which = [options.policies, options.suite, options.tasks, options.episodes, options.workers]
    root = options.out.absolute() / fingerprint(json.dumps(which))
    sides: dict[str, Outcomes] = {}
    for side in options.sides:
        folder = root / side
        sides[side] = lerobot_side(options, folder) if side == "lerobot" else our_side(options, folder, side)
    took = {side: sum(read_json(path) for path in (root / side).rglob("seconds.json")) for side in sides}
    report_rates(sides, took)
    for a, b in (("exact", "lerobot"), ("fast", "exact")):
        if a in sides and b in sides:
            report_pair(a, b, sides)
    if {"fast", "lerobot"} <= sides.keys():
        print(f"ratio: {took['lerobot'] / took['fast']:.2f} (required: at least {REQUIRED})")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--as-lerobot"]:
        as_lerobot(Path(sys.argv[2]), sys.argv[3:])
    else:
        main()
