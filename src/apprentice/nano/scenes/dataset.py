"""Random layouts of LIBERO-90's scenes and our own, with their ground truth: what the nano VLM learns to see.

Objects, fixtures, drawers, the robot's arm and the colours of the room are drawn at random and placed by kinematics
alone; a layout with deep contacts is drawn again. Shards (`*.npz`) hold, for every scene,

    images    (N, 2, 128, 128, 3) uint8    agentview, wrist; orientation as in "observation.images.*"
    category  (N, 2, 32, 32) uint8         index into CATEGORIES, at the centres of 4 x 4 px cells
    depth     (N, 2, 32, 32) float16       m
    facts     bytes of a JSON list         one dictionary a scene, see `truth.facts_of`
"""

import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from apprentice.common.errors import FileError, UserError
from apprentice.common.files import replacing
from apprentice.common.pool import spread
from apprentice.common.progress import Meter
from apprentice.nano.scenes.catalogue import HELD_OUT, problems
from apprentice.nano.scenes.labels import render_labelled
from apprentice.nano.scenes.layout import draw
from apprentice.nano.scenes.own_scenes import OWN, kept_for_tests, own_scenes
from apprentice.nano.scenes.scene_model import SceneModel
from apprentice.nano.scenes.shards import ShardedRows, mapped

UNSEEN_LAYOUTS = 15  # a scene of LIBERO-90
OWN_SHARDS = 6  # of each scene of ours; those that are kept for tests have one
OWN_SHARE = 0.75  # of the layouts that are trained on
ARRAYS = ("images", "category", "depth")


def write_scene(job: tuple[str, str, list[int], int, int]) -> int:
    """Write the shards of one scene: (folder, scene, shard numbers, layouts a shard, seed); those that exist are kept.

    Returns the number of layouts.
    """
    folder, scene, numbers, count, seed = job
    missing = [n for n in numbers if not (Path(folder) / f"{scene}-{n:03d}.npz").exists()]
    model = SceneModel(scene, seed) if missing else None
    for number in missing:
        assert model is not None
        rng = np.random.default_rng([seed, number])
        samples: list[dict[str, Any]] = []
        while len(samples) < count:
            try:
                draw(model, rng)
            except RuntimeError:
                continue
            samples.append(render_labelled(model))
        text = json.dumps([sample["facts"] for sample in samples]).encode()
        arrays = {key: np.stack([sample[key] for sample in samples]) for key in ARRAYS}
        with replacing(Path(folder) / f"{scene}-{number:03d}.npz") as fresh:
            np.savez(fresh, **arrays, facts=np.frombuffer(text, np.uint8))  # type: ignore[arg-type]
    if model is not None:
        model.close()
    return len(numbers) * count


def generate(folder: Path | str, layouts: int = 40_000, workers: int = 2, shard: int = 100, seed: int = 0) -> None:
    """Draw, render and store random layouts of LIBERO-90's scenes and of our own; shards that exist are kept.

    A shard's name is its scene's and its number, so that held-out scenes are recognised by name; each of those has
    one shard. More layouts asked for later come on top of those that are there.

    Args:
        folder: folder to write.
        layouts: number of layouts to train on; layouts of the held-out scenes are added.
        workers: number of processes.
        shard: number of layouts in a file.
        seed: seed of everything that varies.
    """
    os.environ.setdefault("MUJOCO_GL", "egl")
    os.environ.setdefault("PYOPENGL_PLATFORM", "egl")
    Path(folder).mkdir(parents=True, exist_ok=True)
    jobs = []

    def add(scene: str, numbers: list[int]) -> None:
        jobs.append((str(folder), scene, numbers, shard, zlib.crc32(f"{seed}/{scene}".encode())))

    for scene in problems():
        add(scene, [0])
    for scene in own_scenes(max(2, round(layouts * OWN_SHARE / shard / OWN_SHARDS))):
        add(scene, [0] if kept_for_tests(scene) else list(range(OWN_SHARDS)))
    rounds = round(layouts * (1 - OWN_SHARE) / (len(problems()) - len(HELD_OUT)) / shard)
    for start in range(1, rounds, OWN_SHARDS):
        for scene in problems():
            if scene not in HELD_OUT:
                add(scene, list(range(start, min(start + OWN_SHARDS, rounds))))
    with Meter("drawing scenes", sum(len(job[2]) * job[3] for job in jobs)) as meter:
        for count in spread(write_scene, jobs, workers, renew=2):
            meter.advance(count)


def load(folder: Path | str, part: str, keys: tuple[str, ...] = ARRAYS) -> dict[str, Any]:
    """Stored layouts: `Rows` of the arrays `keys` of the shards, and "facts" as a list of dictionaries.

    `part`: "train", "layouts" (new layouts of LIBERO-90's scenes that it is trained on), "own" (scenes of ours that it
    is not trained on) or "scenes" (LIBERO-90's that it is not trained on).
    """
    chosen = _chosen(folder, part)
    facts: list[dict[str, Any]] = []
    for path, rows in chosen:
        facts += _facts(path)[rows]
    if not facts:
        raise UserError(f"expected rendered scenes in {folder}, found none for {part!r}; fix: generate them first")
    return {key: ShardedRows([mapped(path, key)[rows] for path, rows in chosen]) for key in keys} | {"facts": facts}


def _facts(path: Path) -> list[dict[str, Any]]:
    """What a shard says of its layouts. Raises FileError."""
    text = mapped(path, "facts").tobytes()
    try:
        found: list[dict[str, Any]] = json.loads(text)
        if isinstance(found, list):
            return found
        fault = type(found).__name__
    except (ValueError, RecursionError) as error:
        fault = str(error)
    raise FileError(f"expected a list of facts in {path}, found: {fault}; fix: remove it and make the scenes again")


def available(folder: Path | str, parts: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the parts of which there are layouts."""
    return tuple(part for part in parts if _chosen(folder, part))


def _chosen(folder: Path | str, part: str) -> list[tuple[Path, slice]]:
    """The shards of a part, and which of their rows belong to it."""
    chosen: list[tuple[Path, slice]] = []
    for path in sorted(Path(folder).glob("*.npz"), key=lambda p: p.stem.split("-")[::-1]):
        scene, number = path.stem.rsplit("-", 1)
        first = OWN not in scene and scene not in HELD_OUT and int(number) == 0
        is_of = "scenes" if scene in HELD_OUT else "own" if kept_for_tests(scene) else "train"
        if first and part == "layouts":
            chosen.append((path, slice(None, UNSEEN_LAYOUTS)))
        elif is_of == part:  # the first layouts of the first shard are never trained on
            chosen.append((path, slice(UNSEEN_LAYOUTS if first else 0, None)))
    return chosen


def rows_of_part(size: int, most: int) -> np.ndarray:
    """At most so many row numbers out of `size`, evenly spread."""
    return np.linspace(0, size - 1, min(size, most)).astype(int)
