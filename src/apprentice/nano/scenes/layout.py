"""Lays a scene out at random: room, fixtures, drawers and doors, objects, the robot's arm.

All is placed by kinematics alone; a layout with deep contacts is drawn again.
"""

from collections import Counter

import numpy as np

from apprentice.nano.scenes.own_scenes import OWN, SHOWN, forbidden, room_of
from apprentice.nano.scenes.scene_model import SceneModel, SceneObject, rotation_z, yaw_quat

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


def draw(scene: SceneModel, rng: np.random.Generator) -> None:
    """Draw a layout: fixtures, joints, objects, arm, room. Raises RuntimeError if no try is free of overlaps."""
    _paint(scene, rng)
    for _ in range(20):
        if OWN in scene.name:
            _choose(scene, rng)
        _fixtures(scene, rng)
        if _place_objects(scene, rng) and _pose_robot(scene, rng):
            scene.data.qvel[:] = 0
            scene.control.sim.forward()
            scene.control._post_process()  # lights the burner of a stove that is on
            return
    raise RuntimeError(f"no free layout found in {scene.name}")


def _choose(scene: SceneModel, rng: np.random.Generator) -> None:
    """Draw which objects a layout of our own shows: not all and only those of a scene that is kept for tests."""
    movable = [obj.name for obj in scene.all.values() if obj.joint >= 0]
    while True:
        scene.show([str(name) for name in rng.choice(movable, rng.integers(SHOWN[0], SHOWN[1] + 1), replace=False)])
        table = (f"{room_of(scene.name).lower()}_table", 1)
        if tuple(sorted([*Counter(t.kind for t in scene.present.values()).items(), table])) not in forbidden():
            return


def _paint(scene: SceneModel, rng: np.random.Generator) -> None:
    """Tint and re-texture the room, vary light and camera a little: the test suites have other rooms."""
    m = scene.model
    room = [
        int(m.geom_matid[g]) for g in range(m.ngeom)
        if scene.category[g] < 2 and m.geom_matid[g] >= 0
    ]  # fmt: skip
    for context in scene.contexts:
        context.mat_texid[:] = scene.texid
    m.mat_rgba[:] = scene.mat_rgba
    flat = [t for t in range(m.ntex) if m.tex_type[t] == 0]
    for material in sorted(set(room)):
        if rng.random() < 0.6:
            m.mat_rgba[material, :3] = np.clip(scene.mat_rgba[material, :3] * rng.uniform(0.4, 1.3, 3), 0, 1)
        if rng.random() < 0.35 and scene.texid[material].max() >= 0:
            slots = scene.texid[material] >= 0
            texture = rng.choice(flat)
            for context in scene.contexts:
                context.mat_texid[material, slots] = texture
    m.light_diffuse[:] = scene.light * rng.uniform(0.6, 1.25, (m.nlight, 1))
    m.cam_pos[scene.camera], m.cam_quat[scene.camera] = scene.cam_pos[scene.camera], scene.cam_quat[scene.camera]
    if rng.random() < 0.3:
        m.cam_pos[scene.camera] += rng.normal(0, 0.012, 3)
        quat = m.cam_quat[scene.camera] + rng.normal(0, 0.005, 4)
        m.cam_quat[scene.camera] = quat / np.linalg.norm(quat)


def _fixtures(scene: SceneModel, rng: np.random.Generator) -> None:
    m, d = scene.model, scene.data
    d.qpos[:] = scene.home
    scene.show(list(scene.present))  # `home` has all objects at the table
    mirrored = rng.random() < 0.3
    for obj in scene.present.values():
        if obj.joint < 0:
            m.body_pos[obj.body, :2] = scene.body_pos[obj.body, :2] + rng.uniform(-0.08, 0.08, 2)
            if mirrored and obj.kind != "desk_caddy":  # to the other side of the table
                m.body_pos[obj.body, 1] *= -1
            scene.mj.mju_mulQuat(m.body_quat[obj.body], yaw_quat(rng.normal(0, 0.12)), scene.body_quat[obj.body])
    opened = rng.random()
    slides = [j for j in scene.joints.values() if j.type[0] == scene.mj.mjtJoint.mjJNT_SLIDE]
    for joint in scene.joints.values():
        low, high = joint.range
        closed = high if abs(high) < abs(low) else low
        far = low if closed == high else high
        d.qpos[joint.qposadr[0]] = 0.0 if abs(closed) < 0.02 else closed
        if joint.type[0] == scene.mj.mjtJoint.mjJNT_HINGE and rng.random() < 0.5:
            d.qpos[joint.qposadr[0]] = rng.uniform(0.35, 1.0) * far
    if slides and opened < 0.65:  # one drawer open at a time, seldom ajar
        joint = slides[rng.integers(len(slides))]
        far = min(joint.range, key=lambda x: -abs(x))
        d.qpos[joint.qposadr[0]] = far * (rng.uniform(0.85, 1.0) if rng.random() < 0.7 else rng.uniform(0.2, 1))


