"""Why an episode failed, found from the simulator's own state: what the hand reached, held and moved.

An *item* is an object, or a part that a joint moves: a drawer, a door, a knob. It was

- reached once the point between the finger tips came within REACH of the box around it, or the robot touched it;
- held while both fingers touched it and were commanded to close;
- moved once it was held LIFT above where it stood, or, for a part, once it was touched and TURNED of its joint's range
  away from where it was, or, for a plate that nothing goes onto, once it was touched and PUSHED away.

Only goals that do not hold in the end are asked about, and the first line that is true names the kind:

    timed out             at the end it still held the item, or was still moving the part or the plate
    dropped               the item had been lifted, and fell by more than FALL after it was last held
    left elsewhere        the item had been moved, and was left where the goal does not hold: a bowl beside its plate,
                          a drawer half open
    wrong object          what should be moved was not, but another item was, be it where the first should go; drawers
                          and doors that may have to be opened first do not count
    timed out             less than RECENT steps before the end it had first reached the item, or had last handled
                          another one whose goal does hold: it was on its way
    missed the grasp      the item was reached, and never moved
    never reached         nor that
"""

from collections.abc import Sequence

import mujoco
import numpy as np

from apprentice.simulators.failures import DROPPED, ELSEWHERE, MISSED, NEVER_REACHED, TIMED_OUT, WRONG_OBJECT
from apprentice.simulators.libero.simulator.env import LiberoEnv
from apprentice.simulators.libero.simulator.geometry import LEFT_FINGER, RIGHT_FINGER

MEANINGS = {
    NEVER_REACHED: "The hand never came within 5 cm of what had to be moved, and did not touch it.",
    MISSED: "The hand got there, but never lifted the object, or never moved the drawer, the knob or the plate.",
    DROPPED: "The object was lifted, and fell by more than 3 cm before it was where it belongs.",
    ELSEWHERE: "It was moved and left where the goal does not hold: set down beside its place, a drawer half open.",
    WRONG_OBJECT: "Another object was lifted or moved, and nothing that should be.",
    TIMED_OUT: "The steps ran out while it was in the hand or being moved, or within 2 s of getting there.",
}
KINDS = tuple(MEANINGS)
REACH, LIFT, PUSHED, FALL = 0.05, 0.02, 0.05, 0.03  # m
TURNED = 0.1  # of a joint's range
RECENT, STILL = 40, 10  # steps of 50 ms
LEFT, RIGHT, ROBOT = 1, 2, 4  # what touches an item: a finger, or another part of the robot
HINGE_OR_SLIDE = (mujoco.mjtJoint.mjJNT_HINGE, mujoco.mjtJoint.mjJNT_SLIDE)
Goal = Sequence[str]  # such as ("on", "bowl_1", "plate_1")


