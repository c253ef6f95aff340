"""Random layouts of the 20 LIBERO-90 scenes with their ground truth: what the nano VLM learns to see.

Objects, fixtures, drawers, the robot's arm and the colours of the room are drawn at random and placed by kinematics
alone; a layout with deep contacts is drawn again. Shards (`*.npz`) hold, for every scene,

    images    (N, 2, 128, 128, 3) uint8    agentview, wrist; orientation as in "observation.images.*"
    category  (N, 2, 32, 32) uint8         index into CATEGORIES, at the centres of 4 x 4 px cells
    depth     (N, 2, 32, 32) float16       m
    facts     bytes of a JSON list         one dictionary a scene, see `Stage.facts`
"""

import json
import os
import re
import zlib
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from apprentice.errors import UserError
from apprentice.files import replacing
from apprentice.progress import Meter

SUITE = "libero_90"
HELD_OUT = ("KITCHEN_SCENE5", "LIVING_ROOM_SCENE6")  # never trained on; their objects occur in other scenes
UNSEEN_LAYOUTS = 15  # a scene
CAMERAS = ("agentview", "robot0_eye_in_hand")
SIZE, CELL = 128, 4  # px
ARRAYS = ("images", "category", "depth")

NAMES = {  # type of object in LIBERO -> its name in LIBERO's instructions
    "akita_black_bowl": "black bowl", "white_bowl": "white bowl", "plate": "plate", "chefmate_8_frypan": "frying pan",
    "moka_pot": "moka pot", "wine_bottle": "wine bottle", "ketchup": "ketchup", "alphabet_soup": "alphabet soup",
    "cream_cheese": "cream cheese", "tomato_sauce": "tomato sauce", "orange_juice": "orange juice", "milk": "milk",
    "butter": "butter", "chocolate_pudding": "chocolate pudding", "new_salad_dressing": "salad dressing",
    "basket": "basket", "wooden_tray": "tray", "porcelain_mug": "white mug", "red_coffee_mug": "red mug",
    "white_yellow_mug": "yellow and white mug", "black_book": "black book", "yellow_book": "yellow book",
    "desk_caddy": "caddy", "wooden_cabinet": "cabinet", "white_cabinet": "white cabinet", "flat_stove": "stove",
    "microwave": "microwave", "wine_rack": "wine rack", "wooden_two_layer_shelf": "cabinet shelf",
}  # fmt: skip
DRAWERS = ("top drawer", "middle drawer", "bottom drawer")
CATEGORIES = ("background", "table", "arm", "gripper", *NAMES.values(), *DRAWERS, "knob", "microwave door")
TYPES = sorted(NAMES, key=len, reverse=True)
SUPPORTS = {  # where things can be put: type -> [(site, relation)]
    "wooden_cabinet": [("top_side", "on"), ("top_region", "in"), ("bottom_region", "in")],
    "white_cabinet": [("top_side", "on"), ("top_region", "in"), ("bottom_region", "in")],
    "flat_stove": [("cook_region", "on")], "microwave": [("top_side", "on")], "basket": [("contain_region", "in")],
    "wooden_two_layer_shelf": [("top_side", "on"), ("top_region", "in")], "plate": [("", "on")],
    "wooden_tray": [("", "in")], "akita_black_bowl": [("", "in")], "white_bowl": [("", "in")],
}  # fmt: skip
RIM = ("akita_black_bowl", "white_bowl", "plate", "porcelain_mug", "red_coffee_mug", "white_yellow_mug")
UNGRASPED = ("basket", "wooden_tray", "plate")
DEEP = -0.003  # m, contacts deeper than this are overlaps


def scene_of(problem: str) -> str:
    """Name of the scene of a BDDL file, "KITCHEN_SCENE5_close_..." -> "KITCHEN_SCENE5"."""
    return re.match(r"[A-Z_]+SCENE\d+", Path(problem).name).group()  # type: ignore[union-attr]


