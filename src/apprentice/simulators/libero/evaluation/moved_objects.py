"""The probe that moves what has to be carried: is it looked for, or is its place known by heart?"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import mujoco
import numpy as np

from apprentice.common.errors import UserError
from apprentice.simulators.libero.simulator.env import SETTLE, LiberoEnv
from apprentice.simulators.libero.simulator.geometry import Geometry
from apprentice.simulators.libero.simulator.layout import FARTHEST

NEAR, FAR = 0.03, 0.05  # m that an object is moved
LESS = 0.01  # m, where there is no room for that
TRIES = 60  # places that are tried; the last third may be nearer, where there is no room
TRIAL = 100  # physics steps of 2 ms in which a moved object must stay where it is
SLIPPED, TOUCHING = 0.01, -0.002  # m: moved by itself in that time; deeper inside something else than things that rest
UPRIGHT = np.cos(0.1)  # rad that it may lean


@dataclass(frozen=True)
class Start:
    """How an episode starts: the arguments of `LiberoEnv.reset`."""

    seed: int
    init_state: int | None
    start_noise: float  # m
    settle_steps: int

    def reset(self, env: LiberoEnv) -> None:
        env.reset(
            seed=self.seed, init_state=self.init_state, start_noise=self.start_noise, settle_steps=self.settle_steps
        )


def reset_moved(env: LiberoEnv, names: Sequence[str], start: Start) -> None:
    """Reset, with objects moved to where `seed` says and they stand as they stood; what touches one moves along.

    Where there is room is found out once everything has settled; then all starts anew, so that the hand settles as it
    does in the episode that nothing is changed in. Raises UserError if there is no room for one.
    """
    start.reset(env)
    geometry, rng = env.geometry(), np.random.default_rng([start.seed, 6])
    moves = []
    for name in names:
        group = _together(geometry, name)
        draws = (_way(rng, near=NEAR if number < 2 * TRIES // 3 else LESS) for number in range(TRIES))
        way = next((way for way in draws if _stands(geometry, name, group, way)), None)
        if way is None:
            raise UserError(
                f"expected room to move {name} in {env.suite} task {env.task}, initial state {start.init_state}, seed "
                f"{start.seed}, found none; fix: leave the probe 'moved' or this task out"
            )
        moves.append((group, way))
        _shift(geometry, env.data, group, way)
        mujoco.mj_forward(env.model, env.data)
    replace(start, settle_steps=0).reset(env)
    for group, way in moves:
        _shift(geometry, env.data, group, way)
    mujoco.mj_forward(env.model, env.data)
    for _ in range(start.settle_steps):
        env.step(SETTLE)


def carried(goal: Sequence[Sequence[str]]) -> list[str]:
    """The objects that have to be brought somewhere for a goal."""
    return list(dict.fromkeys(name for verb, name, *_ in goal if verb in ("on", "in")))


def _way(rng: np.random.Generator, near: float) -> np.ndarray:
    angle, distance = rng.uniform(0, 2 * np.pi), rng.uniform(near, FAR)
    return distance * np.array([np.cos(angle), np.sin(angle)])


def _together(geometry: Geometry, name: str) -> list[str]:
    """An object and every loose one that touches it, or touches one that does."""
    owner = np.array([str(owner) for owner in geometry.owner])
    pairs = owner[geometry.model.geom_bodyid[geometry.data.contact.geom]]
    group = {name}
    for _ in geometry.domain.objects_dict:
        group |= {str(word) for pair in pairs if group & set(pair) for word in pair} & set(geometry.domain.objects_dict)
    return sorted(group)


def _shift(geometry: Geometry, data: mujoco.MjData, group: list[str], way: np.ndarray) -> None:
    for name in group:
        joint = geometry.model.joint(geometry.domain.objects_dict[name].joints[-1])
        data.qpos[joint.qposadr[0] : joint.qposadr[0] + 2] += way


def _stands(geometry: Geometry, name: str, group: list[str], way: np.ndarray) -> bool:
    """Would the group touch nothing, and stay as it is, if it were moved by `way` (2,) m? Tried on a copy."""
    model, base = geometry.model, geometry.base()[:2]
    spot = geometry.position(name)[:2]
    if np.linalg.norm(spot + way - base) > max(FARTHEST, float(np.linalg.norm(spot - base))):
        return False
    trial = copy.copy(geometry.data)
    _shift(geometry, trial, group, way)
    mujoco.mj_forward(model, trial)
    bodies = np.array([geometry.root[other] for other in geometry.domain.objects_dict])
    members = np.isin([str(owner) for owner in geometry.owner], group)[model.geom_bodyid]
    if ((members[trial.contact.geom].sum(axis=1) == 1) & (trial.contact.dist < TOUCHING)).any():
        return False
    places, up = trial.xpos[bodies].copy(), trial.xmat[bodies].reshape(-1, 3, 3).copy()
    mujoco.mj_step(model, trial, TRIAL)
    turned = np.einsum("nij,nij->nj", up, trial.xmat[bodies].reshape(-1, 3, 3)).min(axis=1)
    return bool((np.linalg.norm(trial.xpos[bodies] - places, axis=1) < SLIPPED).all() and (turned > UPRIGHT).all())
