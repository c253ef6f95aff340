"""Pictures of the simulator: MuJoCo's own renderer, and lighter visual meshes that look the same at 128 pixels.

Without a GPU nearly all of an image's time goes into 250,000 triangles, most of them smaller than a pixel.
`simplify` replaces visual meshes in the compiled model by decimated ones; collision geometry is left alone.
"""

from dataclasses import dataclass

import mujoco
import numpy as np
from scipy.spatial import KDTree

from apprentice.files import cache_folder, fingerprint, replacing

CAMERAS = {"image": "agentview", "image2": "robot0_eye_in_hand"}
RECIPE = b"2"  # change it with the algorithm: it is part of the cache's key
SMALL = 150  # faces: not worth decimating
# A mesh of F faces keeps DETAIL * sqrt(F). The robot is far from both cameras; objects come near the wrist's.
DETAIL, ROBOT_DETAIL = 10.0, 5.0


class Renderer:
    """Draws cameras of one model. Holds a GL context, so make it late and close it."""

    def __init__(self, model: mujoco.MjModel, size: int):
        model.vis.global_.offwidth = model.vis.global_.offheight = size  # a larger buffer costs time to clear
        self._renderer = mujoco.Renderer(model, size, size)
        self._option = mujoco.MjvOption()
        self._option.geomgroup[0] = 0  # collision shapes

    def draw(self, data: mujoco.MjData, camera: str) -> np.ndarray:
        """The camera's view (H, W, 3) uint8, rotated by 180 degrees as in the published LIBERO datasets.

        Robosuite hands images out bottom-up and the datasets flip them in both directions, so what we see
        is upright and mirrored.
        """
        self._renderer.update_scene(data, camera, self._option)
        return np.ascontiguousarray(self._renderer.render()[:, ::-1])

    def close(self) -> None:
        self._renderer.close()


@dataclass
class Mesh:
    """Vertices, normals and texture coordinates with a (F, 3) index into each."""

    vertices: np.ndarray  # (V, 3) m
    faces: np.ndarray
    normals: np.ndarray  # (N, 3)
    face_normals: np.ndarray
    texcoords: np.ndarray  # (T, 2), or (0, 2)
    face_texcoords: np.ndarray


def simplify(model: mujoco.MjModel) -> None:
    """Decimate the visual meshes of a compiled model in place. Call it before a renderer is made.

    Decimated meshes are kept in the user's cache folder, one file a mesh, named by content.
    """
    is_mesh = model.geom_type == mujoco.mjtGeom.mjGEOM_MESH
    collides = (model.geom_contype | model.geom_conaffinity) != 0
    drawn = set(model.geom_dataid[is_mesh & ~collides]) - set(model.geom_dataid[is_mesh & collides])
    for index in sorted(drawn):
        if model.mesh_facenum[index] > SMALL:
            robot = model.mesh(index).name.startswith(("robot", "mount"))
            _write(model, index, _cached(_read(model, index), ROBOT_DETAIL if robot else DETAIL))


def _spans(model: mujoco.MjModel, index: int) -> tuple[slice, slice, slice, slice]:
    """Where the mesh's faces, vertices, normals and texture coordinates lie in the model's arrays."""

    def span(start: np.ndarray, count: np.ndarray) -> slice:
        return slice(max(start[index], 0), max(start[index], 0) + count[index])

    return (
        span(model.mesh_faceadr, model.mesh_facenum),
        span(model.mesh_vertadr, model.mesh_vertnum),
        span(model.mesh_normaladr, model.mesh_normalnum),
        span(model.mesh_texcoordadr, model.mesh_texcoordnum),
    )


def _read(model: mujoco.MjModel, index: int) -> Mesh:
    face, vertex, normal, texcoord = _spans(model, index)
    return Mesh(
        model.mesh_vert[vertex],
        model.mesh_face[face],
        model.mesh_normal[normal],
        model.mesh_facenormal[face],
        model.mesh_texcoord[texcoord],
        model.mesh_facetexcoord[face],
    )


def _write(model: mujoco.MjModel, index: int, mesh: Mesh) -> None:
    face, vertex, normal, texcoord = (span.start for span in _spans(model, index))
    count = len(mesh.faces)
    model.mesh_vert[vertex : vertex + len(mesh.vertices)] = mesh.vertices
    model.mesh_normal[normal : normal + len(mesh.normals)] = mesh.normals
    model.mesh_texcoord[texcoord : texcoord + len(mesh.texcoords)] = mesh.texcoords
    model.mesh_face[face : face + count] = mesh.faces
    model.mesh_facenormal[face : face + count] = mesh.face_normals
    model.mesh_facetexcoord[face : face + count] = mesh.face_texcoords
    model.mesh_facenum[index] = count


def _cached(mesh: Mesh, detail: float) -> Mesh:
    parts = vars(mesh).values()
    key = fingerprint(RECIPE, str(detail), *(np.ascontiguousarray(part).tobytes() for part in parts))
    path = cache_folder() / "meshes" / f"{key}.npz"
    if path.exists():
        with np.load(path, allow_pickle=False) as stored:
            return Mesh(**stored)
    lighter = decimate(mesh, detail)
    with replacing(path) as fresh, fresh.open("wb") as stream:
        np.savez(stream, **vars(lighter))
    return lighter