class FailureObserver:
    """Watches one episode: made after the reset, it observes every control step, and names the kind at the end."""

    def __init__(self, env: LiberoEnv, goals: Sequence[Goal]):
        self._geometry, self._goals = env.geometry(), goals
        model, self._data = env.model, env.data
        self._names = sorted(self._geometry.domain.objects_dict)
        roots = [self._geometry.root[name] for name in self._names]
        fixtures = self._geometry.domain.fixtures_dict
        self._joints = [
            joint
            for joint in range(model.njnt)
            if model.jnt_type[joint] in HINGE_OR_SLIDE and self._geometry.owner[model.jnt_bodyid[joint]] in fixtures
        ]
        self._bodies = np.array(roots + [int(model.jnt_bodyid[joint]) for joint in self._joints])
        self._objects = len(roots)
        self._addresses = model.jnt_qposadr[self._joints]
        self._enough = TURNED * np.ptp(model.jnt_range[self._joints], axis=1)
        item_of_body, robot_of_body = self._owners(model)
        self._item, self._robot = item_of_body[model.geom_bodyid], robot_of_body[model.geom_bodyid]
        self._hand = model.site("gripper0_grip_site").id

        self._handled = [self._handled_by(goal) for goal in goals]
        self._wanted = sorted(set(self._handled))
        destinations = [name for goal in goals for name in goal[2:]]
        self._plates = np.array(
            [name.startswith("plate") and name not in destinations for name in self._names], dtype=bool
        )
        self._allowed = set(self._wanted) | {item for goal in goals for item in self._helping(goal)}
        boxes = [self._box(item) for item in self._wanted]
        self._middle, self._half = np.array([b[0] for b in boxes]), np.array([b[1] for b in boxes])

        count = len(self._bodies)
        self._step, self._closing = 0, False
        self._start, self._start_joints = self._positions(), self._data.qpos[self._addresses]
        self._moved = np.zeros(count, dtype=bool)
        self._last_held, self._last_touched = np.full(count, -RECENT), np.full(count, -RECENT)
        self._first_reached = np.full(count, -1)
        self._held_at = np.full(count, -np.inf)  # m, height at which an item was last held

    def observe(self, action: np.ndarray) -> None:
        """Take in what the last step did, with its action (7,)."""
        self._step += 1
        self._closing = action[6] > 0 or (self._closing and action[6] == 0)
        touch, n = self._touch(), self._objects
        touched, held = touch > 0, (touch & (LEFT | RIGHT) == LEFT | RIGHT) & self._closing
        positions = self._positions()
        way = positions - self._start
        turned = np.abs(self._data.qpos[self._addresses] - self._start_joints) > self._enough
        self._moved[:n] |= held[:n] & (way[:n, 2] > LIFT)
        self._moved[:n] |= touched[:n] & self._plates & (way[:n, 0] ** 2 + way[:n, 1] ** 2 > PUSHED**2)
        self._moved[n:] |= touched[n:] & turned
        self._last_held[held] = self._last_touched[touched] = self._step
        self._held_at[held] = positions[held, 2]
        near = touched[self._wanted] | (self._distances(positions) < REACH)
        for item in np.asarray(self._wanted)[near]:
            if self._first_reached[item] < 0:
                self._first_reached[item] = self._step

    def kind(self) -> str:
        """The kind of failure, one of KINDS."""
        met = [self._geometry.holds(tuple(goal)) for goal in self._goals]
        unmet = [item for item, holds in zip(self._handled, met, strict=True) if not holds]
        if any(self._busy(item) for item in unmet):
            return TIMED_OUT
        moved = [item for item in unmet if self._moved[item]]
        if moved:
            height = self._positions()[:, 2]
            fell = any(t < self._objects and self._held_at[t] - height[t] > FALL for t in moved)
            return DROPPED if fell else ELSEWHERE
        if any(self._moved[item] for item in range(len(self._moved)) if item not in self._allowed):
            return WRONG_OBJECT
        done = [item for item, holds in zip(self._handled, met, strict=True) if holds and self._moved[item]]
        reached = [item for item in unmet if self._first_reached[item] >= 0]
        progress = [*self._first_reached[reached], *self._last_touched[done]]
        if any(self._step - step < RECENT for step in progress):
            return TIMED_OUT
        return MISSED if reached else NEVER_REACHED

    def _busy(self, item: int) -> bool:
        """Did the robot have it in hand at the end? A part or a plate may be pushed by anything."""
        if self._step - self._last_held[item] < STILL:
            return True
        pushed = item >= self._objects or self._plates[item]
        return bool(pushed and self._moved[item] and self._step - self._last_touched[item] < STILL)

    def _touch(self) -> np.ndarray:
        """What of the robot touches each item, as bits."""
        touch: np.ndarray = np.zeros(len(self._bodies), dtype=np.int64)
        geoms = self._data.contact.geom
        items, robot = self._item[geoms], self._robot[geoms]
        for mine, other in ((0, 1), (1, 0)):
            both = (items[:, mine] >= 0) & (robot[:, other] > 0)
            np.bitwise_or.at(touch, items[both, mine], robot[both, other])
        return touch

    def _positions(self) -> np.ndarray:
        return self._data.xpos[self._bodies]

    def _distances(self, positions: np.ndarray) -> np.ndarray:
        """From between the finger tips to the box around each item of the goal (m)."""
        axes = self._data.xmat[self._bodies[self._wanted]].reshape(-1, 3, 3)
        hand = self._data.site_xpos[self._hand] - positions[self._wanted]
        local = (hand[:, None] @ axes)[:, 0]
        return np.linalg.norm(np.maximum(np.abs(local - self._middle) - self._half, 0), axis=1)

    def _box(self, item: int) -> tuple[np.ndarray, np.ndarray]:
        """Middle and half extents (3,) of an item in its body's axes; of a drawer, its handle alone."""
        body, data = self._bodies[item], self._data
        geoms = [geom for geom in self._geometry.solid if self._item[geom] == item]
        rotation = data.xmat[body].reshape(3, 3)
        if (
            item >= self._objects
            and self._geometry.model.jnt_type[self._joints[item - self._objects]] == HINGE_OR_SLIDE[1]
        ):
            pull = -data.xaxis[self._joints[item - self._objects]]
            geoms = [max(geoms, key=lambda geom: float(data.geom_xpos[geom] @ pull))]
        corners = (self._geometry.fill(geoms, np.inf) - data.xpos[body]) @ rotation
        return (corners.max(axis=0) + corners.min(axis=0)) / 2, np.ptp(corners, axis=0) / 2

    def _owners(self, model: mujoco.MjModel) -> tuple[np.ndarray, np.ndarray]:
        """For each body the item that it is part of, or -1, and what of the robot it is, or 0."""
        own = {int(body): item for item, body in enumerate(self._bodies)}
        items, robot = np.full(model.nbody, -1), np.zeros(model.nbody, dtype=np.int64)
        for body in range(1, model.nbody):  # parents come first
            items[body] = own.get(body, items[model.body_parentid[body]])
            name = model.body(body).name
            if name.startswith(("robot0", "gripper0")):
                robot[body] = LEFT if name in LEFT_FINGER else RIGHT if name in RIGHT_FINGER else ROBOT
        return items, robot

    def _handled_by(self, goal: Goal) -> int:
        """The item that has to be moved for a goal."""
        verb, name, *_ = goal
        return self._names.index(name) if verb in ("on", "in") else self._part(name)

    def _helping(self, goal: Goal) -> list[int]:
        """The drawer or door that may have to be opened for a goal."""
        found = []
        for name in goal[2:]:
            owner = self._geometry.parent(name) if self._geometry.is_site(name) else name
            if owner in self._geometry.domain.fixtures_dict and (self._site_joints(name) or self._parts_of(owner) == 1):
                found.append(self._part(name if self._site_joints(name) else owner))
        return found

    def _part(self, name: str) -> int:
        """The part of a region (a drawer) or of a fixture (a door, a knob)."""
        if joints := self._site_joints(name):
            joint = self._geometry.model.joint(joints[0]).id
        else:
            bodies = self._geometry.model.jnt_bodyid
            joint = next(joint for joint in self._joints if self._geometry.owner[bodies[joint]] == name)
        return self._objects + self._joints.index(joint)

    def _site_joints(self, name: str) -> list[str]:
        return list(self._geometry.domain.object_sites_dict[name].joints) if self._geometry.is_site(name) else []

    def _parts_of(self, owner: str) -> int:
        return sum(self._geometry.owner[self._geometry.model.jnt_bodyid[joint]] == owner for joint in self._joints)
