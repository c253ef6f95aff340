"""Where the objects of a task's variant stand: anywhere on the table within reach, apart from one another.

LIBERO's own sampler takes everything, baskets and cabinets included, for a disc of 5 cm.
"""

from collections.abc import Collection

import mujoco
import numpy as np

from apprentice.simulators.libero.simulator.geometry import Geometry

LOW, HIGH = np.array([0.34, -0.34]), np.array([0.68, 0.34])  # m from the robot's base, on every table
FARTHEST = 0.70  # m from the base, for the middle of what the goal speaks of
APART = np.linspace(0.08, 0.0, 17)  # m between things: as much as there is room for
ROOM = 0.15  # m around fixtures of the goal, to open or fill them
TRIES = 100


def spread(geometry: Geometry, loose: Collection[str], rng: np.random.Generator) -> None:
    """Move `loose`, the things that stand on the table, in place. What the goal's own region of the table is named
    after stays ("to the right of the plate"), and so does everything if there is no room.
    """
    wanted = _wanted(geometry)
    fixed = [region for word in wanted if (region := _table_region(geometry, word)) is not None]
    for name in geometry.root.keys() - loose:
        if (box := _box(geometry, name)) is not None:
            room = ROOM if name in wanted and name in geometry.domain.fixtures_dict else 0.0
            fixed.append(box + np.array([[-room], [room]]))
    sizes = {name: box[1] - box[0] for name in loose if (box := _box(geometry, name)) is not None}
    for apart in APART:
        middles = _arranged(sizes, np.array(fixed).reshape(-1, 2, 2), wanted, geometry.base()[:2], float(apart), rng)
        if middles:
            break
    for name, middle in middles.items():
        box = _box(geometry, name)
        assert box is not None
        joint = geometry.model.joint(geometry.domain.objects_dict[name].joints[-1])
        geometry.data.qpos[joint.qposadr[0] : joint.qposadr[0] + 2] += middle - box.mean(axis=0)
    mujoco.mj_forward(geometry.model, geometry.data)


def _wanted(geometry: Geometry) -> list[str]:
    """What the goal speaks of: objects, fixtures and regions, and what regions belong to."""
    words = sorted({word for _, *words in geometry.domain.parsed_problem["goal_state"] for word in words})
    return words + [geometry.parent(word) for word in words if geometry.is_site(word)]


def _table_region(geometry: Geometry, word: str) -> np.ndarray | None:
    """Corners (2, 2) of a region of the table itself; None for anything else."""
    if not geometry.is_site(word) or geometry.parent(word) in geometry.root:
        return None
    centre, half = geometry.site(word)
    return np.array([centre - half, centre + half])[:, :2]


def _box(geometry: Geometry, name: str) -> np.ndarray | None:
    """Lowest and highest corner (2, 2) as seen from above; None for what cannot be hit."""
    points = geometry.points(name, 0.01)[:, :2]
    return np.array([points.min(axis=0), points.max(axis=0)]) if len(points) else None


def _arranged(
    sizes: dict[str, np.ndarray],
    fixed: np.ndarray,
    wanted: list[str],
    base: np.ndarray,
    apart: float,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """Middles (2,) of things of these sizes (2,) around fixed boxes (N, 2, 2); empty if none were found."""
    taken, middles = fixed, {}
    for name in sorted(sizes, key=lambda name: (-sizes[name].prod(), name)):  # large things first
        half = sizes[name] / 2
        for middle in base + rng.uniform(LOW + half, HIGH - half, (TRIES, 2)):
            box = np.array([middle - half, middle + half])
            free = (box[0] > taken[:, 1] + apart) | (box[1] < taken[:, 0] - apart)
            near = name not in wanted or np.linalg.norm(middle - base) < FARTHEST
            if near and free.any(axis=1).all():
                break
        else:
            return {}
        taken, middles[name] = np.concatenate([taken, box[None]]), middle
    return middles
