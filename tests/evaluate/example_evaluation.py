"""An evaluation's folders as `evaluate` and the training stages write them, with outcomes that are known."""

import json

import numpy as np

from apprentice.common.files import write_json
from apprentice.evaluate.episode.trace import Trace
from apprentice.evaluate.episode.video import encode
from apprentice.evaluate.protocol import Protocol
from apprentice.evaluate.results import OTHER_TASK, Episode, Evaluation, append_episode
from apprentice.serve.policy_card import PolicyCard
from apprentice.simulators.libero.evaluation.failures import KINDS
from apprentice.simulators.libero.simulator.suites import tasks

TASKS = (1, 4, 8)
EPISODES = 20
FAILS = {  # policy: the initial states that fail, by task
    "expert": {1: [3, 4, 11], 4: [], 8: [0, 19]},
    "only-ft": {1: [2, 5, 6, 7], 4: [9], 8: [1, 3, 8, 10]},
    "two-stage": {1: [4], 4: [9, 12], 8: []},
}
N_ACTION_STEPS = 4
CHANGED = {"empty": range(10, 18), "moved": range(15, 17)}  # the initial states that fail as well, by probe
PLANS = np.arange(1, 101, dtype=np.float32) / 1000  # s


def moving_square(seconds: float, colour: tuple[int, int, int]) -> list[np.ndarray]:
    frames = []
    for t in range(int(seconds * 5)):
        frame = np.full((128, 128, 3), (206, 196, 180), np.uint8)
        frame[50:78, 8 + 2 * t % 90 : 36 + 2 * t % 90] = colour
        frames.append(frame)
    return frames


def fails_of(policy, task, probe, fails=FAILS):
    """The initial states that fail."""
    return set(fails[policy][task]) | set(CHANGED.get(probe, ()))


def write_evaluation(folder, instructed=(), fails=FAILS, probes=None, suite="libero_goal"):
    protocol = Protocol.with_installed_versions(
        suite=suite,
        tasks=TASKS,
        episodes=EPISODES,
        instructed=instructed,
        step_limit=300,
        image_size=128,
        render="fast",
        probes=probes,
    )
    cards = {name: PolicyCard("apprentice", f"{n:016x}", N_ACTION_STEPS) for n, name in enumerate(fails)}
    evaluation = Evaluation(folder, protocol, cards, [])
    evaluation.save()
    films = {True: encode(moving_square(6, (60, 120, 70)), 10), False: encode(moving_square(5, (150, 50, 40)), 10)}
    trace = Trace(np.zeros((2, 8)), np.zeros((1, 7)), np.arange(100, dtype=np.int32), PLANS)
    for kept in ("videos", "traces"):
        (folder / kept).mkdir()
    (folder / "traces" / "all.npz").write_bytes(trace.to_bytes())
    for name, checkpoint, conditions, task, other, probe, state in evaluation.wanted:
        done = state not in fails_of(name, task, probe, fails)
        instead = task != other and not done and state % 2 == 0
        video = f"{name}-{task}-{other}-{probe}-{state}.mp4" if state < 2 or not done else None
        if video:
            (folder / "videos" / video).write_bytes(films[done])
        episode = Episode(
            policy=name,
            checkpoint=checkpoint,
            conditions=conditions,
            suite=suite,
            task=task,
            instructed=other,
            init_state=state,
            instruction="" if probe == "empty" else tasks(suite)[other].instruction,
            success=done if task == other else instead,
            instructed_success=done,
            steps=100 + state if done else 300,
            seconds=2.25,
            reset_seconds=0.25,
            policy_seconds=0.5,
            render_seconds=0.5,
            physics_seconds=1.0,
            video=video,
            trace="all.npz",
            probe=probe,
            failure=None if done else OTHER_TASK if instead else KINDS[state % 6],
        )
        append_episode(evaluation.log, episode)
    return folder


def write_run(folder, stage, seconds, final, trainable):
    folder.mkdir()
    rng = np.random.default_rng(0)
    steps = np.arange(0, 1500, 10)
    loss = (final + 0.6 * np.exp(-steps / 150)) * np.exp(rng.normal(0, 0.12, len(steps)))
    lines = [
        {"step": int(s), "seconds": seconds * s / 1500, "samples": int(s + 1) * 64, "loss": float(v)}
        for s, v in zip(steps, loss, strict=True)
    ]
    for line in lines[29::30] if stage == "finetune" else ():
        line |= {"validation_loss": 2 * line["loss"], "validation_action_loss": 1.2 * line["loss"]}
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    cost = {"stage": stage, "seconds": seconds, "samples": 96000, "trainable_parameters": trainable}
    write_json(folder / "cost.json", {**cost, "total_parameters": 9_130_000})
    return folder
