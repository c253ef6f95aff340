"""How finely a model is drawn: its visual meshes and textures are replaced, in place, by lighter ones.

Without a GPU nearly all of an image's time goes into 250,000 triangles, most of them smaller than a pixel. How small a
pixel is depends on the camera. Collision geometry is left alone.
"""

from dataclasses import dataclass

import mujoco
import numpy as np
from PIL import Image

from apprentice.common.files import cache_folder, fingerprint, replacing
from apprentice.simulators.libero import FAST_VERSION
from apprentice.simulators.simplify import Mesh, decimate

SMALL = 100  # faces: not worth simplifying
LARGEST = 1024  # px: a texture's width. Of a larger one an image of 128 px shows averages only


@dataclass(frozen=True)
class Detail:
    """How far (m) a surface may move: that of the robot's parts, and `least + share * radius` of anything else, for
    what is large is far.
    """

    robot: float
    mount: float
    gripper: float
    least: float
    share: float


# A pixel of the agent's view is 6 mm wide at the robot; of the wrist's, 1 to 3 mm.
AGENT = Detail(robot=0.001, mount=0.006, gripper=0.0003, least=0.0003, share=0.00125)
WRIST = Detail(robot=0.004, mount=0.02, gripper=0.0002, least=0.0003, share=0.0013)
Meshes = dict[int, Mesh]  # by their index in a model


def lighter(model: mujoco.MjModel, detail: Detail) -> Meshes:
    """The visual meshes of a compiled model that can be lighter, each from what it is now.

    They are kept in the user's cache folder, one file a mesh, named by content.
    """
    is_mesh = model.geom_type == mujoco.mjtGeom.mjGEOM_MESH
    collides = (model.geom_contype | model.geom_conaffinity) != 0
    drawn = set(model.geom_dataid[is_mesh & ~collides]) - set(model.geom_dataid[is_mesh & collides])
    found = {}
    for index in sorted(drawn):
        if model.mesh_facenum[index] > SMALL:
            geom = int(np.flatnonzero(is_mesh & (model.geom_dataid == index))[0])
            old = _read(model, index)
            usual = detail.least + detail.share * float(model.geom_rbound[geom])
            tolerance = getattr(detail, model.mesh(index).name.split("0_")[0], usual)
            new = _cached(old, tolerance, _textured(model, geom) and len(old.texcoords) > 0)
            parts = zip(vars(new).values(), vars(old).values(), strict=True)
            if all(len(part) <= len(room) for part, room in parts):
                found[int(index)] = new
    return found


def put(model: mujoco.MjModel, meshes: Meshes) -> None:
    """Have them drawn by renderers that are made from now on."""
    for index, mesh in meshes.items():
        _write(model, index, mesh)


def shrink_textures(model: mujoco.MjModel) -> None:
    """Halve textures until none is wider than `LARGEST`: they then load faster, and look the same from afar."""
    for texture in range(model.ntex):
        start, width, height = model.tex_adr[texture], model.tex_width[texture], model.tex_height[texture]
        factor = 1
        while width > LARGEST * factor and width % (2 * factor) == height % (2 * factor) == 0:
            factor *= 2
        if factor > 1:
            pixels = model.tex_data[start : start + width * height * model.tex_nchannel[texture]]
            shape = (height, width) if pixels.size == height * width else (height, width, -1)
            smaller = np.asarray(Image.fromarray(pixels.reshape(shape)).reduce(factor))
            model.tex_data[start : start + smaller.size] = smaller.ravel()
            model.tex_width[texture], model.tex_height[texture] = width // factor, height // factor


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
    key = fingerprint(
        str(FAST_VERSION), f"{tolerance:.6f}{textured}", *(np.ascontiguousarray(part).tobytes() for part in parts)
    )
    path = cache_folder() / "meshes" / f"{key}.npz"
    if path.exists():
        with np.load(path, allow_pickle=False) as stored:
            return Mesh(**stored)
    lighter = decimate(mesh, tolerance, textured)
    with replacing(path) as fresh, fresh.open("wb") as stream:
        np.savez(stream, **vars(lighter))
    return lighter