def decimate(mesh: Mesh, detail: float) -> Mesh:
    """The mesh with about `detail * sqrt(F)` faces, or `mesh` itself if the result would not fit into its arrays."""
    target = int(detail * len(mesh.faces) ** 0.5)
    vertices, faces = _weld(mesh.vertices.astype(np.float64), mesh.faces, 1e-6)
    vertices, faces = _collapse(vertices, faces, target)
    cell = 0.004
    while len(faces) > 1.5 * target:  # a soup of open patches does not collapse: merge what lies close together
        vertices, faces = _weld(vertices, faces, cell)
        vertices, faces = _collapse(vertices, faces, target)
        cell *= 1.5
    lighter = _dress(mesh, vertices, faces)
    fits = (
        len(lighter.vertices) <= len(mesh.vertices)
        and len(lighter.normals) <= len(mesh.normals)
        and len(lighter.texcoords) <= len(mesh.texcoords)
    )
    return lighter if fits and len(faces) < len(mesh.faces) else mesh


def _weld(vertices: np.ndarray, faces: np.ndarray, cell: float) -> tuple[np.ndarray, np.ndarray]:
    """Make one vertex of all that share a cell of that size (m), and drop the faces that vanish."""
    _, first, owner = np.unique(np.round(vertices / cell), axis=0, return_index=True, return_inverse=True)
    faces = owner.reshape(-1)[faces]
    return vertices[first], faces[(faces != np.roll(faces, 1, axis=1)).all(axis=1)]


def _collapse(vertices: np.ndarray, faces: np.ndarray, target: int) -> tuple[np.ndarray, np.ndarray]:
    from fast_simplification import simplify as collapse_edges

    if len(faces) <= target:
        return vertices, faces
    return collapse_edges(vertices, faces.astype(np.int32), target_count=target, agg=3.0)


def _face_normals(corners: np.ndarray) -> np.ndarray:
    """Unit normals (F, 3) of triangles (F, 3, 3)."""
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)


def _dress(source: Mesh, vertices: np.ndarray, faces: np.ndarray) -> Mesh:
    """Give a decimated surface the normals and texture coordinates of near corners of the original.

    Which corner lies near is also judged by orientation (two sides of a thin wall) and, for the texture, by the
    coordinates that the original face in the middle would give if it were larger: across a seam they jump.
    """
    corners, old_corners = vertices[faces], source.vertices[source.faces].astype(np.float64)
    facing = 0.1 * np.ptp(source.vertices, axis=0).max()  # what a disagreement weighs beside a distance
    new_facing, old_facing = facing * _face_normals(corners), facing * _face_normals(old_corners)
    inside = (0.98 * corners + 0.02 * corners.mean(axis=1, keepdims=True)).reshape(-1, 3)
    tree = KDTree(np.hstack([old_corners.reshape(-1, 3), np.repeat(old_facing, 3, axis=0)]))
    _, nearest = tree.query(np.hstack([inside, np.repeat(new_facing, 3, axis=0)]))
    normals, face_normals = _index(source.normals[source.face_normals.reshape(-1)[nearest]])
    texcoords, face_texcoords = source.texcoords[:0], np.zeros(len(inside), dtype=np.int32)
    if len(source.texcoords):
        old_texcoords = source.texcoords[source.face_texcoords].astype(np.float64)
        tree = KDTree(np.hstack([old_corners.mean(axis=1), old_facing]))
        _, middle = tree.query(np.hstack([corners.mean(axis=1), new_facing]))
        expected = _extend(old_corners[middle], old_texcoords[middle], corners)
        metres = _metres_per_texture(old_corners, old_texcoords)
        tree = KDTree(np.hstack([old_corners.reshape(-1, 3), metres * old_texcoords.reshape(-1, 2)]))
        _, nearest = tree.query(np.hstack([inside, metres * expected.reshape(-1, 2)]))
        texcoords, face_texcoords = _index(old_texcoords.reshape(-1, 2)[nearest])
    return Mesh(
        vertices.astype(np.float32),
        faces.astype(np.int32),
        normals,
        face_normals.reshape(faces.shape),
        texcoords,
        face_texcoords.reshape(faces.shape),
    )


def _extend(triangles: np.ndarray, texcoords: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Texture coordinates (F, 3, 2) at `corners` (F, 3, 3) by the affine maps of triangles (F, 3, 3)."""
    edges, steps = triangles[:, 1:] - triangles[:, :1], texcoords[:, 1:] - texcoords[:, :1]
    slope = np.linalg.pinv(edges, rcond=1e-3) @ steps  # (F, 3, 2) texture per metre
    return texcoords[:, :1] + (corners - triangles[:, :1]) @ slope


def _metres_per_texture(corners: np.ndarray, texcoords: np.ndarray) -> float:
    """The length on the surface of one unit of texture."""
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1).sum()
    a, b = texcoords[:, 1] - texcoords[:, 0], texcoords[:, 2] - texcoords[:, 0]
    return float(np.sqrt(area / max(np.abs(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum(), 1e-9)))


def _index(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct rows, float32, and where each row went, int32."""
    distinct, place = np.unique(rows, axis=0, return_inverse=True)
    return distinct.astype(np.float32), place.reshape(-1).astype(np.int32)
