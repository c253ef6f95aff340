"""Scenes of our own: what they hold, against LIBERO's files and the simulator."""

import os
import re
from collections import Counter

import numpy as np
import pytest

from apprentice.nano.scenes.catalogue import HELD_OUT, NAMES, SIZE, problems
from apprentice.nano.scenes.own_scenes import (
    OBJECTS,
    SHOWN,
    bddl,
    contents,
    forbidden,
    kept_for_tests,
    own_scenes,
    room_of,
)

SCENES = own_scenes(60)


def test_any_object_comes_into_any_room():
    rooms, held = Counter(map(room_of, SCENES)), Counter[str]()
    for scene in SCENES:
        inside = dict(contents(bddl(scene).read_text()))
        assert inside.pop(f"{room_of(scene).lower()}_table") == 1
        assert inside.keys() <= NAMES.keys()
        fixtures = inside.keys() & {"wooden_cabinet", "white_cabinet", "flat_stove", "microwave", "wine_rack",
                                    "wooden_two_layer_shelf", "desk_caddy"}  # fmt: skip
        assert len(fixtures) <= 2  # LIBERO-Goal's scene has three
        assert sum(inside.values()) - len(fixtures) == OBJECTS
        held.update(inside.keys())
    assert len(rooms) == 3 and held.keys() == NAMES.keys()


def test_a_tenth_of_the_scenes_is_kept_for_tests():
    assert [n for n, scene in enumerate(SCENES) if kept_for_tests(scene)] == list(range(0, 60, 10))
    assert not any(kept_for_tests(scene) for scene in problems())


def test_forbidden_are_the_contents_of_libero_10():
    text = problems()["KITCHEN_SCENE8"].read_text()
    assert contents(text) == (("flat_stove", 1), ("kitchen_table", 1), ("moka_pot", 2))
    assert len(forbidden()) == len(HELD_OUT) and contents(text) in forbidden()
    assert contents(problems()["KITCHEN_SCENE1"].read_text()) not in forbidden()


@pytest.fixture(scope="module")
def scene():
    os.environ.setdefault("MUJOCO_GL", "egl")
    os.environ.setdefault("PYOPENGL_PLATFORM", "egl")
    from apprentice.nano.scenes.scene_model import SceneModel

    name = next(s for s in SCENES if len(contents(bddl(s).read_text())) == OBJECTS - 2 + 2)  # one fixture
    made = SceneModel(name, 0)
    yield made
    made.close()


def test_drawn_layouts_agree_with_the_simulator(scene):
    """Centres lie on what is seen of the thing where it is not covered; objects stand on the table or their support;
    what is not shown is in no picture; colour, depth and geoms are those of MuJoCo's own renderer."""
    from apprentice.nano.scenes.labels import CAMERAS, project, render_labelled
    from apprentice.nano.scenes.layout import draw

    rng, inside, standing = np.random.default_rng(0), [], 0
    for _ in range(12):
        draw(scene, rng)
        found = render_labelled(scene)
        shown = [thing for thing in found["facts"]["things"] if "of" not in thing]
        assert SHOWN[0] <= sum(thing["movable"] for thing in shown) <= SHOWN[1]
        for thing in shown:
            body = scene.data.xpos[scene.all[thing["id"]].body]
            assert np.linalg.norm(body - thing["position"]) < 0.25
            if thing["movable"] and not thing["held"] and not thing["parent"]:
                low = body[2] + scene.all[thing["id"]].low[2]
                assert low == pytest.approx(found["facts"]["table"], abs=2e-3)
                standing += 1
            for camera, centre, pixel, seen in zip(CAMERAS, thing["centre"], thing["px"], thing["seen"], strict=True):
                assert centre == project(scene, np.array(thing["position"]), camera) or centre is not None
                if seen >= 60 and thing["movable"]:
                    x, y, metres = centre
                    inside.append(np.hypot(x - pixel[0] - 0.5, y - pixel[1] - 0.5) / np.sqrt(seen))
                    assert 0 < metres < 3 and 0 <= min(pixel) <= max(pixel) < SIZE
    assert standing > 20 and len(inside) > 20
    assert np.median(inside) < 0.25 and np.mean(np.array(inside) < 1) > 0.85  # in sides of a square of its size


def test_a_point_projects_to_where_a_sphere_there_is_drawn(scene):
    """Geometry against MuJoCo: the hand's body is drawn around the pixel that its geoms' places project to."""
    from apprentice.nano.scenes.labels import CAMERAS, project
    from apprentice.nano.scenes.layout import draw

    rng, off = np.random.default_rng(3), []
    for _ in range(8):
        draw(scene, rng)
        _, depth, geoms = scene.renderers[CAMERAS[0]].draw_all(scene.data, CAMERAS[0])
        for geom in np.unique(geoms[geoms >= 0]):
            rows, columns = np.nonzero(geoms == geom)
            touching = min(rows.min(), columns.min()) == 0 or max(rows.max(), columns.max()) == SIZE - 1
            if len(rows) < 40 or touching or scene.model.geom_rbound[geom] > 0.06:
                continue
            x, y, metres = project(scene, scene.data.geom_xpos[geom], CAMERAS[0])
            off.append(np.hypot(columns.mean() + 0.5 - x, rows.mean() + 0.5 - y) / np.sqrt(len(rows)))
            assert depth[rows, columns].min() < metres + 0.06
    assert len(off) > 8 and np.median(off) < 0.3


def test_names_of_scenes_are_safe_for_shards():
    assert all(re.fullmatch(r"[A-Z_]+_OWN\d{3}", scene) for scene in SCENES) and len(set(SCENES)) == 60