def _place(scene: SceneModel, rng: np.random.Generator, obj: SceneObject) -> None:
    """Put a thing at a random place, on the table or (one in three) on or in something."""
    d = scene.data
    obj.parent = obj.relation = ""
    yaw = rng.uniform(-np.pi, np.pi) if rng.random() < 0.7 else rng.normal(0, 0.2)
    if rng.random() < 0.35:
        options = [
            (other, site, relation)
            for other in scene.present.values()
            if other is not obj and other.kind in SUPPORTS and other.parent == "" and other.name != scene.held
            for site, relation in SUPPORTS[other.kind]
            if obj.radius < (0.13 if other.joint < 0 or other.kind == "wooden_tray" else 0.085)
            and obj.kind != other.kind and scene.opened(other, site) > 0.6
            and not any(t.parent == other.name for t in scene.movable)
        ]  # fmt: skip
        if options:
            other, site, relation = options[rng.integers(len(options))]
            scene.mj.mj_kinematics(scene.model, d)
            if site:
                found = scene.model.site(f"{other.name}_{site}").id
                point, size = d.site_xpos[found].copy(), scene.model.site_size[found]
                drop = np.abs(d.site_xmat[found].reshape(3, 3)[2] @ size)
                point[2] += 0.002 - (drop if relation == "in" else 0.0)
            else:
                point = scene.position(other)
                point[2] += other.low[2] + (0.015 if other.kind != "plate" else 0.012)
            obj.parent, obj.relation = other.name, relation
            point[:2] += rng.normal(0, 0.012, 2)
            point[2] -= obj.low[2]
            scene.put(obj, point, yaw)
            return
    point = np.append(scene.centre + rng.uniform((-0.27, -0.33), (0.19, 0.33)), scene.table_z - obj.low[2] + 5e-4)
    scene.put(obj, point, yaw)


def _touches(scene: SceneModel) -> bool:
    """Whether the robot is in deep contact with anything but what it holds."""
    m, d = scene.model, scene.data
    for i in range(d.ncon):
        contact = d.contact[i]
        bodies = [int(m.geom_bodyid[g]) for g in (contact.geom1, contact.geom2)]
        robot = [m.body(b).name.startswith(("robot0", "gripper0")) for b in bodies]
        if robot[0] != robot[1] and contact.dist < -0.004:
            other = scene.owner[bodies[robot.index(False)]]
            if not other or other != scene.held:
                return True
    return False


def _place_objects(scene: SceneModel, rng: np.random.Generator) -> bool:
    for obj in scene.movable:
        obj.parent = obj.relation = ""
    scene.held = ""
    order = sorted(scene.movable, key=lambda t: -t.radius)
    for obj in order:
        for _ in range(12):
            _place(scene, rng, obj)
            scene.mj.mj_kinematics(scene.model, scene.data)
            scene.mj.mj_collision(scene.model, scene.data)
            done = order[: order.index(obj) + 1]
            ahead = {t.name for t in order} - {t.name for t in done}
            if not _clash(scene, obj.name, ahead):
                break
        else:
            return False
    return True


def _clash(scene: SceneModel, name: str, ignore: set[str]) -> bool:
    """Whether a thing overlaps with anything but those not yet placed."""
    m, d = scene.model, scene.data
    for i in range(d.ncon):
        contact = d.contact[i]
        if contact.dist > DEEP:
            continue
        bodies = [int(m.geom_bodyid[g]) for g in (contact.geom1, contact.geom2)]
        owners = [scene.owner[b] for b in bodies]
        if name not in owners or owners[0] == owners[1]:
            continue
        index = 1 - owners.index(name)
        other = owners[index]
        if other in ignore or m.body(bodies[index]).name.startswith(("robot0", "gripper0")):
            continue
        supports = other and (scene.present[name].parent == other or scene.present[other].parent == name)
        if not supports or contact.dist < -0.02:
            return True
    return False


