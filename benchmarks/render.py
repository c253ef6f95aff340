"""Images a second, fast against exact: the same scenes, both cameras, the four suites, one run.

    python benchmarks/render.py                                   # every kind of scene, about 5 minutes on a quiet core
    python benchmarks/render.py --suites libero_goal --tasks 0 8

The hand visits every object, so that the wrist's camera sees each from near. CPU seconds of one thread are counted.
Required: ratio at least 5, mean PSNR at least 30 dB. The worst image of each suite is saved: exact, fast, and three
times their difference.
"""

import os

os.environ.setdefault("LP_NUM_THREADS", "1")  # Mesa's software renderer: its threads wait busily

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from apprentice.simulators.libero.simulator.env import LiberoEnv, Snapshot
from apprentice.simulators.libero.simulator.render import CAMERAS

SCENES = {"libero_spatial": [0], "libero_object": [0, 1, 3], "libero_goal": [0], "libero_10": [0, 2, 3, 4, 5, 9]}
KEYS = [f"observation.images.{camera}" for camera in CAMERAS]
STEPS = 24  # of 50 ms for each object


@dataclass
class Score:
    """Of one suite: seconds an image, PSNR of each image, and the worst."""

    exact: list[float] = field(default_factory=list)
    fast: list[float] = field(default_factory=list)
    psnr: list[list[float]] = field(default_factory=list)  # (N, 2) dB
    worst: tuple[float, np.ndarray | None, np.ndarray | None] = (np.inf, None, None)


def visits(env: LiberoEnv, frames: int) -> Iterator[Snapshot]:
    """An episode in which the hand goes over every object: `frames` of its moments, at the start and above objects."""
    env.reset(seed=env.task, start_noise=0.04)
    moments = [env.snapshot()]
    for body in env.control.env.obj_body_id.values():
        target = env.data.xpos[body] + [0, 0, 0.12]
        for step in range(STEPS):
            error = target - env.data.site_xpos[env.control.env.robots[0].eef_site_id]
            env.step(np.r_[np.clip(error * 1.8 / 0.05, -1, 1), np.zeros(3), 1.0 if step < STEPS // 2 else -1.0])
            if step in (10, STEPS - 1):
                moments.append(env.snapshot())
    chosen = np.linspace(0, len(moments) - 1, min(frames, len(moments))).round().astype(int)
    return (moments[index] for index in chosen)


def draw(env: LiberoEnv, moments: list[Snapshot]) -> tuple[np.ndarray, float]:
    """Images (N, 2, H, W, 3) and CPU seconds for one of them."""
    env.restore(moments[0])
    env.observe()  # makes the renderer
    images, start = [], time.process_time()
    for moment in moments:
        env.restore(moment)
        seen = env.observe()
        images.append([seen[key] for key in KEYS])
    return np.array(images), (time.process_time() - start) / (len(moments) * len(KEYS))


def compare(score: Score, suite: str, task: int, frames: int) -> None:
    """Draw moments of one task both ways."""
    exact_env, fast_env = LiberoEnv(suite, task, render="exact"), LiberoEnv(suite, task)
    fast_env.reset(seed=task)
    moments = list(visits(exact_env, frames))
    (exact, exact_seconds), (fast, fast_seconds) = draw(exact_env, moments), draw(fast_env, moments)
    exact_env.close()
    fast_env.close()
    error = ((exact.astype(float) - fast) ** 2).mean(axis=(2, 3, 4))
    psnr = 10 * np.log10(255**2 / np.maximum(error, 1e-6))
    score.exact.append(exact_seconds)
    score.fast.append(fast_seconds)
    score.psnr += psnr.tolist()
    lowest = np.unravel_index(psnr.argmin(), psnr.shape)
    if psnr[lowest] < score.worst[0]:
        score.worst = (float(psnr[lowest]), exact[lowest], fast[lowest])
    print(
        f"{suite} {task}: {1e3 * exact_seconds:.1f} ms exact, {1e3 * fast_seconds:.1f} ms fast, "
        f"PSNR {np.round(psnr.mean(axis=0), 1)} dB",
        flush=True,
    )


def save_worst(score: Score, path: Path) -> None:
    _, exact, fast = score.worst
    assert exact is not None and fast is not None
    difference = np.minimum(3 * np.abs(exact.astype(int) - fast), 255).astype(np.uint8)
    sheet = Image.fromarray(np.concatenate([exact, fast, difference], axis=1))
    sheet.resize((sheet.width * 4, sheet.height * 4), Image.Resampling.NEAREST).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suites", nargs="+", default=list(SCENES))
    parser.add_argument("--tasks", nargs="+", type=int, help="of each suite (default: every kind of scene)")
    parser.add_argument("--frames", type=int, default=8, help="of each task, by both cameras")
    parser.add_argument("--out", type=Path, default=Path("runs/render"), help="folder for the worst images")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    scores = {suite: Score() for suite in options.suites}
    for suite, score in scores.items():
        for task in options.tasks or SCENES[suite]:
            compare(score, suite, task, options.frames)
        save_worst(score, options.out / f"{suite}.png")
    for suite, score in scores.items():
        exact, fast = np.mean(score.exact), np.mean(score.fast)
        mean = np.mean(score.psnr, axis=0)
        print(
            f"{suite}: {1 / exact:.1f} images/s exact, {1 / fast:.1f} fast, {exact / fast:.1f} times; PSNR of "
            f"{len(score.psnr)} pairs: agent {mean[0]:.1f}, wrist {mean[1]:.1f}, worst {score.worst[0]:.1f} dB"
        )
    psnr = np.mean([np.mean(score.psnr) for score in scores.values()])
    print(f"mean PSNR: {psnr:.1f} dB (required: at least 30); worst images in {options.out}")
    exact, fast = (np.mean([np.mean(getattr(s, way)) for s in scores.values()]) for way in ("exact", "fast"))
    print(f"ratio: {exact / fast:.2f}")


if __name__ == "__main__":
    main()
