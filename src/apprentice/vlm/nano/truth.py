"""What the cameras see of a stage, and what is true about it."""

from typing import Any

import numpy as np

from apprentice.vlm.nano.catalogue import CATEGORIES, CELL, NAMES, SIZE
from apprentice.vlm.nano.stage import Stage, rotation_z

CAMERAS = ("agentview", "robot0_eye_in_hand")


def look(stage: Stage) -> dict[str, Any]:
    """Render: images (2, 128, 128, 3), category and depth (2, 32, 32), and the facts."""
    images, categories, depths, labels = [], [], [], []
    renderer, middle = stage.renderer, slice(CELL // 2, None, CELL)
    for camera in CAMERAS:
        renderer.update_scene(stage.data, camera, stage.option)
        image, depth = _render(stage)
        images.append(image)
        renderer.enable_segmentation_rendering()
        ids = renderer.render()[:, ::-1]
        renderer.disable_segmentation_rendering()
        geom = np.where(ids[..., 1] == stage.mj.mjtObj.mjOBJ_GEOM, ids[..., 0], -1)
        labels.append(geom)
        categories.append(stage.category[geom][middle, middle])
        depths.append(np.minimum(depth, 5.0)[middle, middle].astype(np.float16))
    return {
        "images": np.stack(images), "category": np.stack(categories), "depth": np.stack(depths),
        "facts": facts_of(stage, labels),
    }  # fmt: skip


def _render(stage: Stage) -> tuple[np.ndarray, np.ndarray]:
    """Colour (128, 128, 3) uint8 and depth (128, 128) in m from one pass, mirrored."""
    mj, renderer = stage.mj, stage.renderer
    image, depth = np.empty((SIZE, SIZE, 3), np.uint8), np.empty((SIZE, SIZE), np.float32)
    renderer._gl_context.make_current()
    mj.mjr_render(renderer._rect, renderer.scene, renderer._mjr_context)
    mj.mjr_readPixels(image, depth, renderer._rect, renderer._mjr_context)
    near, far = np.array([stage.model.vis.map.znear, stage.model.vis.map.zfar]) * stage.model.stat.extent
    metres = near * far / (depth * (far - near) + near)  # the depth buffer is reversed: 1 near, 0 far
    return image[::-1, ::-1].copy(), metres[::-1, ::-1]


def facts_of(stage: Stage, labels: list[np.ndarray]) -> dict[str, Any]:
    """What is true: {"scene", "gripper", "things"}; positions in m, "px" [x, y] or None a camera, "seen" pixels.

    `labels`: the geom of every pixel (128, 128) of each camera, -1 for none.
    """
    m, d = stage.model, stage.data
    geom_owner = np.array([stage.owner[int(b)] for b in m.geom_bodyid] + [""])
    things = []
    for thing in stage.things.values():
        box = rotation_z(thing.yaw) @ ((thing.low + thing.high) / 2)
        entry = {
            "id": thing.name, "name": NAMES[thing.kind], "position": (d.xpos[thing.body] + box).round(4).tolist(),
            "top": round(float(d.xpos[thing.body, 2] + thing.high[2]), 4), "parent": thing.parent,
            "relation": thing.relation, "movable": thing.joint >= 0, "held": thing.name == stage.held,
        }  # fmt: skip
        masks = [geom_owner[label] == thing.name for label in labels]
        things.append(entry | _visible(masks))
        for joint_name, joint in stage.joints.items():
            if joint_name.startswith(thing.name):
                part = m.body(joint.bodyid[0]).name
                category = stage.category[next(g for g in range(m.ngeom) if m.geom_bodyid[g] == joint.bodyid[0])]
                masks = [(geom_owner[label] == thing.name) & (stage.category[label] == category) for label in labels]
                amount = abs(float(d.qpos[joint.qposadr[0]])) / float(np.abs(joint.range).max())
                part_entry = {
                    "id": part, "name": CATEGORIES[category], "of": thing.name, "open": round(amount, 3),
                    "position": d.xpos[joint.bodyid[0]].round(4).tolist(),
                }  # fmt: skip
                things.append(part_entry | _visible(masks))
    gripper = {
        "position": d.site_xpos[stage.grip].round(4).tolist(),
        "axes": d.site_xmat[stage.grip].round(4).tolist(),
        "opening": round(float(d.qpos[stage.fingers[0]] - d.qpos[stage.fingers[1]]), 4),
        "px": [_project(stage, d.site_xpos[stage.grip], camera) for camera in CAMERAS],
        "height": round(float(d.site_xpos[stage.grip, 2] - stage.table_z), 4),
    }
    return {"scene": stage.scene, "table": round(stage.table_z, 4), "gripper": gripper, "things": things}


def _project(stage: Stage, point: np.ndarray, camera: str) -> list[int] | None:
    """Pixel [x, y] of a point (3,), None outside the image."""
    d, index = stage.data, stage.model.camera(camera).id
    local = d.cam_xmat[index].reshape(3, 3).T @ (point - d.cam_xpos[index])
    focal = SIZE / 2 / np.tan(np.deg2rad(stage.model.cam_fovy[index]) / 2)
    if local[2] > -1e-3:
        return None
    x, y = SIZE / 2 - focal * local[0] / -local[2], SIZE / 2 - focal * local[1] / -local[2]  # x is mirrored
    pixel = [int(np.floor(x)), int(np.floor(y))]
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
