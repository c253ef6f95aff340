"""A scene of LIBERO-90 or of our own as a MuJoCo model: what is in it, and how to move it."""

from dataclasses import dataclass

import numpy as np

from apprentice.nano.scenes.catalogue import CATEGORIES, DRAWERS, NAMES, SIZE, kind_of
from apprentice.nano.scenes.own_scenes import OWN, bddl

AWAY = 30.0  # m, how high objects wait that a layout does not show


def rotation_z(angle: float) -> np.ndarray:
    """Rotation matrix (3, 3) about the vertical; angle in rad."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def yaw_quat(yaw: float) -> np.ndarray:
    """Quaternion (4,), w first, of a turn about the vertical; yaw in rad."""
    return np.array([np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)])


@dataclass
class SceneObject:
    """An object or fixture. `low`, `high` (3,): its box in the settled pose, relative to the body's origin, m."""

    name: str
    kind: str
    body: int
    joint: int  # address in qpos of a free joint, -1 for a fixture
    quat: np.ndarray
    low: np.ndarray
    high: np.ndarray
    parent: str = ""  # what it lies on or in, "" = the table
    relation: str = ""
    yaw: float = 0.0

    @property
    def radius(self) -> float:
        return float(np.abs(np.concatenate([self.low[:2], self.high[:2]])).max())


