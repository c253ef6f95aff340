"""Lighter meshes that look the same: edges collapse while surface and texture move less than a tolerance.

Quadrics over position and texture: Garland and Heckbert, "Simplifying Surfaces with Color and Texture using Quadric
Error Metrics" (1998). A vertex goes to a neighbour and takes the neighbour's texture coordinates on its own side of a
seam, so that no texture is torn; where that is impossible it stays. Many distant collapses are made at once in NumPy.
"""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix

TEXTURE = 0.5  # what a slip of the texture along the surface weighs beside a displacement of the surface
OUTLINE = 0.1  # what a displacement of borders and seams weighs
STAGES = (0.15, 0.4, 1.0)  # of the tolerance: cheap collapses come first
COARSER = (1.4, 2.0, 2.8, 4.0)  # for what still has more than MOST faces: a weave, leaves
MOST = 12000
FLIP = 0.2  # least cosine between the normals of a face before and after a collapse
CREASE = 0.8  # least cosine between a face and the original normals that are averaged at its corners
TRIES = 3  # neighbours tried for each vertex in each round


@dataclass
class Mesh:
    """Vertices, normals and texture coordinates with a (F, 3) index into each."""

    vertices: np.ndarray  # (V, 3) m
    faces: np.ndarray
    normals: np.ndarray  # (N, 3)
    face_normals: np.ndarray
    texcoords: np.ndarray  # (T, 2), or (0, 2)
    face_texcoords: np.ndarray


@dataclass
class Surface:
    """A mesh on its way. A wedge is a vertex with one of its texture coordinates: on a seam a vertex has several."""

    points: np.ndarray  # (V, 3) m
    faces: np.ndarray  # (F, 3) vertices
    wedges: np.ndarray  # (F, 3)
    owner: np.ndarray  # (W,) the vertex of a wedge
    places: np.ndarray  # (W, n) m, position about the mean and, if textured, texture coordinates
    quadrics: np.ndarray  # (W, n + 1, n + 1) m4: squared distance to the planes that a wedge stands for, times area
    area: np.ndarray  # (V,) m2 of the original that a vertex stands for
    moved_to: np.ndarray  # (V,) for each original vertex


@dataclass
class Edges:
    """Directed edges, in order of start and then end: could start collapse into end, and at what cost?"""

    start: np.ndarray  # (E,) vertices
    end: np.ndarray
    allowed: np.ndarray  # (E,) bool
    cost: np.ndarray  # (E,) m2
    edge: np.ndarray  # (P,) on this edge ...
    before: np.ndarray  # (P,) ... this wedge of start ...
    after: np.ndarray  # (P,) ... would become this wedge of end


def decimate(mesh: Mesh, tolerance: float, textured: bool) -> Mesh:
    """The mesh with as few faces as stay within about `tolerance` (m, root mean square) of the original.

    Where those are still many the tolerance is up to four times larger: more than a pixel cannot show.
    Unless `textured`, texture coordinates are given up.
    """
    surface, texcoords = _surface(mesh, textured)
    corners = surface.faces
    _drop_degenerate(surface)
    for stage in (*STAGES, *COARSER):
        if stage in COARSER and len(surface.faces) <= MOST:
            break
        while _collapse(surface, stage * tolerance) > 0.01 * len(surface.faces) / 2:
            pass
    return _dress(mesh, surface, corners, _settle(surface, 2 * tolerance), texcoords)


def _surface(mesh: Mesh, textured: bool) -> tuple[Surface, np.ndarray]:
    """The mesh welded by position, and the texture coordinates (W, 2) of its wedges."""
    points = mesh.vertices[mesh.faces].reshape(-1, 3).astype(np.float64)
    first, vertex = _distinct(np.round(points / 1e-6))
    texcoords = np.zeros((len(points), 0))
    scale = 0.0
    if textured:
        texcoords = mesh.texcoords[mesh.face_texcoords].reshape(-1, 2).astype(np.float64)
        scale = TEXTURE * _metres_per_texture(points.reshape(-1, 3, 3), texcoords.reshape(-1, 3, 2))
    first_wedge, wedge = _distinct(np.column_stack([vertex, np.round(texcoords * 1e5)]))
    centre = points[first].mean(axis=0)
    places = np.hstack([points - centre, scale * texcoords])[first_wedge]
    faces, wedges = vertex.reshape(-1, 3), wedge.reshape(-1, 3)
    surface = Surface(
        points=points[first],
        faces=faces,
        wedges=wedges,
        owner=vertex[first_wedge],
        places=places,
        quadrics=np.zeros((len(places), places.shape[1] + 1, places.shape[1] + 1)),
        area=np.full(len(first), 1e-12),
        moved_to=np.arange(len(first)),
    )
    _add_quadrics(surface)
    return surface, texcoords[first_wedge]


