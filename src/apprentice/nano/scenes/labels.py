"""What the cameras see of a scene, and what is true about it."""

from typing import Any

import numpy as np

from apprentice.nano.scenes.catalogue import CATEGORIES, CELL, NAMES, SIZE
from apprentice.nano.scenes.scene_model import SceneModel, rotation_z

CAMERAS = ("agentview", "robot0_eye_in_hand")


def render_labelled(scene: SceneModel) -> dict[str, Any]:
    """Render: images (2, 128, 128, 3), category and depth (2, 32, 32), and the facts."""
    images, categories, depths, labels = [], [], [], []
    middle = slice(CELL // 2, None, CELL)
    for camera in CAMERAS:
        image, depth, geom = scene.renderers[camera].draw_all(scene.data, camera)
        images.append(image)
        labels.append(geom)
        categories.append(scene.category[geom[middle, middle]])
        depths.append(np.minimum(depth[middle, middle], 5.0).astype(np.float16))
    return {
        "images": np.stack(images), "category": np.stack(categories), "depth": np.stack(depths),
        "facts": facts_of(scene, labels),
    }  # fmt: skip


def facts_of(scene: SceneModel, labels: list[np.ndarray]) -> dict[str, Any]:
    """What is true: {"scene", "gripper", "things"}; positions in m, "px" [x, y] or None a camera, "seen" pixels,
    "centre" a camera [x, y, m]: where the position is in its image (px, not rounded) and how far, None behind it.

    `labels`: the geom of every pixel (128, 128) of each camera, -1 for none.
    """
    m, d = scene.model, scene.data
    names = list(scene.all)
    number = np.array([names.index(scene.owner[int(b)]) if scene.owner[int(b)] else -1 for b in m.geom_bodyid] + [-1])
    owners = [number[label] for label in labels]
    things = []
    for obj in scene.present.values():
        box = rotation_z(obj.yaw) @ ((obj.low + obj.high) / 2)
        middle = d.xpos[obj.body] + box
        entry = {
            "id": obj.name, "name": NAMES[obj.kind], "position": middle.round(4).tolist(),
            "top": round(float(d.xpos[obj.body, 2] + obj.high[2]), 4), "parent": obj.parent,
            "relation": obj.relation, "movable": obj.joint >= 0, "held": obj.name == scene.held,
        }  # fmt: skip
        masks = [owner == names.index(obj.name) for owner in owners]
        things.append(entry | _visible(masks) | {"centre": [project(scene, middle, camera) for camera in CAMERAS]})
        for joint_name, joint in scene.joints.items():
            if joint_name.startswith(obj.name):
                body = joint.bodyid[0]
                category = scene.category[int(np.flatnonzero(m.geom_bodyid == body)[0])]
                seen = [mask & (scene.category[label] == category) for mask, label in zip(masks, labels, strict=True)]
                amount = abs(float(d.qpos[joint.qposadr[0]])) / float(np.abs(joint.range).max())
                part_entry = {
                    "id": m.body(body).name, "name": CATEGORIES[category], "of": obj.name, "open": round(amount, 3),
                    "position": d.xpos[body].round(4).tolist(),
                }  # fmt: skip
                things.append(part_entry | _visible(seen))
    gripper = {
        "position": d.site_xpos[scene.grip].round(4).tolist(),
        "axes": d.site_xmat[scene.grip].round(4).tolist(),
        "opening": round(float(d.qpos[scene.fingers[0]] - d.qpos[scene.fingers[1]]), 4),
        "px": [_pixel(project(scene, d.site_xpos[scene.grip], camera)) for camera in CAMERAS],
        "height": round(float(d.site_xpos[scene.grip, 2] - scene.table_z), 4),
    }
    return {"scene": scene.name, "table": round(scene.table_z, 4), "gripper": gripper, "things": things}


def project(scene: SceneModel, point: np.ndarray, camera: str) -> list[float] | None:
    """Where a point (3,) is in a camera's mirrored image, [x, y, m]: px from its corner, inside the image or not, and
    how far it is along the camera's axis; None behind the camera.
    """
    d, index = scene.data, scene.model.camera(camera).id
    local = d.cam_xmat[index].reshape(3, 3).T @ (point - d.cam_xpos[index])
    focal = SIZE / 2 / np.tan(np.deg2rad(scene.model.cam_fovy[index]) / 2)
    if local[2] > -1e-3:
        return None
    x, y = SIZE / 2 - focal * local[0] / -local[2], SIZE / 2 - focal * local[1] / -local[2]
    return [round(float(value), 3) for value in (x, y, -local[2])]


def _pixel(spot: list[float] | None) -> list[int] | None:
    """The pixel of a projected point, None outside the image."""
    pixel = [-1] if spot is None else [int(np.floor(value)) for value in spot[:2]]
    return pixel if min(pixel) >= 0 and max(pixel) < SIZE else None


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
