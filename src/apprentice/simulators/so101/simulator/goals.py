"""When a task is done: the thing is where it belongs, nothing moves, and the arm has let go of it.

| task | done when |
| --- | --- |
| drawer | less than 8 mm open |
| cups | centres within 12 mm, the red cup's floor 10 to 35 mm higher, upright |
| blocks | centres within 15 mm, heights 30 +- 4 mm apart (of blocks of the usual size) |
| sponge on plate | centres within 45 mm, on the table |
| block on plate | centres within 35 mm, on the table |
"""

import mujoco
import numpy as np

from apprentice.simulators.so101.suites import BLOCKS, CARRIED, CUPS, DRAWER, ONTO, SPONGE

CLOSED, NESTED, STACKED, SPONGE_NEAR, BLOCK_NEAR = 0.008, 0.012, 0.015, 0.045, 0.035  # m
NESTED_HEIGHT, HEIGHT_ERROR, ON_TABLE = (0.010, 0.035), 0.004, 0.008  # m
UPRIGHT = 0.95  # cosine
STILL, STILL_DRAWER = 0.02, 0.01  # m/s
LET_GO = np.deg2rad(8)  # rad that the gripper is open at least
AWAY = 0.035  # m from the object's middle to between the jaws' tips
ROBOT = ("base", "shoulder", "upper_arm", "lower_arm", "wrist", "gripper", "camera_mount", "moving_jaw_so101_v1")


class Goals:
    """The five predicates over one model; `holds` reads its data."""

    def __init__(self, model: mujoco.MjModel):
        self.model = model
        names = [model.body(body).name for body in range(model.nbody)]
        self._robot = np.isin(names, ROBOT)[model.geom_bodyid]
        self._site = model.site("gripperframe").id

    def holds(self, data: mujoco.MjData, task: int) -> bool:
        """Is the task done now?"""
        if task == DRAWER:
            drawer = data.joint("drawer")
            shut = drawer.qpos[0] < CLOSED and abs(drawer.qvel[0]) < STILL_DRAWER
            return bool(shut and not self.touched(data, "drawer"))
        name = CARRIED[task]
        return self._placed(data, task) and self._released(data, name)

    def touched(self, data: mujoco.MjData, name: str, parts: tuple[str, ...] = ROBOT) -> bool:
        """Does (a part of) the arm touch a body?"""
        own = self.model.geom_bodyid == self.model.body(name).id
        robot = self._robot
        if parts is not ROBOT:
            robot = np.isin(self.model.geom_bodyid, [self.model.body(part).id for part in parts])
        pairs = data.contact.geom
        return bool(((own[pairs[:, 0]] & robot[pairs[:, 1]]) | (own[pairs[:, 1]] & robot[pairs[:, 0]])).any())

    def tips(self, data: mujoco.MjData) -> np.ndarray:
        """The point (3,) between the jaws' tips."""
        return data.site_xpos[self._site]

    def _released(self, data: mujoco.MjData, name: str) -> bool:
        """Is the hand open and away, and the object at rest?"""
        away = np.linalg.norm(self.tips(data) - data.body(name).xpos) > AWAY
        still = np.linalg.norm(data.joint(name).qvel[:3]) < STILL
        return bool(data.qpos[5] > LET_GO - 0.1745 and away and still and not self.touched(data, name))

    def _placed(self, data: mujoco.MjData, task: int) -> bool:
        name, onto = CARRIED[task], ONTO[task]
        way = data.body(name).xpos - data.body(onto).xpos
        beside, above = np.linalg.norm(way[:2]), way[2]
        if task == CUPS:
            upright = data.body(name).xmat[8] > UPRIGHT and data.body(onto).xmat[8] > UPRIGHT
            return bool(beside < NESTED and NESTED_HEIGHT[0] < above < NESTED_HEIGHT[1] and upright)
        if task == BLOCKS:
            stacked = self.half_height(name) + self.half_height(onto)
            return bool(beside < STACKED and abs(above - stacked) < HEIGHT_ERROR)
        near = SPONGE_NEAR if task == SPONGE else BLOCK_NEAR
        return bool(beside < near and data.body(name).xpos[2] < self.half_height(name) + ON_TABLE)

    def half_height(self, name: str) -> float:
        """Half of what a box-shaped object is high (m)."""
        model, body = self.model, self.model.body(name)
        geoms = range(body.geomadr[0], body.geomadr[0] + body.geomnum[0])
        return max(float(abs(model.geom_pos[geom, 2]) + model.geom_size[geom, 2]) for geom in geoms)
