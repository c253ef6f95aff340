"""Decimation on a shape whose surface, normals and texture are known everywhere: a sphere."""

import numpy as np

from apprentice.libero.render import Mesh, decimate


def sphere(rows: int = 60, columns: int = 120) -> Mesh:
    """Radius 1, longitude as u and latitude as v, with a texture seam; every face has its own three corners."""
    v, u = np.meshgrid(np.linspace(0, 1, rows + 1), np.linspace(0, 1, columns + 1), indexing="ij")
    polar, around = np.pi * v, 2 * np.pi * u
    points = np.stack([np.sin(polar) * np.cos(around), np.sin(polar) * np.sin(around), np.cos(polar)], -1)
    index = np.arange((rows + 1) * (columns + 1)).reshape(rows + 1, columns + 1)
    a, b, c, d = index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]
    quads = np.stack([np.stack([a, b, c], -1), np.stack([a, c, d], -1)]).reshape(-1, 3)
    corners = points.reshape(-1, 3)[quads]
    full = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1) > 1e-9
    place, faces = quads[full].reshape(-1), np.arange(3 * full.sum(), dtype=np.int32).reshape(-1, 3)
    vertices = points.reshape(-1, 3)[place].astype(np.float32)
    texcoords = np.stack([u, v], -1).reshape(-1, 2)[place].astype(np.float32)
    return Mesh(vertices, faces, vertices.copy(), faces, texcoords, faces)


def test_decimation_keeps_shape_normals_and_texture() -> None:
    full = sphere()
    light = decimate(full, 8.0)
    assert 500 < len(light.faces) < len(full.faces) / 10
    corners = light.vertices[light.faces]
    assert np.abs(np.linalg.norm(corners, axis=-1) - 1).max() < 0.02
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    outwards = np.einsum("fc,fc->f", across, corners.mean(axis=1))
    assert (outwards > 0).all()
    normals = light.normals[light.face_normals]
    assert np.einsum("fkc,fkc->fk", normals, corners).min() > 0.97
    u, v = np.moveaxis(light.texcoords[light.face_texcoords], -1, 0)
    assert np.abs(v - np.arccos(np.clip(corners[..., 2], -1, 1)) / np.pi).max() < 0.03
    assert np.quantile(np.ptp(u, axis=1)[np.abs(corners[..., 2]).max(axis=1) < 0.9], 1.0) < 0.3  # none across the seam


def test_a_mesh_that_would_not_fit_is_left_alone() -> None:
    full = sphere(6, 12)
    assert decimate(full, 100.0) is full
