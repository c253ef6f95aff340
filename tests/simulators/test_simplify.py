"""Decimation on shapes whose surface, normals and texture are known everywhere."""

import numpy as np

from apprentice.simulators.simplify import Mesh, decimate


def sheet(points: np.ndarray, normals: np.ndarray, u: np.ndarray, v: np.ndarray) -> Mesh:
    """A grid (R, C, 3) of points as triangles, each with three corners of its own, as LIBERO's are stored."""
    index = np.arange(u.size).reshape(u.shape)
    a, b, c, d = index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]
    faces = np.stack([np.stack([a, b, c], -1), np.stack([a, c, d], -1)]).reshape(-1, 3)
    corners = points.reshape(-1, 3)[faces]
    place = faces[np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1) > 1e-9]
    own = np.arange(place.size, dtype=np.int32).reshape(-1, 3)
    vertices, normals = (x.reshape(-1, 3)[place.reshape(-1)].astype(np.float32) for x in (points, normals))
    texcoords = np.stack([u, v], -1).reshape(-1, 2)[place.reshape(-1)].astype(np.float32)
    return Mesh(vertices, own, normals, own, texcoords, own)


def sphere(rows: int = 60, columns: int = 120) -> Mesh:
    """Radius 1, longitude as u and latitude as v: there is a seam where u jumps from 1 to 0."""
    v, u = np.meshgrid(np.linspace(0, 1, rows + 1), np.linspace(0, 1, columns + 1), indexing="ij")
    polar, around = np.pi * v, 2 * np.pi * u
    points = np.stack([np.sin(polar) * np.cos(around), np.sin(polar) * np.sin(around), np.cos(polar)], -1)
    return sheet(points, points, u, v)


def test_surface_normals_and_texture_stay_within_the_tolerance() -> None:
    full = sphere()
    light = decimate(full, 0.01, textured=True)
    assert 200 < len(light.faces) < len(full.faces) / 8
    corners = light.vertices[light.faces]
    assert np.abs(np.linalg.norm(corners, axis=-1) - 1).max() < 0.02
    assert np.linalg.norm(corners.mean(axis=1), axis=-1).min() > 0.96
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert (np.einsum("fc,fc->f", across, corners.mean(axis=1)) > 0).all()
    assert np.einsum("fkc,fkc->fk", light.normals[light.face_normals], corners).min() > 0.97
    u, v = np.moveaxis(light.texcoords[light.face_texcoords], -1, 0)
    polar, around = np.arccos(np.clip(corners[..., 2], -1, 1)), np.arctan2(corners[..., 1], corners[..., 0])
    assert np.abs(v - polar / np.pi).max() < 0.02
    slip = (u - around / (2 * np.pi) + 0.5) % 1 - 0.5
    assert np.abs(slip * np.sin(polar)).max() < 0.02
    assert np.ptp(u, axis=1)[np.abs(corners[..., 2]).max(axis=1) < 0.9].max() < 0.4  # no face reaches across the seam


def test_a_flat_sheet_keeps_its_outline_and_a_picture_on_it_its_place() -> None:
    y, x = np.meshgrid(np.linspace(0, 1, 40), np.linspace(0, 2, 80), indexing="ij")
    flat = np.stack([x, y, 0 * x], -1)
    light = decimate(sheet(flat, np.zeros_like(flat) - [0, 0, 1], x / 2, y), 0.005, textured=True)
    assert len(light.faces) < 20
    corners, texcoords = light.vertices[light.faces], light.texcoords[light.face_texcoords]
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1).sum() / 2
    np.testing.assert_allclose(area, 2, rtol=0.01)
    np.testing.assert_allclose(texcoords * [2, 1], corners[..., :2], atol=0.01)


def test_small_parts_are_not_lost() -> None:
    ball = sphere(12, 24)
    vertices = np.concatenate([ball.vertices, 0.02 * ball.vertices + np.array([3, 0, 0], np.float32)])
    faces = np.concatenate([ball.faces, ball.faces + len(ball.vertices)])
    twice = np.concatenate([ball.normals, ball.normals])
    light = decimate(Mesh(vertices, faces, twice, faces, ball.texcoords[:0], faces * 0), 0.01, textured=False)
    small = light.vertices[light.vertices[:, 0] > 2]
    assert (np.ptp(small, axis=0) > 0.02).all()
