"""Random layouts of the 20 LIBERO-90 scenes with their ground truth: what the nano VLM learns to see.

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

from apprentice.errors import UserError
from apprentice.files import replacing
from apprentice.pool import spread
from apprentice.progress import Meter
from apprentice.vlm.nano.catalogue import HELD_OUT, problems
from apprentice.vlm.nano.layout import draw
from apprentice.vlm.nano.stage import Stage
from apprentice.vlm.nano.truth import look

UNSEEN_LAYOUTS = 15  # a scene
ARRAYS = ("images", "category", "depth")


def write_scene(job: tuple[str, str, list[int], int, int]) -> int:
    """Write the shards of one scene: (folder, scene, shard numbers, layouts a shard, seed); those that exist are kept.

    Returns the number of layouts.
    """
    folder, scene, numbers, count, seed = job
    missing = [n for n in numbers if not (Path(folder) / f"{scene}-{n:03d}.npz").exists()]
    stage = Stage(scene, seed) if missing else None
    for number in missing:
        assert stage is not None
        rng = np.random.default_rng([seed, number])
        looks: list[dict[str, Any]] = []
        while len(looks) < count:
            try:
                draw(stage, rng)
            except RuntimeError:
                continue
            looks.append(look(stage))
        text = json.dumps([look["facts"] for look in looks]).encode()
        arrays = {key: np.stack([look[key] for look in looks]) for key in ARRAYS}
        with replacing(Path(folder) / f"{scene}-{number:03d}.npz") as fresh:
            np.savez(fresh, **arrays, facts=np.frombuffer(text, np.uint8))  # type: ignore[arg-type]
    if stage is not None:
        stage.close()
    return len(numbers) * count


def generate(folder: Path | str, layouts: int = 8_000, workers: int = 2, shard: int = 100, seed: int = 0) -> None:
    """Draw, render and store random layouts of the 20 LIBERO-90 scenes; shards that exist are kept.

    A shard's name is its scene's and its number, so that held-out scenes are told apart by name; each of those has
    two shards at most.

    Args:
        folder: where to write.
        layouts: how many to train on; those of the held-out scenes come on top.
        workers: processes.
        shard: layouts a file.
        seed: of everything that varies.
    """
    os.environ.setdefault("MUJOCO_GL", "egl")
    os.environ.setdefault("PYOPENGL_PLATFORM", "egl")
    Path(folder).mkdir(parents=True, exist_ok=True)
    rounds = max(1, round(layouts / (len(problems()) - len(HELD_OUT)) / shard))
    jobs = []
    for start in range(0, rounds, 3):  # few shards a job: the first ones of all scenes are there early
        for scene in problems():
            numbers = [n for n in range(start, min(start + 3, rounds)) if n < 2 or scene not in HELD_OUT]
            if numbers:
                jobs.append((str(folder), scene, numbers, shard, zlib.crc32(f"{seed}/{scene}".encode())))
    with Meter("drawing scenes", sum(len(job[2]) * job[3] for job in jobs)) as meter:
        for count in spread(write_scene, jobs, workers, renew=2):
            meter.advance(count)


def load(folder: Path | str, part: str, keys: tuple[str, ...] = ARRAYS) -> dict[str, Any]:
    """Read stored layouts: the arrays `keys` of the shards, concatenated, and "facts" as a list of dictionaries.

    `part`: "train", "layouts" (new layouts of the scenes trained on) or "scenes" (the scenes never trained on).
    """
    parts: dict[str, list[np.ndarray]] = {key: [] for key in keys}
    facts: list[dict[str, Any]] = []
    for path in sorted(Path(folder).glob("*.npz"), key=lambda p: p.stem.split("-")[::-1]):
        scene, number = path.stem.rsplit("-", 1)
        if (scene in HELD_OUT) != (part == "scenes") or (part == "layouts" and int(number) > 0):
            continue
        chosen = slice(None)
        if scene not in HELD_OUT and int(number) == 0:  # the first layouts of the first shard are never trained on
            chosen = slice(None, UNSEEN_LAYOUTS) if part == "layouts" else slice(UNSEEN_LAYOUTS, None)
        with np.load(path, allow_pickle=False) as shard:
            for key, arrays in parts.items():
                arrays.append(shard[key][chosen])
            facts += json.loads(shard["facts"].tobytes())[chosen]
    if not facts:
        raise UserError(f"expected rendered scenes in {folder}, found none for {part!r}; fix: generate them first")
    return {key: np.concatenate(arrays) for key, arrays in parts.items()} | {"facts": facts}