def problems() -> dict[str, Path]:
    """Scene name -> BDDL file of its first task, for the 20 scenes of LIBERO-90."""
    from libero.libero import get_libero_path

    found: dict[str, Path] = {}
    for path in sorted((Path(get_libero_path("bddl_files")) / SUITE).glob("*.bddl")):
        found.setdefault(scene_of(path.name), path)
    return found


def instructions(scene: str) -> list[str]:
    """The LIBERO-90 instructions given in a scene."""
    folder = problems()[scene].parent
    return [path.stem.removeprefix(scene + "_").replace("_", " ") for path in sorted(folder.glob(f"{scene}_*.bddl"))]


def kind_of(name: str) -> str:
    """Type of a LIBERO object: "plate_1" -> "plate"."""
    return next(kind for kind in TYPES if name.startswith(kind))


def rotation_z(angle: float) -> np.ndarray:
    """Rotation matrix (3, 3) about the vertical; angle in rad."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


@dataclass
class Thing:
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


class Stage:
    """One LIBERO-90 scene that can be laid out anew, rendered and described."""

    def __init__(self, scene: str, rng: np.random.Generator):
        import mujoco
        from libero.libero.envs.env_wrapper import ControlEnv

        from apprentice.libero.render import simplify

        self.mj, self.scene, self.rng = mujoco, scene, rng
        self.control = ControlEnv(
            str(problems()[scene]), has_offscreen_renderer=False, use_camera_obs=False, ignore_done=True
        )
        self.control.seed(int(rng.integers(1 << 30)))
        self.control.reset()
        for _ in range(15):  # objects start in the air
            self.control.step([0.0] * 6 + [-1.0])
        self.model, self.data = self.control.sim.model._model, self.control.sim.data._data
        m, d = self.model, self.data
        self.owner = self._owners()
        self.things = {name: self._thing(name) for name in self.control.env.obj_body_id}
        self.objects = [t for t in self.things.values() if t.joint >= 0]
        self.table_z = min(float(d.xpos[t.body, 2] + t.low[2]) for t in self.objects)
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
        simplify(m)
        m.vis.quality.offsamples = 0
        self.renderer = mujoco.Renderer(m, SIZE, SIZE)
        self.option = mujoco.MjvOption()
        self.option.geomgroup[0] = 0  # collision geometry
        self.texid = self.renderer._mjr_context.mat_texid.copy()

    # ------------------------------------------------------------------ what is in the model

    def _owners(self) -> dict[int, str]:
        roots = {body: name for name, body in self.control.env.obj_body_id.items()}
        owner = {}
        for body in range(self.model.nbody):
            at = body
            while at and at not in roots:
                at = int(self.model.body_parentid[at])
            owner[body] = roots.get(at, "")
        return owner

    def _thing(self, name: str) -> Thing:
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
        return Thing(name, kind_of(name), body, int(m.jnt_qposadr[joint]) if free else -1, quat, low, high)

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

    # ------------------------------------------------------------------ laying out

    def draw(self) -> None:
        """Draw a layout: fixtures, joints, objects, arm, room. Raises RuntimeError if no try is free of overlaps."""
        self._paint()
        for _ in range(20):
            self._fixtures()
            if self._place_objects() and self._pose_robot():
                self.data.qvel[:] = 0
                self.control.sim.forward()
                self.control._post_process()  # lights the burner of a stove that is on
                return
        raise RuntimeError(f"no free layout found in {self.scene}")

    def _paint(self) -> None:
        """Tint and re-texture the room, vary light and camera a little: the test suites have other rooms."""
        m, rng = self.model, self.rng
        room = [
            int(m.geom_matid[g]) for g in range(m.ngeom)
            if self.category[g] < 2 and m.geom_matid[g] >= 0
        ]  # fmt: skip
        context = self.renderer._mjr_context
        context.mat_texid[:] = self.texid
        m.mat_rgba[:] = self.mat_rgba
        flat = [t for t in range(m.ntex) if m.tex_type[t] == 0]
        for material in sorted(set(room)):
            if rng.random() < 0.6:
                m.mat_rgba[material, :3] = np.clip(self.mat_rgba[material, :3] * rng.uniform(0.4, 1.3, 3), 0, 1)
            if rng.random() < 0.35 and self.texid[material].max() >= 0:
                slots = self.texid[material] >= 0
                context.mat_texid[material, slots] = rng.choice(flat)
        m.light_diffuse[:] = self.light * rng.uniform(0.6, 1.25, (m.nlight, 1))
        m.cam_pos[self.camera], m.cam_quat[self.camera] = self.cam_pos[self.camera], self.cam_quat[self.camera]
        if rng.random() < 0.3:
            m.cam_pos[self.camera] += rng.normal(0, 0.012, 3)
            quat = m.cam_quat[self.camera] + rng.normal(0, 0.005, 4)
            m.cam_quat[self.camera] = quat / np.linalg.norm(quat)

    def _fixtures(self) -> None:
        m, d, rng = self.model, self.data, self.rng
        d.qpos[:] = self.home
        for thing in self.things.values():
            if thing.joint < 0:
                m.body_pos[thing.body, :2] = self.body_pos[thing.body, :2] + rng.uniform(-0.08, 0.08, 2)
                if rng.random() < 0.3 and thing.kind != "desk_caddy":  # to the other side of the table
                    m.body_pos[thing.body, 1] *= -1
                self.mj.mju_mulQuat(m.body_quat[thing.body], _yaw_quat(rng.normal(0, 0.12)), self.body_quat[thing.body])
        opened = rng.random()
        slides = [j for j in self.joints.values() if j.type[0] == self.mj.mjtJoint.mjJNT_SLIDE]
        for joint in self.joints.values():
            low, high = joint.range
            closed = high if abs(high) < abs(low) else low
            far = low if closed == high else high
            d.qpos[joint.qposadr[0]] = 0.0 if abs(closed) < 0.02 else closed
            if joint.type[0] == self.mj.mjtJoint.mjJNT_HINGE and rng.random() < 0.5:
                d.qpos[joint.qposadr[0]] = rng.uniform(0.35, 1.0) * far
        if slides and opened < 0.65:  # one drawer open at a time, seldom ajar
            joint = slides[rng.integers(len(slides))]
            far = min(joint.range, key=lambda x: -abs(x))
            d.qpos[joint.qposadr[0]] = far * (rng.uniform(0.85, 1.0) if rng.random() < 0.7 else rng.uniform(0.2, 1))

    def _open(self, thing: Thing, site: str) -> float:
        """How far (0 to 1) the drawer of a region is open; 1 where there is no drawer."""
        joint = self.joints.get(f"{thing.name}_{site.split('_')[0]}_level")
        if joint is None:
            return 1.0
        return float(abs(self.data.qpos[joint.qposadr[0]]) / max(abs(joint.range)))

    def _set(self, thing: Thing, position: np.ndarray, yaw: float) -> None:
        thing.yaw = yaw
        at = thing.joint
        self.data.qpos[at : at + 3] = position
        quat = np.empty(4)
        self.mj.mju_mulQuat(quat, _yaw_quat(yaw), thing.quat)
        self.data.qpos[at + 3 : at + 7] = quat

    def _position(self, thing: Thing) -> np.ndarray:
        if thing.joint < 0:
            return self.data.xpos[thing.body].copy()
        return self.data.qpos[thing.joint : thing.joint + 3].copy()

    def _place(self, thing: Thing) -> None:
        """Put a thing at a random place, on the table or (one in three) on or in something."""
        rng, d = self.rng, self.data
        thing.parent = thing.relation = ""
        yaw = rng.uniform(-np.pi, np.pi) if rng.random() < 0.7 else rng.normal(0, 0.2)
        if rng.random() < 0.35:
            options = [
                (other, site, relation)
                for other in self.things.values()
                if other is not thing and other.kind in SUPPORTS and other.parent == "" and other.name != self.held
                for site, relation in SUPPORTS[other.kind]
                if thing.radius < (0.13 if other.joint < 0 or other.kind == "wooden_tray" else 0.085)
                and thing.kind != other.kind and self._open(other, site) > 0.6
                and not any(t.parent == other.name for t in self.objects)
            ]  # fmt: skip
            if options:
                other, site, relation = options[rng.integers(len(options))]
                self.mj.mj_kinematics(self.model, d)
                if site:
                    found = self.model.site(f"{other.name}_{site}").id
                    point, size = d.site_xpos[found].copy(), self.model.site_size[found]
                    drop = np.abs(d.site_xmat[found].reshape(3, 3)[2] @ size)
                    point[2] += 0.002 - (drop if relation == "in" else 0.0)
                else:
                    point = self._position(other)
                    point[2] += other.low[2] + (0.015 if other.kind != "plate" else 0.012)
                thing.parent, thing.relation = other.name, relation
                point[:2] += rng.normal(0, 0.012, 2)
                point[2] -= thing.low[2]
                self._set(thing, point, yaw)
                return
        point = np.append(self.centre + rng.uniform((-0.27, -0.33), (0.19, 0.33)), self.table_z - thing.low[2] + 5e-4)
        self._set(thing, point, yaw)

    def _touches(self) -> bool:
        """Whether the robot is in deep contact with anything but what it holds."""
        m, d = self.model, self.data
        for i in range(d.ncon):
            contact = d.contact[i]
            bodies = [int(m.geom_bodyid[g]) for g in (contact.geom1, contact.geom2)]
            robot = [m.body(b).name.startswith(("robot0", "gripper0")) for b in bodies]
            if robot[0] != robot[1] and contact.dist < -0.004:
                other = self.owner[bodies[robot.index(False)]]
                if not other or other != self.held:
                    return True
        return False

    def _place_objects(self) -> bool:
        for thing in self.objects:
            thing.parent = thing.relation = ""
        self.held = ""
        order = sorted(self.objects, key=lambda t: -t.radius)
        for thing in order:
            for _ in range(12):
                self._place(thing)
                self.mj.mj_kinematics(self.model, self.data)
                self.mj.mj_collision(self.model, self.data)
                done = order[: order.index(thing) + 1]
                ahead = {t.name for t in order} - {t.name for t in done}
                if not self._clash(thing.name, ahead):
                    break
            else:
                return False
        return True

    def _clash(self, name: str, ignore: set[str]) -> bool:
        """Whether a thing overlaps with anything but those not yet placed."""
        m, d = self.model, self.data
        for i in range(d.ncon):
            contact = d.contact[i]
            if contact.dist > DEEP:
                continue
            bodies = [int(m.geom_bodyid[g]) for g in (contact.geom1, contact.geom2)]
            owners = [self.owner[b] for b in bodies]
            if name not in owners or owners[0] == owners[1]:
                continue
            index = 1 - owners.index(name)
            other = owners[index]
            if other in ignore or m.body(bodies[index]).name.startswith(("robot0", "gripper0")):
                continue
            supports = other and (self.things[name].parent == other or self.things[other].parent == name)
            if not supports or contact.dist < -0.02:
                return True
        return False

    # ------------------------------------------------------------------ the robot

    def _grasp(self, thing: Thing) -> tuple[np.ndarray, float, float]:
        """A grasp of a thing: grip point from its origin (3,) m, yaw of the opening axis (rad), half width (m)."""
        rng = self.rng
        half, middle = (thing.high - thing.low) / 2, (thing.high + thing.low) / 2
        height = thing.high[2] - min(0.015, half[2])
        if thing.kind in RIM:
            angle = rng.uniform(-np.pi, np.pi)
            reach = min(half[0], half[1]) - 0.006
            direction = np.array([np.cos(angle), np.sin(angle)])
            return np.append(middle[:2] + direction * reach, height - 0.005), angle, 0.004
        axis = int(half[1] < half[0])
        turn = rotation_z(thing.yaw)
        point = turn @ np.append(middle[:2], height)
        return point, thing.yaw + axis * np.pi / 2, float(min(half[axis] + 0.001, 0.04))

    def _pose_robot(self) -> bool:
        rng, d = self.rng, self.data
        mode = rng.random()
        graspable = [t for t in self.objects if t.kind not in UNGRASPED]
        lone = [t for t in graspable if not any(o.parent == t.name for o in self.objects)]
        for _ in range(12):
            opening, tilt, hold = 0.04 if rng.random() < 0.75 else rng.uniform(0.0, 0.04), rng.normal(0, 0.08, 2), None
            point = np.append(self.centre + rng.uniform((-0.25, -0.3), (0.15, 0.3)), self.table_z)
            point[2] += rng.uniform(0.02, 0.35)
            yaw = rng.normal(0, 0.5)
            if mode < 0.22 and lone:  # holds something
                hold = lone[rng.integers(len(lone))]
                tilt = tilt * 0.0
                offset, axis, opening = self._grasp(hold)
                yaw = _wrap(axis - np.pi / 2)
                point[2] = max(point[2], self.table_z + 0.03 - hold.low[2] + offset[2])
            elif mode < 0.75:  # above or around something
                target = list(self.things.values())[rng.integers(len(self.things))]
                offset, axis, _ = self._grasp(target)
                point = self._position(target) + offset
                yaw = _wrap(axis - np.pi / 2) if rng.random() < 0.6 else yaw
                if mode > 0.35:
                    point += np.append(rng.normal(0, 0.03, 2), rng.uniform(0.0, 0.22))
            elif mode > 0.95:
                tilt = rng.uniform(-1.2, 1.2, 2) * (0, 1)
            if not self._reach(point, yaw, tilt):
                continue
            d.qpos[self.fingers] = (opening, -opening)
            if hold is not None:
                hold.parent = hold.relation = ""
                self.mj.mj_kinematics(self.model, d)
                self._set(hold, d.site_xpos[self.grip] - offset, hold.yaw)
                self.held = hold.name
            self.mj.mj_kinematics(self.model, d)
            self.mj.mj_collision(self.model, d)
            if not self._touches() and not (hold and self._clash(hold.name, set())):
                return True
            if hold is not None:
                return False  # the object has left its place: a new layout
        return False

    def _reach(self, point: np.ndarray, yaw: float, tilt: np.ndarray) -> bool:
        """Inverse kinematics of the arm by damped least squares, to 3 mm and 0.05 rad."""
        m, d, mj = self.model, self.data, self.mj
        cx, sx, cy, sy = np.cos(tilt[0]), np.sin(tilt[0]), np.cos(tilt[1]), np.sin(tilt[1])
        lean = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]]) @ np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
        goal = rotation_z(yaw) @ lean @ self.down
        d.qpos[self.arm] = self.home[self.arm] + self.rng.normal(0, 0.1, 7)
        jacobian = np.zeros((6, m.nv))
        limits = np.array([m.joint(f"robot0_joint{i}").range for i in range(1, 8)])
        for _ in range(40):
            mj.mj_kinematics(m, d)
            mj.mj_comPos(m, d)
            now = d.site_xmat[self.grip].reshape(3, 3)
            turn = 0.5 * sum(np.cross(now[:, i], goal[:, i]) for i in range(3))
            error = np.concatenate([point - d.site_xpos[self.grip], turn])
            if np.abs(error[:3]).max() < 0.003 and np.abs(turn).max() < 0.05:
                return True
            mj.mj_jacSite(m, d, jacobian[:3], jacobian[3:], self.grip)
            part = jacobian[:, self.arm_dof]
            step = part.T @ np.linalg.solve(part @ part.T + 1e-3 * np.eye(6), error)
            d.qpos[self.arm] = np.clip(d.qpos[self.arm] + np.clip(step, -0.3, 0.3), limits[:, 0], limits[:, 1])
        return False

    # ------------------------------------------------------------------ looking

    def look(self) -> dict[str, Any]:
        """Render: images (2, 128, 128, 3), category and depth (2, 32, 32), and the facts."""
        images, categories, depths, labels = [], [], [], []
        renderer, middle = self.renderer, slice(CELL // 2, None, CELL)
        for camera in CAMERAS:
            renderer.update_scene(self.data, camera, self.option)
            image, depth = self._render()
            images.append(image)
            renderer.enable_segmentation_rendering()
            ids = renderer.render()[:, ::-1]
            renderer.disable_segmentation_rendering()
            geom = np.where(ids[..., 1] == self.mj.mjtObj.mjOBJ_GEOM, ids[..., 0], -1)
            labels.append(geom)
            categories.append(self.category[geom][middle, middle])
            depths.append(np.minimum(depth, 5.0)[middle, middle].astype(np.float16))
        return {
            "images": np.stack(images), "category": np.stack(categories), "depth": np.stack(depths),
            "facts": self.facts(labels),
        }  # fmt: skip

    def _render(self) -> tuple[np.ndarray, np.ndarray]:
        """Colour (128, 128, 3) uint8 and depth (128, 128) in m from one pass, mirrored."""
        mj, renderer = self.mj, self.renderer
        image, depth = np.empty((SIZE, SIZE, 3), np.uint8), np.empty((SIZE, SIZE), np.float32)
        mj.mjr_render(renderer._rect, renderer.scene, renderer._mjr_context)
        mj.mjr_readPixels(image, depth, renderer._rect, renderer._mjr_context)
        near, far = np.array([self.model.vis.map.znear, self.model.vis.map.zfar]) * self.model.stat.extent
        metres = near * far / (depth * (far - near) + near)  # the depth buffer is reversed: 1 near, 0 far
        return image[::-1, ::-1].copy(), metres[::-1, ::-1]

    def facts(self, labels: list[np.ndarray]) -> dict[str, Any]:
        """What is true: {"scene", "gripper", "things"}; positions in m, "px" [x, y] or None a camera, "seen" pixels.

        `labels`: the geom of every pixel (128, 128) of each camera, -1 for none.
        """
        m, d = self.model, self.data
        geom_owner = np.array([self.owner[int(b)] for b in m.geom_bodyid] + [""])
        things = []
        for thing in self.things.values():
            box = rotation_z(thing.yaw) @ ((thing.low + thing.high) / 2)
            entry = {
                "id": thing.name, "name": NAMES[thing.kind], "position": (d.xpos[thing.body] + box).round(4).tolist(),
                "top": round(float(d.xpos[thing.body, 2] + thing.high[2]), 4), "parent": thing.parent,
                "relation": thing.relation, "movable": thing.joint >= 0, "held": thing.name == self.held,
            }  # fmt: skip
            masks = [geom_owner[label] == thing.name for label in labels]
            things.append(entry | _visible(masks))
            for joint_name, joint in self.joints.items():
                if joint_name.startswith(thing.name):
                    part = m.body(joint.bodyid[0]).name
                    category = self.category[next(g for g in range(m.ngeom) if m.geom_bodyid[g] == joint.bodyid[0])]
                    masks = [(geom_owner[label] == thing.name) & (self.category[label] == category) for label in labels]
                    amount = abs(float(d.qpos[joint.qposadr[0]])) / float(np.abs(joint.range).max())
                    part_entry = {
                        "id": part, "name": CATEGORIES[category], "of": thing.name, "open": round(amount, 3),
                        "position": d.xpos[joint.bodyid[0]].round(4).tolist(),
                    }  # fmt: skip
                    things.append(part_entry | _visible(masks))
        gripper = {
            "position": d.site_xpos[self.grip].round(4).tolist(),
            "axes": d.site_xmat[self.grip].round(4).tolist(),
            "opening": round(float(d.qpos[self.fingers[0]] - d.qpos[self.fingers[1]]), 4),
            "px": [self._project(d.site_xpos[self.grip], camera) for camera in CAMERAS],
            "height": round(float(d.site_xpos[self.grip, 2] - self.table_z), 4),
        }
        return {"scene": self.scene, "table": round(self.table_z, 4), "gripper": gripper, "things": things}

    def _project(self, point: np.ndarray, camera: str) -> list[int] | None:
        """Pixel [x, y] of a point (3,), None outside the image."""
        d, index = self.data, self.model.camera(camera).id
        local = d.cam_xmat[index].reshape(3, 3).T @ (point - d.cam_xpos[index])
        focal = SIZE / 2 / np.tan(np.deg2rad(self.model.cam_fovy[index]) / 2)
        if local[2] > -1e-3:
            return None
        x, y = SIZE / 2 - focal * local[0] / -local[2], SIZE / 2 - focal * local[1] / -local[2]  # x is mirrored
        pixel = [int(np.floor(x)), int(np.floor(y))]
        return pixel if min(pixel) >= 0 and max(pixel) < SIZE else None

    def close(self) -> None:
        self.renderer.close()
        self.control.close()


def _visible(masks: list[np.ndarray]) -> dict[str, Any]:
    """The pixel of each mask that is nearest to its median, and the masks' sizes in pixels."""
    pixels: list[list[int] | None] = []
    for mask in masks:
        points = np.argwhere(mask)
        if len(points) == 0:
            pixels.append(None)
            continue
        nearest = points[np.abs(points - np.median(points, axis=0)).sum(1).argmin()]
        pixels.append([int(nearest[1]), int(nearest[0])])
    return {"px": pixels, "seen": [int(mask.sum()) for mask in masks]}


