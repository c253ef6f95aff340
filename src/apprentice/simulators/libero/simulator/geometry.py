"""Where things are: geometry of a scene from privileged simulator state, never for a policy."""

from collections.abc import Collection
from typing import Any

import mujoco
import numpy as np

LEFT_FINGER = ("gripper0_leftfinger", "gripper0_finger_joint1_tip")
RIGHT_FINGER = ("gripper0_rightfinger", "gripper0_finger_joint2_tip")


class Geometry:
    """Objects and fixtures by their LIBERO names. Positions in metres, world frame, z up.

    Shapes are clouds of points that fill the bounding boxes of collision geoms, which is what a grasp can hit.
    """

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData, domain: Any):
        """`domain`: LIBERO's own environment of the task, which knows objects by name."""
        self.model, self.data, self.domain = model, data, domain
        self.root: dict[str, int] = dict(self.domain.obj_body_id)
        self.owner = self._owners()
        collides = (self.model.geom_contype + self.model.geom_conaffinity) > 0
        self.solid: list[int] = np.flatnonzero(collides).tolist()  # geoms that can be hit
        self._geoms: dict[str | None, list[int]] = {}
        for geom in self.solid:
            self._geoms.setdefault(self.owner[self.model.geom_bodyid[geom]], []).append(geom)

    def _owners(self) -> list[str | None]:
        """For each body the object or fixture that it is part of."""
        names = {body: name for name, body in self.root.items()}
        owners: list[str | None] = []
        for body in range(self.model.nbody):  # parents come first
            parent = self.model.body_parentid[body]
            owners.append(names.get(body, owners[parent] if body else None))
        return owners

    def position(self, name: str) -> np.ndarray:
        """Origin (3,) of an object."""
        return self.data.xpos[self.root[name]].copy()

    def rotation(self, name: str) -> np.ndarray:
        """Axes (3, 3) of an object, in columns."""
        return self.data.xmat[self.root[name]].reshape(3, 3).copy()

    def centre_of_mass(self, name: str) -> np.ndarray:
        return self.data.subtree_com[self.root[name]].copy()

    def site(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Centre (3,) and half extents (3,) along the world's axes of a region."""
        index = self.model.site(name).id
        rotation = self.data.site_xmat[index].reshape(3, 3)
        return self.data.site_xpos[index].copy(), np.abs(rotation @ self.model.site_size[index])

    def is_site(self, name: str) -> bool:
        return name in self.domain.object_sites_dict

    def parent(self, site: str) -> str:
        """The object or fixture that a region belongs to; the table's own regions have none in `root`."""
        return str(self.domain.object_sites_dict[site].parent_name)

    def base(self) -> np.ndarray:
        """Where (3,) the robot stands."""
        return self.data.xpos[self.model.body("robot0_base").id].copy()

    def still(self) -> bool:
        """Has everything that fell come to rest (2 cm/s)?"""
        falls = self.model.jnt_dofadr[self.model.jnt_type == 0]
        return bool((np.abs(self.data.qvel[falls[:, None] + np.arange(3)]) < 0.02).all())

    def holds(self, predicate: tuple[str, ...]) -> bool:
        """Is a goal predicate such as ("on", "bowl_1", "plate_1") true now?"""
        return bool(self.domain._eval_predicate(list(predicate)))

    def points(self, name: str, spacing: float) -> np.ndarray:
        """The object's shape as points (N, 3)."""
        return self.fill(self._geoms.get(name, []), spacing)

    def fill(self, geoms: list[int], spacing: float) -> np.ndarray:
        """The boxes around geoms as points (N, 3)."""
        clouds = [np.zeros((0, 3))]
        for geom in geoms:
            centre, half = np.split(self.model.geom_aabb[geom], 2)
            axes = [np.linspace(-h, h, max(2, int(np.ceil(2 * h / spacing)) + 1)) for h in half]
            grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
            rotation = self.data.geom_xmat[geom].reshape(3, 3)
            clouds.append(self.data.geom_xpos[geom] + (centre + grid) @ rotation.T)
        return np.concatenate(clouds)

    def bounds(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest corner (3,) of the object's box along the world's axes."""
        points = self.points(name, 0.01)
        return points.min(axis=0), points.max(axis=0)

    def ledges(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Heights (N,) of the upper and of the lower faces of the boxes of an object that lie level."""
        boxes = [g for g in self._geoms.get(name, []) if self.model.geom_type[g] == mujoco.mjtGeom.mjGEOM_BOX]
        upright = self.data.geom_xmat[boxes].reshape(-1, 3, 3)[:, 2]  # what is up, in each box's axes
        half = (np.abs(upright) * self.model.geom_size[boxes]).sum(axis=1)
        level = np.abs(upright).max(axis=1) > 0.999
        heights = self.data.geom_xpos[boxes][level, 2]
        return heights + half[level], heights - half[level]

    def obstacles(self, exclude: Collection[str], spacing: float) -> np.ndarray:
        """Points (N, 3) of everything but the named objects, the table and the robot."""
        clouds = [self.points(name, spacing) for name in self.root if name not in exclude]
        return np.concatenate([np.zeros((0, 3)), *clouds])

    def table_height(self) -> float:
        """Height of what the objects stand on."""
        return float(min(self.bounds(name)[0][2] for name in self.domain.objects_dict))

    def highest_between(self, start: np.ndarray, end: np.ndarray, exclude: Collection[str], radius: float) -> float:
        """The highest point within `radius` of a straight way, seen from above; -1 if there is none."""
        points, way = self.obstacles(exclude, 0.012), (end - start)[:2]
        along = np.clip((points[:, :2] - start[:2]) @ way / max(way @ way, 1e-12), 0, 1)
        near = np.linalg.norm(points[:, :2] - (start[:2] + along[:, None] * way), axis=1) < radius
        return float(points[near, 2].max(initial=-1.0))

    def support_height(self, xy: np.ndarray, exclude: Collection[str], radius: float) -> float:
        """How high an object would come to stand at `xy` (2,)."""
        points = self.obstacles(exclude, 0.006)
        near = np.linalg.norm(points[:, :2] - xy[:2], axis=1) < radius
        return float(points[near, 2].max(initial=self.table_height()))

    def held(self, name: str) -> bool:
        """Does the robot touch the object?"""
        return any("gripper" in body or "robot" in body for body in self._contacts(name))

    def grasped(self) -> set[str]:
        """What both fingers touch: objects and fixtures."""
        geoms = self.data.contact.geom
        bodies = self.model.geom_bodyid[np.concatenate([geoms, geoms[:, ::-1]])].tolist()
        left, right = (
            {self.owner[other] for body, other in bodies if self.model.body(body).name in finger}
            for finger in (LEFT_FINGER, RIGHT_FINGER)
        )
        return {name for name in left & right if name is not None}

    def rests(self, name: str) -> bool:
        """Does anything but the robot touch the object?"""
        return any("gripper" not in body and "robot" not in body for body in self._contacts(name))

    def _contacts(self, name: str) -> list[str]:
        """The bodies that touch the object."""
        bodies = self.model.geom_bodyid[self.data.contact.geom].reshape(-1, 2)
        both_ways = np.concatenate([bodies, bodies[:, ::-1]])
        others = [b for a, b in both_ways if self.owner[a] == name != self.owner[b]]
        return [self.model.body(b).name for b in others]
