"""Rebuild src/apprentice/simulators/so101/simulator/arm: the SO-101 of MuJoCo Menagerie with lighter meshes.

    pip download --no-deps so101-nexus==0.10.0 --dest /tmp/so101
    python -m zipfile -e /tmp/so101/so101_nexus-0.10.0-py3-none-any.whl /tmp/so101
    pip install scipy
    python scripts/so101_arm.py /tmp/so101/so101_nexus/assets/SO101_menagerie

Nobody has to: the arm travels with us. Meshes that are there already are kept; --out writes into another folder. Visual
meshes move by at most about TOLERANCE; a colliding mesh becomes the convex hull that MuJoCo makes of it anyway.
"""

import argparse
import re
import shutil
from pathlib import Path

import mujoco
import numpy as np

from apprentice.simulators.simplify import Mesh, decimate

TOLERANCE = 0.0006  # m, root mean square: a fifth of a pixel of the front camera at 128 px wide
OUT = Path(__file__).parents[1] / "src/apprentice/simulators/so101/simulator/arm"
STL = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
UNUSED = "moving_jaw_so101_gripper_v1"  # listed among the meshes, worn by nothing


def read(file: Path) -> np.ndarray:
    """The triangles (F, 3, 3) m of a binary STL file."""
    return np.frombuffer(file.read_bytes()[84:], STL)["corners"]


def write(file: Path, triangles: np.ndarray) -> None:
    """A binary STL file of triangles (F, 3, 3) m."""
    faces = np.zeros(len(triangles), STL)
    faces["corners"] = triangles
    normals = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    faces["normal"] = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-15)
    file.write_bytes(b"\0" * 80 + np.uint32(len(faces)).tobytes() + faces.tobytes())


def lighter(triangles: np.ndarray) -> np.ndarray:
    """Fewer triangles (G, 3, 3) that look the same."""
    corners = triangles.reshape(-1, 3).astype(np.float64)
    normals = np.repeat(np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]), 3, axis=0)
    index = np.arange(len(corners)).reshape(-1, 3)
    nothing, none = np.zeros((0, 2)), np.zeros((len(triangles), 3), int)
    found = decimate(Mesh(corners, index, normals, index, nothing, none), TOLERANCE, textured=False)
    return found.vertices[found.faces].astype(np.float32)


def hull(file: Path) -> np.ndarray:
    """The triangles (F, 3, 3) of the hull that MuJoCo makes of a mesh, where the file has it."""
    spec = mujoco.MjSpec()
    spec.add_mesh(name="mesh", file=str(file), maxhullvert=64)
    spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_MESH, meshname="mesh")
    model = spec.compile()
    vertices, faces = (int(count) for count in model.mesh_graph[:2])
    listed = model.mesh_graph[2 + 3 * vertices + 3 * faces :][: 3 * faces].reshape(-1, 3)
    turn = np.zeros(9)
    mujoco.mju_quat2Mat(turn, model.mesh_quat[0])
    points = model.mesh_vert[listed].astype(np.float64)
    return (points @ turn.reshape(3, 3).T + model.mesh_pos[0]).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder SO101_menagerie of the wheel so101-nexus 0.10.0")
    parser.add_argument("--out", type=Path, default=OUT, help=f"folder to write (default: {OUT})")
    options = parser.parse_args()
    source, out = options.source, options.out
    if missing := [
        name for name in ("so101.xml", "LICENSE", "PROVENANCE.md", "assets") if not (source / name).exists()
    ]:
        parser.error(
            f"expected the folder SO101_menagerie of the wheel so101-nexus 0.10.0, found no {', '.join(missing)} in "
            f"{source}; fix: the commands above (--help)"
        )
    text = (source / "so101.xml").read_text()
    out.mkdir(parents=True, exist_ok=True)
    for name in re.findall(r'file="(\w+)\.stl"', text):
        if name == UNUSED or (out / f"{name}.stl").exists():
            continue
        file = source / "assets" / f"{name}.stl"
        solid = bool(re.search(rf'class="collision_gripper_mesh"[^>]*mesh="{name}"', text))
        new = hull(file) if solid else lighter(read(file))
        write(out / f"{name}.stl", new)
        print(f"{name}: {len(new)} triangles", flush=True)
    text = text.replace('meshdir="assets" ', "").replace(f'    <mesh file="{UNUSED}.stl"/>\n', "")
    (out / "so101.xml").write_text(text)
    shutil.copy(source / "LICENSE", out / "LICENSE")
    provenance = (source / "PROVENANCE.md").read_text()
    provenance += (
        "\n## Further modifications, in Apprentice\n\nTaken from the wheel so101-nexus 0.10.0 (Apache-2.0). "
        "`scripts/so101_arm.py` simplified the visual\nmeshes, replaced the colliding ones by their convex hulls and "
        f"left out `{UNUSED}`.\n"
    )
    (out / "PROVENANCE.md").write_text(provenance)


if __name__ == "__main__":
    main()
