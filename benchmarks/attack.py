"""Strangers attack `apprentice serve` while a good client uses it.

    python benchmarks/attack.py --messages 5000                        # a Seer; about a minute on two quiet cores
    python benchmarks/attack.py --messages 5000 --history 3            # a student of random weights that remembers

The server runs in a process of its own. First `--attackers` good clients ask for plans with the longest instruction,
for what the policy itself takes is no leak. Then the good client plays an episode alone: these are the answers that
it has to get, to the last bit, again and again, while as many attackers send all kinds of messages, each kind in
turn. A message counts as survived if the server reacts as the kind deserves: an error, a closed connection, an
acknowledgement, a plan. A flood counts as one message. In the end the server gets a SIGTERM.
Required: every message survived; every good answer equal; the worst wait for one under 1 s; memory grows by less than
clients x 6 x the largest message; no traceback in the log; the server ends within 5 s, with 0.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from queue import Empty
from typing import Any

import numpy as np
from attack_kinds import LONGEST, Target, attacker, connections, messages
from rich.table import Table
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from apprentice.common.progress import Meter, console
from apprentice.serve.wire import pack, unpack

ROOT = Path(__file__).parents[1]
STEPS = 12  # questions of an episode of the good client
WORST_WAIT, LONGEST_END = 1.0, 5.0  # s
COPIES = 6  # how often a client's largest message may lie in memory
CLIENTS = 32


def attack(target: Target, numbers: range, at_once: int, seed: int, results: Any) -> None:
    """A process of attackers, which sends the messages of these numbers."""
    os.nice(5)
    rng = np.random.default_rng(seed)
    names = [*messages(target, rng), *connections(target, rng)]
    order = [names[number % len(names)] for number in numbers]
    random.Random(seed).shuffle(order)
    kinds = iter(order)

    async def all_of_them() -> None:
        report = lambda *found: results.put(found)  # noqa: E731
        tasks: list[Awaitable[None]] = [
            attacker(target, kinds, np.random.default_rng([seed, number]), report) for number in range(at_once)
        ]
        await asyncio.gather(*tasks)

    asyncio.run(all_of_them())


# ---- the good client


@dataclass
class Good:
    """What the good client waited for, and how many of its answers differ from those that it got alone."""

    expected: list[np.ndarray]
    waits: list[float]
    wrong: int = 0
    refused: int = 0


async def episode(target: Target) -> tuple[list[np.ndarray], list[float]]:
    """One episode of the good client: actions, and seconds for each answer, the handshake's first."""
    rng, actions, waits = np.random.default_rng(7), [], []
    start = time.perf_counter()
    url = f"ws://{target.host}:{target.port}/?seed=7"
    async with connect(url, compression=None, max_size=None, proxy=None, open_timeout=60) as connection:
        await connection.recv()
        waits.append(time.perf_counter() - start)
        for _ in range(STEPS):
            message = pack(target.observation(rng))
            start = time.perf_counter()
            await connection.send(message)
            answer = await asyncio.wait_for(connection.recv(), 120)
            waits.append(time.perf_counter() - start)
            actions.append(unpack(answer)["actions"] if isinstance(answer, bytes) else np.array(answer))
    return actions, waits


async def warm(target: Target, clients: int) -> float:
    """Let the policy take what it takes itself: some clients at a time, each with the longest instruction. The worst
    wait of one of them (s).
    """

    async def one() -> float:
        url, rng, waits = f"ws://{target.host}:{target.port}", np.random.default_rng(0), []
        async with connect(url, compression=None, max_size=None, proxy=None, open_timeout=60) as connection:
            await connection.recv()
            for _ in range(4):
                start = time.perf_counter()
                await connection.send(pack(target.observation(rng, prompt=LONGEST)))
                await connection.recv()
                waits.append(time.perf_counter() - start)
        return max(waits)

    return max(await asyncio.gather(*(one() for _ in range(clients))))