def _yaw_quat(yaw: float) -> np.ndarray:
    return np.array([np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)])


def _wrap(yaw: float) -> float:
    """The same opening axis, turned by less than 90 degrees: fingers are alike."""
    return float((yaw + np.pi / 2) % np.pi - np.pi / 2)


# ---------------------------------------------------------------------- shards


def write_scene(job: tuple[str, str, list[int], int, int]) -> int:
    """Write the shards of one scene: (folder, scene, shard numbers, layouts a shard, seed); those that exist are kept.

    Returns the number of layouts.
    """
    folder, scene, numbers, count, seed = job
    missing = [n for n in numbers if not (Path(folder) / f"{scene}-{n:03d}.npz").exists()]
    stage = Stage(scene, np.random.default_rng(seed)) if missing else None
    for number in missing:
        assert stage is not None
        stage.rng = np.random.default_rng([seed, number])
        looks: list[dict[str, Any]] = []
        while len(looks) < count:
            try:
                stage.draw()
            except RuntimeError:
                continue
            looks.append(stage.look())
        text = json.dumps([look["facts"] for look in looks]).encode()
        arrays = {key: np.stack([look[key] for look in looks]) for key in ARRAYS}
        with replacing(Path(folder) / f"{scene}-{number:03d}.npz") as fresh:
            np.savez(fresh, **arrays, facts=np.frombuffer(text, np.uint8))  # type: ignore[arg-type]
    if stage is not None:
        stage.close()
    return len(numbers) * count