def _distinct(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each distinct row occurs first, and which of these each row is."""
    _, first, place = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    return first, place.reshape(-1)


def _metres_per_texture(corners: np.ndarray, texcoords: np.ndarray) -> float:
    """The length on the surface of one unit of texture."""
    a, b = texcoords[:, 1] - texcoords[:, 0], texcoords[:, 2] - texcoords[:, 0]
    on_texture = np.abs(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum()
    return float(np.sqrt(np.linalg.norm(_normals(corners), axis=1).sum() / max(on_texture, 1e-9)))


def _normals(corners: np.ndarray) -> np.ndarray:
    """Normals (F, 3) of triangles (F, 3, 3), twice as long as the area."""
    return np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-15)


def _add_quadrics(surface: Surface) -> None:
    """Planes of the faces, weighed by area, and lines of borders and seams, weighed by squared length."""
    places = surface.places
    corners = places[surface.wedges]
    area = np.linalg.norm(_normals(corners[..., :3]), axis=1) / 2
    one = _unit(corners[:, 1] - corners[:, 0])
    other = corners[:, 2] - corners[:, 0]
    other = _unit(other - (other * one).sum(axis=1, keepdims=True) * one)
    planes = area[:, None, None] / 3 * _quadric(np.stack([one, other], axis=1), corners[:, 0])
    for corner in range(3):
        np.add.at(surface.quadrics, surface.wedges[:, corner], planes)
        np.add.at(surface.area, surface.faces[:, corner], area / 3)
    start, end = _both_ways(surface.wedges)
    _, edge, faces = np.unique(start * np.int64(len(places)) + end, return_inverse=True, return_counts=True)
    outline = (faces[edge] == 1) & (surface.owner[start] < surface.owner[end])
    start, end = start[outline], end[outline]
    length = np.linalg.norm(places[start, :3] - places[end, :3], axis=1)[:, None, None]
    lines = OUTLINE * length**2 * _quadric(_unit(places[end] - places[start])[:, None], places[start])
    np.add.at(surface.quadrics, start, lines)
    np.add.at(surface.quadrics, end, lines)


def _quadric(basis: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """Squared distance to flats with an orthonormal basis (K, d, n) through origin (K, n), as (K, n + 1, n + 1)."""
    size = origin.shape[1]
    across = np.eye(size) - np.einsum("kdi,kdj->kij", basis, basis)
    offset = -np.einsum("kij,kj->ki", across, origin)
    full = np.empty((len(origin), size + 1, size + 1))
    full[:, :size, :size] = across
    full[:, :size, size] = full[:, size, :size] = offset
    full[:, size, size] = -(offset * origin).sum(axis=1)
    return full


def _both_ways(faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Starts and ends (6F,) of the edges of each face, in both directions."""
    return faces[:, [0, 1, 2, 1, 2, 0]].reshape(-1), faces[:, [1, 2, 0, 0, 1, 2]].reshape(-1)


def _drop_degenerate(surface: Surface) -> None:
    full = (surface.faces != np.roll(surface.faces, 1, axis=1)).all(axis=1)
    surface.faces, surface.wedges = surface.faces[full], surface.wedges[full]


def _collapse(surface: Surface, tolerance: float) -> int:
    """One round: collapse edges that cost less than `tolerance` (m) and do not touch; returns how many."""
    edges = _edges(surface, tolerance)
    best = _choose(surface, edges, tolerance)
    vertices = np.flatnonzero(best >= 0)
    order = np.full(len(best), len(best))
    order[vertices[np.argsort(edges.cost[best[vertices]], kind="stable")]] = np.arange(len(vertices))
    rival = np.full(len(best), len(best))
    np.minimum.at(rival, edges.start, order[edges.end])
    vertices = vertices[order[vertices] < rival[vertices]]
    chosen = np.zeros(len(edges.start), dtype=bool)
    chosen[best[vertices]] = True
    moves = chosen[edges.edge]
    before, after, end = edges.before[moves], edges.after[moves], edges.end[best[vertices]]
    np.add.at(surface.quadrics, after, surface.quadrics[before])
    np.add.at(surface.area, end, surface.area[vertices])
    vertex_map, wedge_map = np.arange(len(surface.points)), np.arange(len(surface.places))
    vertex_map[vertices], wedge_map[before] = end, after
    surface.faces, surface.wedges = vertex_map[surface.faces], wedge_map[surface.wedges]
    surface.moved_to = vertex_map[surface.moved_to]
    _drop_degenerate(surface)
    return len(vertices)


def _edges(surface: Surface, tolerance: float) -> Edges:
    """All edges. Topology forbids some, unless they are so short that nobody would see what breaks."""
    vertices, wedges = len(surface.points), np.int64(len(surface.places))
    start, end = _both_ways(surface.faces)
    before, after = _both_ways(surface.wedges)
    key, edge, faces = np.unique(start * np.int64(vertices) + end, return_inverse=True, return_counts=True)
    start, end = key // vertices, key % vertices
    _, pair = np.unique(before * wedges + after, return_index=True)
    edge, before, after = edge[pair], before[pair], after[pair]
    # Each wedge of start must become one wedge of end: along a seam both sides do, across it none can.
    goes = np.bincount(edge, minlength=len(key))
    _, distinct = np.unique(edge * wedges + before, return_index=True)
    has = np.bincount(surface.owner[np.unique(surface.wedges)], minlength=vertices)[start]
    whole = (goes == has) & (np.bincount(edge[distinct], minlength=len(key)) == has)
    border, crowded = np.zeros(vertices, dtype=bool), np.zeros(vertices, dtype=bool)
    border[start[faces == 1]], crowded[start[faces > 2]] = True, True
    adjacent = csr_matrix((np.ones(len(key), dtype=np.int32), (start, end)), shape=(vertices, vertices))
    shared = np.asarray((adjacent @ adjacent)[start, end]).reshape(-1)  # neighbours of both ends
    manifold = ~crowded[start] & (shared == faces) & (~border[start] | (faces == 1))
    length = ((surface.points[start] - surface.points[end]) ** 2).sum(axis=1)
    target = np.hstack([surface.places[after], np.ones((len(after), 1))])
    error = np.einsum("pi,pij,pj->p", target, surface.quadrics[before], target)
    cost = np.maximum(np.bincount(edge, weights=error, minlength=len(key)), 0) / surface.area[start]
    allowed = whole & (manifold | (length < tolerance**2)) & (cost < tolerance**2)
    return Edges(start, end, allowed, cost + 1e-6 * length, edge, before, after)


def _choose(surface: Surface, edges: Edges, tolerance: float) -> np.ndarray:
    """For each vertex its cheapest edge that turns no visible face over, or -1 (V,)."""
    vertices, faces = len(surface.points), surface.faces
    corners = np.argsort(faces.reshape(-1), kind="stable")
    valence = np.bincount(faces.reshape(-1), minlength=vertices)
    first_corner = np.cumsum(valence) - valence
    normals = _normals(surface.points[faces])
    cheapest = np.lexsort((edges.cost, edges.start))
    best, open_edges = np.full(vertices, -1), edges.allowed.copy()
    for _ in range(TRIES):
        listed = cheapest[open_edges[cheapest]]
        vertex, first = np.unique(edges.start[listed], return_index=True)
        edge = listed[first]
        which, within = _ranges(valence[vertex])
        face = corners[first_corner[vertex][which] + within] // 3
        stays = (faces[face] != edges.end[edge][which][:, None]).all(axis=1)
        which, face = which[stays], face[stays]
        moved = np.where(faces[face] == vertex[which][:, None], edges.end[edge][which][:, None], faces[face])
        new = _normals(surface.points[moved])
        size = np.linalg.norm(new, axis=1)
        turned = (new * normals[face]).sum(axis=1) <= FLIP * size * np.linalg.norm(normals[face], axis=1)
        bad = np.bincount(which[turned & (size > tolerance**2)], minlength=len(edge)) > 0
        best[vertex[~bad]] = edge[~bad]
        open_edges[edge[bad]] = False
        open_edges &= best[edges.start] < 0
    return best


def _ranges(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For rows repeated `counts` times: which row each is, and its number within the row."""
    which = np.repeat(np.arange(len(counts)), counts)
    return which, np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)


def _settle(surface: Surface, most: float) -> np.ndarray:
    """Move each vertex, texture fixed, to where it is nearest to its planes, `most` metres at most."""
    wedges, vertices = np.unique(surface.wedges), np.unique(surface.faces)
    quadrics, places, owner = surface.quadrics[wedges], surface.places[wedges], surface.owner[wedges]
    matrix, pull = np.zeros((len(surface.points), 3, 3)), np.zeros((len(surface.points), 3))
    np.add.at(matrix, owner, quadrics[:, :3, :3])
    np.add.at(pull, owner, -np.einsum("wij,wj->wi", quadrics[:, :3, :-1], places) - quadrics[:, :3, -1])
    stiff = 0.03 * np.trace(matrix[vertices], axis1=1, axis2=2)[:, None, None] + 1e-18
    step = np.linalg.solve(matrix[vertices] + stiff * np.eye(3), pull[vertices][..., None])[..., 0]
    length = np.linalg.norm(step, axis=1, keepdims=True)
    points = surface.points.copy()
    points[vertices] += step * np.minimum(1, most / np.maximum(length, 1e-15))
    return points


def _dress(mesh: Mesh, surface: Surface, corners: np.ndarray, points: np.ndarray, texcoords: np.ndarray) -> Mesh:
    """Give the collapsed surface its normals: at a corner, the mean of those original normals that it replaces.

    `corners` (F, 3) are the original faces. Normals beyond a crease are left out.
    """
    weight = np.repeat(np.linalg.norm(_normals(surface.points[corners]), axis=1), 3) + 1e-15
    original = mesh.normals[mesh.face_normals].reshape(-1, 3).astype(np.float64)
    cluster = surface.moved_to[corners.reshape(-1)]
    order, size = np.argsort(cluster, kind="stable"), np.bincount(cluster, minlength=len(points))
    vertex, face = surface.faces.reshape(-1), np.repeat(_unit(_normals(points[surface.faces])), 3, axis=0)
    which, within = _ranges(size[vertex])
    source = order[(np.cumsum(size) - size)[vertex][which] + within]
    agrees = (original[source] * face[which]).sum(axis=1) > CREASE
    alone = np.bincount(which, weights=agrees, minlength=len(vertex)) == 0  # a sliver that lies askew
    weight = weight[source] * (agrees | alone[which])
    mean = [np.bincount(which, weights=weight * original[source, k], minlength=len(vertex)) for k in range(3)]
    normals = _unit(np.stack(mean, axis=1))
    normals = np.where(normals.any(axis=1, keepdims=True), normals, face)
    shape = surface.faces.shape
    kept, faces = np.unique(surface.faces, return_inverse=True)
    # Rounded, so that corners can share a vertex: what is equal is shaded once.
    normal_rows, face_normals = np.unique(np.round(normals * 127), axis=0, return_inverse=True)
    texcoord_rows, face_texcoords = np.unique(texcoords[surface.wedges.reshape(-1)], axis=0, return_inverse=True)
    if not texcoords.shape[1]:
        texcoord_rows, face_texcoords = mesh.texcoords[:1], np.zeros(shape)
    return Mesh(
        points[kept].astype(np.float32),
        faces.reshape(shape).astype(np.int32),
        (normal_rows / 127).astype(np.float32),
        face_normals.reshape(shape).astype(np.int32),
        texcoord_rows.astype(np.float32),
        face_texcoords.reshape(shape).astype(np.int32),
    )
