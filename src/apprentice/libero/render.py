"""Pictures of the simulator: MuJoCo's own, or the same at 128 pixels in a fraction of the time.

Without a GPU nearly all of an image's time goes into 250,000 triangles, most of them smaller than a pixel.
`simplify` replaces visual meshes in the compiled model by lighter ones; collision geometry is left alone.
A fast renderer also leaves out what the camera cannot see.
"""

import mujoco
import numpy as np

from apprentice.files import cache_folder, fingerprint, replacing
from apprentice.libero.simplify import Mesh, decimate

CAMERAS = {"image": "agentview", "image2": "robot0_eye_in_hand"}
RECIPE = b"6"  # change it with the algorithm: it is part of the cache's key
SMALL = 100  # faces: not worth simplifying
# Tolerances, m. A pixel is 6 mm wide at the robot in the agent's view, 1 to 3 mm in the wrist's.
TOLERANCE = {"robot": 0.001, "mount": 0.006, "gripper": 0.0003}
OBJECT, ROOM = 0.0004, 0.002  # of anything else: OBJECT + ROOM * its radius; what is large is far
HIDDEN = mujoco.mjNGROUP - 1


class Renderer:
    """Draws cameras of one model. Holds a GL context, so make it late and close it."""

    def __init__(self, model: mujoco.MjModel, size: int, *, fast: bool = False):
        """`fast` leaves out what no ray of the camera meets; the images are the same to the bit."""
        model.vis.global_.offwidth = model.vis.global_.offheight = size  # a larger buffer costs time to clear
        self._renderer = mujoco.Renderer(model, size, size)
        self._option = mujoco.MjvOption()
        self._option.geomgroup[0] = self._option.geomgroup[HIDDEN] = 0  # collision shapes
        self._model, self._fast = model, fast
        self._group = model.geom_group.copy()
        box, plane = (model.geom_type == kind for kind in (mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_PLANE))
        shiny = (model.geom_matid >= 0) & (model.mat_reflectance[model.geom_matid] > 0)
        self._mirror = (box | plane) & shiny & (self._option.geomgroup[self._group] == 1)
        self._lift = np.where(box, model.geom_size[:, 2], 0)  # m, from the centre to the face that mirrors

    def draw(self, data: mujoco.MjData, camera: str) -> np.ndarray:
        """The camera's view (H, W, 3) uint8, rotated by 180 degrees as in the published LIBERO datasets.

        Robosuite hands images out bottom-up and the datasets flip them in both directions, so what we see
        is upright and mirrored.
        """
        if self._fast:
            self._leave_out(data, camera)
        self._renderer.update_scene(data, camera, self._option)
        self._model.geom_group[:] = self._group
        return np.ascontiguousarray(self._renderer.render()[:, ::-1])

    def _leave_out(self, data: mujoco.MjData, camera: str) -> None:
        """Hide the geoms out of view; draw no reflections without a mirror in view, and no sky below the horizon."""
        model, index, flags = self._model, self._model.camera(camera).id, self._renderer.scene.flags
        axes, half = data.cam_xmat[index].reshape(3, 3), np.deg2rad(self._model.cam_fovy[index] / 2)

        def in_view(centres: np.ndarray) -> np.ndarray:
            right, up, back = ((centres - data.cam_xpos[index]) @ axes).T
            outside = np.maximum(np.abs(right), np.abs(up)) * np.cos(half) + back * np.sin(half)  # m, of one side
            return (outside < model.geom_rbound) | (model.geom_rbound == 0)  # planes have no end

        seen = in_view(data.geom_xpos)
        mirrors = np.flatnonzero(seen & self._mirror)
        for mirror in mirrors:  # MuJoCo draws the scene once more for each: what would be in view if it were behind?
            normal = data.geom_xmat[mirror].reshape(3, 3)[:, 2]
            height = (data.geom_xpos - data.geom_xpos[mirror]) @ normal - self._lift[mirror]
            seen |= in_view(data.geom_xpos - 2 * height[:, None] * normal)
        model.geom_group[~seen] = HIDDEN
        steepest = np.tan(half) * (abs(axes[2, 0]) + abs(axes[2, 1])) - axes[2, 2]  # of all rays, in metres per metre
        flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = len(mirrors) > 0
        flags[mujoco.mjtRndFlag.mjRND_SKYBOX] = steepest > 0

    def close(self) -> None:
        self._renderer.close()


def simplify(model: mujoco.MjModel) -> None:
    """Make the visual meshes of a compiled model lighter, in place. Call it before a renderer is made.

    Lighter meshes are kept in the user's cache folder, one file a mesh, named by content.
    """
    is_mesh = model.geom_type == mujoco.mjtGeom.mjGEOM_MESH
    collides = (model.geom_contype | model.geom_conaffinity) != 0
    drawn = set(model.geom_dataid[is_mesh & ~collides]) - set(model.geom_dataid[is_mesh & collides])
    for index in sorted(drawn):
        if model.mesh_facenum[index] > SMALL:
            geom = int(np.flatnonzero(is_mesh & (model.geom_dataid == index))[0])
            old = _read(model, index)
            usual = OBJECT + ROOM * float(model.geom_rbound[geom])
            tolerance = TOLERANCE.get(model.mesh(index).name.split("0_")[0], usual)
            new = _cached(old, tolerance, _textured(model, geom) and len(old.texcoords) > 0)
            parts = zip(vars(new).values(), vars(old).values(), strict=True)
            if all(len(part) <= len(room) for part, room in parts):
                _write(model, index, new)


def _textured(model: mujoco.MjModel, geom: int) -> bool:
    """Does the geom wear a texture that its mesh's coordinates place?"""
    textures = model.mat_texid[model.geom_matid[geom]] if model.geom_matid[geom] >= 0 else np.array([-1])
    return bool((model.tex_type[textures[textures >= 0]] == mujoco.mjtTexture.mjTEXTURE_2D).any())


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


def _cached(mesh: Mesh, tolerance: float, textured: bool) -> Mesh:
    parts = vars(mesh).values()
    key = fingerprint(RECIPE, f"{tolerance:.6f}{textured}", *(np.ascontiguousarray(part).tobytes() for part in parts))
    path = cache_folder() / "meshes" / f"{key}.npz"
    if path.exists():
        with np.load(path, allow_pickle=False) as stored:
            return Mesh(**stored)
    lighter = decimate(mesh, tolerance, textured)
    with replacing(path) as fresh, fresh.open("wb") as stream:
        np.savez(stream, **vars(lighter))
    return lighter