def _grasp(scene: SceneModel, rng: np.random.Generator, obj: SceneObject) -> tuple[np.ndarray, float, float]:
    """A grasp of a thing: grip point from its origin (3,) m, yaw of the opening axis (rad), half width (m)."""
    half, middle = (obj.high - obj.low) / 2, (obj.high + obj.low) / 2
    height = obj.high[2] - min(0.015, half[2])
    if obj.kind in RIM:
        angle = rng.uniform(-np.pi, np.pi)
        reach = min(half[0], half[1]) - 0.006
        direction = np.array([np.cos(angle), np.sin(angle)])
        return np.append(middle[:2] + direction * reach, height - 0.005), angle, 0.004
    axis = int(half[1] < half[0])
    turn = rotation_z(obj.yaw)
    point = turn @ np.append(middle[:2], height)
    return point, obj.yaw + axis * np.pi / 2, float(min(half[axis] + 0.001, 0.04))


def _pose_robot(scene: SceneModel, rng: np.random.Generator) -> bool:
    d = scene.data
    mode = rng.random()
    graspable = [t for t in scene.movable if t.kind not in UNGRASPED]
    lone = [t for t in graspable if not any(o.parent == t.name for o in scene.movable)]
    for _ in range(12):
        opening, tilt, hold = 0.04 if rng.random() < 0.75 else rng.uniform(0.0, 0.04), rng.normal(0, 0.08, 2), None
        point = np.append(scene.centre + rng.uniform((-0.25, -0.3), (0.15, 0.3)), scene.table_z)
        point[2] += rng.uniform(0.02, 0.35)
        yaw = rng.normal(0, 0.5)
        if mode < 0.22 and lone:  # holds something
            hold = lone[rng.integers(len(lone))]
            tilt = tilt * 0.0
            offset, axis, opening = _grasp(scene, rng, hold)
            yaw = _wrap(axis - np.pi / 2)
            point[2] = max(point[2], scene.table_z + 0.03 - hold.low[2] + offset[2])
        elif mode < 0.75:  # above or around something
            target = list(scene.present.values())[rng.integers(len(scene.present))]
            offset, axis, _ = _grasp(scene, rng, target)
            point = scene.position(target) + offset
            yaw = _wrap(axis - np.pi / 2) if rng.random() < 0.6 else yaw
            if mode > 0.35:
                point += np.append(rng.normal(0, 0.03, 2), rng.uniform(0.0, 0.22))
        elif mode > 0.95:
            tilt = rng.uniform(-1.2, 1.2, 2) * (0, 1)
        if not _reach(scene, rng, point, yaw, tilt):
            continue
        d.qpos[scene.fingers] = (opening, -opening)
        if hold is not None:
            hold.parent = hold.relation = ""
            scene.mj.mj_kinematics(scene.model, d)
            scene.put(hold, d.site_xpos[scene.grip] - offset, hold.yaw)
            scene.held = hold.name
        scene.mj.mj_kinematics(scene.model, d)
        scene.mj.mj_collision(scene.model, d)
        if not _touches(scene) and not (hold and _clash(scene, hold.name, set())):
            return True
        if hold is not None:
            return False  # the object has left its place: a new layout
    return False


def _reach(scene: SceneModel, rng: np.random.Generator, point: np.ndarray, yaw: float, tilt: np.ndarray) -> bool:
    """Inverse kinematics of the arm by damped least squares, to 3 mm and 0.05 rad."""
    m, d, mj = scene.model, scene.data, scene.mj
    cx, sx, cy, sy = np.cos(tilt[0]), np.sin(tilt[0]), np.cos(tilt[1]), np.sin(tilt[1])
    lean = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]]) @ np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    goal = rotation_z(yaw) @ lean @ scene.down
    d.qpos[scene.arm] = scene.home[scene.arm] + rng.normal(0, 0.1, 7)
    jacobian = np.zeros((6, m.nv))
    limits = np.array([m.joint(f"robot0_joint{i}").range for i in range(1, 8)])
    for _ in range(40):
        mj.mj_kinematics(m, d)
        mj.mj_comPos(m, d)
        now = d.site_xmat[scene.grip].reshape(3, 3)
        turn = 0.5 * sum(np.cross(now[:, i], goal[:, i]) for i in range(3))
        error = np.concatenate([point - d.site_xpos[scene.grip], turn])
        if np.abs(error[:3]).max() < 0.003 and np.abs(turn).max() < 0.05:
            return True
        mj.mj_jacSite(m, d, jacobian[:3], jacobian[3:], scene.grip)
        part = jacobian[:, scene.arm_dof]
        step = part.T @ np.linalg.solve(part @ part.T + 1e-3 * np.eye(6), error)
        d.qpos[scene.arm] = np.clip(d.qpos[scene.arm] + np.clip(step, -0.3, 0.3), limits[:, 0], limits[:, 1])
    return False


def _wrap(yaw: float) -> float:
    """The same opening axis, turned by less than 90 degrees: fingers are alike."""
    return float((yaw + np.pi / 2) % np.pi - np.pi / 2)