def generate(folder: Path | str, layouts: int = 10_000, workers: int = 2, shard: int = 100, seed: int = 0) -> None:
    """Draw, render and store random layouts of the 20 LIBERO-90 scenes; shards that exist are kept.

    A shard's name is its scene's and its number, so that held-out scenes are told apart by name; of those there are
    two, with two shards each.

    Args:
        folder: where to write.
        layouts: how many in all.
        workers: processes.
        shard: layouts a file.
        seed: of everything that varies.
    """
    os.environ.setdefault("MUJOCO_GL", "egl")
    os.environ.setdefault("PYOPENGL_PLATFORM", "egl")
    os.environ["OMP_NUM_THREADS"] = os.environ["LP_NUM_THREADS"] = "1"
    Path(folder).mkdir(parents=True, exist_ok=True)
    rounds = max(1, round(layouts / 20 / shard))
    jobs = []
    for start in range(0, rounds, 3):  # few shards a job: the first ones of all scenes are there early
        for scene in problems():
            numbers = [n for n in range(start, min(start + 3, rounds)) if n < 2 or scene not in HELD_OUT]
            if numbers:
                jobs.append((str(folder), scene, numbers, shard, zlib.crc32(f"{seed}/{scene}".encode())))
    with (
        get_context("spawn").Pool(workers, maxtasksperchild=2) as pool,
        Meter("drawing scenes", sum(len(job[2]) * job[3] for job in jobs)) as meter,
    ):
        for count in pool.imap_unordered(write_scene, jobs):
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