class SceneModel:
    """One scene, to be laid out anew (`layout.draw`) and rendered with labels (`truth.render_labelled`).

    `present` and `movable` (of `present`) are the objects that a layout shows, see `show`.
    """

    def __init__(self, scene: str, seed: int):
        import mujoco
        from libero.libero.envs.env_wrapper import ControlEnv

        from apprentice.simulators.libero.simulator.render import renderers

        self.mj, self.name = mujoco, scene
        self.control = ControlEnv(
            str(bddl(scene)), has_offscreen_renderer=False, use_camera_obs=False, ignore_done=True
        )
        self.control.env.hard_reset = False  # the model was just loaded
        self.control.seed(int(np.random.default_rng(seed).integers(1 << 30)))
        self.control.reset()
        self.model, self.data = self.control.sim.model._model, self.control.sim.data._data
        if OWN not in scene:  # objects start in the air; ours stand beside the table and are put in place by layouts
            for _ in range(15):
                self.control.step([0.0] * 6 + [-1.0])
        m, d = self.model, self.data
        self.owner = self._owners()
        self.all = {name: self._object(name) for name in self.control.env.obj_body_id}
        self.show(list(self.all))
        self.table_z = self._table()
        self.category = self._categories()
        self.joints = {  # articulated joints, by qpos address
            m.joint(j).name: m.joint(j)
            for j in range(m.njnt)
            if m.jnt_type[j] in (mujoco.mjtJoint.mjJNT_SLIDE, mujoco.mjtJoint.mjJNT_HINGE)
            and not m.joint(j).name.startswith(("robot", "gripper"))
        }
        self.arm = np.array([m.joint(f"robot0_joint{i}").qposadr[0] for i in range(1, 8)])
        self.arm_dof = np.array([m.joint(f"robot0_joint{i}").dofadr[0] for i in range(1, 8)])
        self.fingers = np.array([m.joint(f"gripper0_finger_joint{i}").qposadr[0] for i in (1, 2)])
        self.grip = m.site("gripper0_grip_site").id
        self.home, self.down = d.qpos.copy(), d.site_xmat[self.grip].reshape(3, 3).copy()
        self.body_pos, self.body_quat = m.body_pos.copy(), m.body_quat.copy()
        self.camera = m.camera("agentview").id
        self.cam_pos, self.cam_quat = m.cam_pos.copy(), m.cam_quat.copy()
        self.centre = np.array([m.cam_pos[self.camera, 0] - 0.66, 0.0])
        self.light, self.rgba = m.light_diffuse.copy(), m.geom_rgba.copy()
        self.mat_rgba = m.mat_rgba.copy()
        self.held = ""
        m.vis.quality.offsamples = 0
        self.renderers = renderers(m, SIZE, fast=True)
        self.contexts = [renderer.context for renderer in self.renderers.values()]
        self.texid = self.contexts[0].mat_texid.copy()

    def show(self, names: list[str]) -> None:
        """Lay out these objects and all fixtures; other objects wait high above, out of view."""
        self.present = {name: obj for name, obj in self.all.items() if obj.joint < 0 or name in names}
        self.movable = [obj for obj in self.present.values() if obj.joint >= 0]
        for n, name in enumerate(self.all.keys() - self.present.keys()):
            self.data.qpos[self.all[name].joint : self.all[name].joint + 3] = n, 0.0, AWAY

    def _table(self) -> float:
        """Height of the table's top (m): what a ray from above meets of it, beside all that stands there."""
        m, d, down = self.model, self.data, np.array([0.0, 0.0, -1.0])
        centre, geom, heights = m.cam_pos[m.camera("agentview").id, 0] - 0.66, np.zeros(1, np.int32), []
        for x, y in np.random.default_rng(0).uniform(-0.2, 0.2, (200, 2)):
            far = self.mj.mj_ray(m, d, np.array([centre + x, y, 3.0]), down, None, 1, -1, geom)
            if geom[0] >= 0 and "table" in m.body(m.geom_bodyid[geom[0]]).name:
                heights.append(3.0 - far)
        return float(np.median(heights))

    def _owners(self) -> dict[int, str]:
        roots = {body: name for name, body in self.control.env.obj_body_id.items()}
        owner = {}
        for body in range(self.model.nbody):
            at = body
            while at and at not in roots:
                at = int(self.model.body_parentid[at])
            owner[body] = roots.get(at, "")
        return owner

    def _object(self, name: str) -> SceneObject:
        m, d = self.model, self.data
        body = self.control.env.obj_body_id[name]
        joint = int(m.body_jntadr[body])
        free = joint >= 0 and m.jnt_type[joint] == self.mj.mjtJoint.mjJNT_FREE
        low, high = np.full(3, np.inf), np.full(3, -np.inf)
        for g in range(m.ngeom):
            if self.owner[m.geom_bodyid[g]] == name and m.geom_contype[g] + m.geom_conaffinity[g] > 0:
                centre, half = m.geom_aabb[g, :3], m.geom_aabb[g, 3:]
                turn = d.geom_xmat[g].reshape(3, 3)
                middle, reach = d.geom_xpos[g] + turn @ centre - d.xpos[body], np.abs(turn) @ half
                low, high = np.minimum(low, middle - reach), np.maximum(high, middle + reach)
        quat = d.xquat[body].copy() if free else m.body_quat[body].copy()
        return SceneObject(name, kind_of(name), body, int(m.jnt_qposadr[joint]) if free else -1, quat, low, high)

    def _categories(self) -> np.ndarray:
        """Category of every geom, (ngeom + 1,): the last for "no geom"."""
        m = self.model
        table = np.zeros(m.ngeom + 1, np.uint8)
        for g in range(m.ngeom):
            body = m.body(m.geom_bodyid[g]).name
            owner = self.owner[m.geom_bodyid[g]]
            label = "background"
            if owner:
                label = NAMES[kind_of(owner)]
                part = body.removeprefix(owner)
                if label in ("cabinet", "white cabinet"):
                    label = next((d for d in DRAWERS if part.endswith("_" + d.split()[0])), label)
                label = "knob" if part.endswith("button") else label
                label = "microwave door" if part.endswith("microdoorroot") else label
            elif body.startswith("gripper0") or body == "robot0_right_hand":
                label = "gripper"
            elif body.startswith(("robot0", "mount0")):
                label = "arm"
            elif "table" in body:
                label = "table"
            table[g] = CATEGORIES.index(label)
        return table

    def opened(self, obj: SceneObject, site: str) -> float:
        """How far (0 to 1) the drawer of a region is open; 1 where there is no drawer."""
        joint = self.joints.get(f"{obj.name}_{site.split('_')[0]}_level")
        if joint is None:
            return 1.0
        return float(abs(self.data.qpos[joint.qposadr[0]]) / max(abs(joint.range)))

    def put(self, obj: SceneObject, position: np.ndarray, yaw: float) -> None:
        """Move an object; its origin goes to `position` (3,) m, its yaw is in rad."""
        obj.yaw = yaw
        at = obj.joint
        self.data.qpos[at : at + 3] = position
        quat = np.empty(4)
        self.mj.mju_mulQuat(quat, yaw_quat(yaw), obj.quat)
        self.data.qpos[at + 3 : at + 7] = quat

    def position(self, obj: SceneObject) -> np.ndarray:
        """Where the origin of a thing is (3,) m."""
        if obj.joint < 0:
            return self.data.xpos[obj.body].copy()
        return self.data.qpos[obj.joint : obj.joint + 3].copy()

    def close(self) -> None:
        for renderer in self.renderers.values():
            renderer.close()
        self.control.close()