async def play(target: Target, good: Good, until: Callable[[], bool]) -> None:
    """Episodes, one after the other."""
    while not until():
        try:
            actions, waits = await episode(target)
        except (InvalidHandshake, ConnectionClosed, OSError) as error:
            console.print(f"the good client was sent away: {type(error).__name__}: {error}", highlight=False)
            good.refused += 1
            continue
        good.waits += waits
        good.wrong += sum(not np.array_equal(a, b) for a, b in zip(actions, good.expected, strict=True))


# ---- the server


def serve(folder: Path, log: Path) -> tuple[subprocess.Popen[str], int]:
    """Start it; its process and its port."""
    command = [sys.executable, "-m", "apprentice", "serve", str(folder), "--port", "0", "--clients", str(CLIENTS)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
    assert process.stdout is not None
    line = process.stdout.readline()
    if "ws://" not in line:
        raise SystemExit(f"expected an address, found {line!r}; see {log}")
    return process, int(line.rsplit(":", 1)[1])


def memory(process: subprocess.Popen[str]) -> tuple[float, float]:
    """Resident memory now, and the most that it ever was (MB)."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    found = {
        key: int(value.split()[0]) * 1024 / 1e6 for key, value in (line.split(":", 1) for line in lines if "kB" in line)
    }
    return found["VmRSS"], found["VmHWM"]


def student(folder: Path, history: int) -> Path:
    """A student of the assets, its own parts random, that reads `history` steps."""
    import torch
    from lerobot.configs import FeatureType
    from lerobot.utils.feature_utils import dataset_to_policy_features

    from apprentice.data.dataset import open_dataset
    from apprentice.policy.configuration_apprentice import ApprenticeConfig
    from apprentice.policy.modeling_apprentice import ApprenticePolicy
    from apprentice.policy.processor_apprentice import make_apprentice_pre_post_processors

    torch.manual_seed(0)
    meta = open_dataset(ROOT / "assets/demonstrations/libero_goal").meta
    features = dataset_to_policy_features(meta.features)
    config = ApprenticeConfig(
        vlm=str(ROOT / "assets/nano-vlm"),
        expert=str(ROOT / "assets/seer"),
        n_obs_steps=history,
        input_features={k: f for k, f in features.items() if f.type is not FeatureType.ACTION},
        output_features={k: f for k, f in features.items() if f.type is FeatureType.ACTION},
        device="cpu",
    )
    policy = ApprenticePolicy(config, dataset_stats=meta.stats, dataset_meta=meta)
    policy.save_pretrained(folder)
    for processor in make_apprentice_pre_post_processors(config):
        processor.save_pretrained(folder)
    return folder


def target_of(folder: Path, port: int) -> Target:
    """What the checkpoint reads, as its configuration says."""
    from apprentice.serve.checkpoint import configured
    from apprentice.serve.client import KEYS
    from apprentice.serve.requests import Reader

    reader = Reader(configured("policy", folder))
    images = {key: shape for key, shape in reader.needed.items() if len(shape) == 3}
    if len(set(images.values())) != 1:
        raise SystemExit(f"expected images of one size, found {images}")
    size = next(iter(images.values()))
    names = tuple(KEYS.get(key, key) for key in images)
    state = reader.needed["observation.state"][0]
    return Target("127.0.0.1", port, reader.largest, names, size, state, "put the bowl on the stove")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=5000)
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "assets/seer")
    parser.add_argument("--history", type=int, default=0, help="serve a student that reads so many steps instead")
    parser.add_argument("--attackers", type=int, default=8, help="connections at a time, in two processes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    parser.add_argument("--loose", action="store_true", help="do not judge the worst wait: others use the machine")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = student(Path(scratch) / "student", options.history) if options.history else options.checkpoint
        figures = run(options, folder, Path(scratch) / "server.log")
    if options.out:
        options.out.write_text(json.dumps(figures, indent=2) + "\n")
    if figures["faults"]:
        raise SystemExit("; ".join(figures["faults"]))


def run(options: argparse.Namespace, folder: Path, log: Path) -> dict[str, Any]:
    """The whole of it; figures, and under `faults` what was required and is not so."""
    process, port = serve(folder, log)
    target = target_of(folder, port)
    asyncio.run(warm(target, options.attackers))
    longest = asyncio.run(warm(target, 1))
    expected, alone = asyncio.run(episode(target))
    before = memory(process)[1]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    half = options.messages // 2
    helpers = [
        context.Process(target=attack, args=(target, numbers, options.attackers // 2, options.seed + start, results))
        for start, numbers in enumerate((range(half), range(half, options.messages)))
    ]
    for helper in helpers:
        helper.start()
    good, table, faults = Good(expected, []), dict[str, Counter[str]](), list[str]()

    async def watched() -> None:
        done = 0
        playing = asyncio.ensure_future(play(target, good, lambda: done >= options.messages))
        with Meter("messages", options.messages) as meter:
            while done < options.messages and process.poll() is None:
                try:
                    kind, found, fault = results.get_nowait()
                except Empty:
                    if not any(helper.is_alive() for helper in helpers) and results.empty():
                        break
                    await asyncio.sleep(0.02)
                    continue
                await asyncio.sleep(0)  # for the good client, in this thread too
                done += 1
                meter.advance()
                table.setdefault(kind, Counter())[found] += 1
                if fault:
                    faults.append(f"{kind}: {fault}")
        done = options.messages
        await playing

    start = time.monotonic()
    asyncio.run(watched())
    seconds = time.monotonic() - start
    for helper in helpers:
        helper.join()
    alive = process.poll() is None
    after, peak = memory(process) if alive else (0.0, 0.0)
    process.send_signal(signal.SIGTERM)
    end = time.monotonic()
    try:
        code: int | None = process.wait(60)
    except subprocess.TimeoutExpired:
        code = None
        process.kill()
    ended = time.monotonic() - end
    text = log.read_text()
    bound = CLIENTS * COPIES * target.largest / 1e6
    survived = sum(sum(counts.values()) for counts in table.values()) - len(faults)
    figures = {
        "messages": options.messages, "survived": survived, "seconds": round(seconds, 1),
        "good answers": len(good.waits) - len(good.waits) // (STEPS + 1), "good answers that differ": good.wrong,
        "good client sent away": good.refused,
        "wait alone, median (ms)": round(1000 * float(np.median(alone)), 1),
        "wait alone, worst (ms)": round(1000 * max(alone), 1),
        "wait of the longest instruction alone, worst (ms)": round(1000 * longest, 1),
        "wait, median (ms)": round(1000 * float(np.median(good.waits)), 1),
        "wait, 99 % (ms)": round(1000 * float(np.quantile(good.waits, 0.99)), 1),
        "wait, worst (ms)": round(1000 * max(good.waits), 1),
        "memory before, after, most (MB)": [round(value) for value in (before, after, peak)],
        "memory allowed to grow (MB)": round(bound), "log lines": text.count("\n"),
        "ended after (s)": round(ended, 2), "exit code": code, "kinds": len(table),
    }  # fmt: skip
    show(table, figures)
    checks = {
        "the server died": not alive,
        f"answers of the good client differ: {good.wrong}": good.wrong > 0,
        f"the good client was sent away: {good.refused}": good.refused > 0,
        f"the worst wait is {max(good.waits):.2f} s": max(good.waits) > WORST_WAIT and not options.loose,
        f"memory grew by {peak - before:.0f} MB, more than {bound:.0f}": peak - before > bound,
        f"a traceback in the log: {text[-2000:]}": "Traceback" in text,
        f"the server ended after {ended:.1f} s with {code}": ended > LONGEST_END or code != 0,
    }
    return figures | {"faults": [*faults[:20], *(text for text, wrong in checks.items() if wrong)]}


def show(table: dict[str, Counter[str]], figures: dict[str, Any]) -> None:
    rows = Table("kind", "attempted", "survived", "the server's answer")
    for kind, counts in table.items():
        lost = counts["failed"] + counts["broken off"]
        said = ", ".join(f"{found} {count}" for found, count in counts.most_common())
        rows.add_row(kind, str(sum(counts.values())), str(sum(counts.values()) - lost), said)
    console.print(rows)
    for name, value in figures.items():
        console.print(f"{name}: {value}", highlight=False)


if __name__ == "__main__":
    main()
