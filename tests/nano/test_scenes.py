"""Drawn scenes and the questions about them, against the simulator."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from apprentice.nano.questions import SEEN, Asker
from apprentice.nano.scenes.catalogue import HELD_OUT, SUITE, problems, scene_of
from apprentice.nano.scenes.dataset import UNSEEN_LAYOUTS, load, write_scene
from apprentice.nano.scenes.shards import ShardedRows, mapped

SCENE, SEED, LAYOUTS, MORE = "KITCHEN_SCENE1", 5, 3, 20


def bddl(suite: str) -> list[Path]:
    return sorted((next(iter(problems().values())).parent.parent / suite).glob("*.bddl"))


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A shard, drawn for real."""
    os.environ.setdefault("MUJOCO_GL", "egl")
    os.environ.setdefault("PYOPENGL_PLATFORM", "egl")
    folder = tmp_path_factory.mktemp("scenes")
    assert write_scene((str(folder), SCENE, [0], LAYOUTS, SEED)) == LAYOUTS
    return folder


@pytest.fixture(scope="module")
def labelled(stored):
    """The layouts of that shard drawn again, and more: what was seen, and the simulator's poses at that moment."""
    from apprentice.nano.scenes.labels import render_labelled
    from apprentice.nano.scenes.layout import draw
    from apprentice.nano.scenes.scene_model import SceneModel

    stage = SceneModel(SCENE, SEED)
    renderer = stage.mj.Renderer(stage.model, 128, 128)
    renderer.enable_segmentation_rendering()
    rng = np.random.default_rng([SEED, 0])
    seen = []
    while len(seen) < LAYOUTS + MORE:
        try:
            draw(stage, rng)
        except RuntimeError:
            continue
        found = render_labelled(stage)
        m, d = stage.model, stage.data
        masks = segment(stage, renderer)
        poses = {name: d.xpos[body].copy() for name, body in stage.control.env.obj_body_id.items()}
        joints = {m.joint(j).name: float(d.qpos[m.jnt_qposadr[j]]) for j in range(m.njnt)}
        seen.append((found, masks, poses, d.site("gripper0_grip_site").xpos.copy(), joints))
    renderer.close()
    stage.close()
    return seen


def segment(stage, renderer) -> dict[str, list[np.ndarray]]:
    """Where the two images (128, 128) show each object or fixture, as MuJoCo's own renderer has it."""
    m, shown, option = stage.model, [], stage.mj.MjvOption()
    option.geomgroup[0] = 0  # collision geometry
    for camera in ("agentview", "robot0_eye_in_hand"):
        renderer.update_scene(stage.data, camera, option)
        geoms = renderer.render()[:, ::-1, 0]  # LeRobot's pictures are mirrored
        shown.append(np.where(geoms >= 0, m.body_rootid[m.geom_bodyid[geoms]], -1))
    roots = {name: m.body_rootid[body] for name, body in stage.control.env.obj_body_id.items()}
    assert len(set(roots.values())) == len(roots)  # each is a tree of bodies of its own
    return {name: [picture == root for picture in shown] for name, root in roots.items()}


def test_a_shard_is_a_pure_function_of_its_seed(stored, labelled):
    data = load(stored, "layouts")
    assert len(data["facts"]) == LAYOUTS
    for n, (found, *_) in enumerate(labelled[:LAYOUTS]):
        assert found["facts"] == data["facts"][n]
        for key in ("images", "category", "depth"):
            assert np.array_equal(found[key], data[key][n])


def test_what_is_written_is_kept(stored):
    path = next(stored.glob("*.npz"))
    before = path.stat().st_mtime_ns
    write_scene((str(stored), SCENE, [0], LAYOUTS, SEED + 1))
    assert path.stat().st_mtime_ns == before


def test_pointed_pixels_lie_on_the_object(labelled):
    pointed = exact = 0
    for found, masks, *_ in labelled:
        asker = Asker(found["facts"], np.random.default_rng(0))
        ids = {name: key for key, name in asker.names.items()}
        for kind, camera in (("point", 0), ("point_wrist", 1)):
            for _ in range(12):
                question = asker.draw(kind)
                name = question and re.match(r"point to the (.*?)( in the second image)?$", question.ask)[1]
                if question is None or name not in ids:
                    continue
                mask = masks[ids[name]][camera]
                pixel = [int(value) for value in re.findall(r"<loc(\d+)>", question.answer)]
                if pixel:
                    x, y = pixel
                    assert mask[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].any()  # our meshes are lighter ones
                    exact += bool(mask[y, x])
                    pointed += 1
                else:
                    assert mask.sum() < SEEN
    assert pointed > 150 and exact > 0.98 * pointed


def test_positions_project_to_where_the_object_is_seen(labelled):
    """The way from truth in metres to pixels agrees with the rendered pictures, mirrored as LeRobot's are."""
    errors = []
    for found, masks, _, grip, _ in labelled:
        pixel = found["facts"]["gripper"]["px"][0]
        height = found["facts"]["gripper"]["height"]
        assert height == pytest.approx(grip[2] - found["facts"]["table"], abs=1e-3)
        assert pixel is None or 0 <= min(pixel) <= max(pixel) < 128
        for thing in found["facts"]["things"]:
            if thing.get("held") and pixel and thing["seen"][0] >= SEEN:
                rows, columns = np.nonzero(masks[thing["id"]][0])
                errors.append(np.hypot(np.mean(columns) - pixel[0], np.mean(rows) - pixel[1]))
    assert errors and np.median(errors) < 15  # px; the middle of what it holds, most of it below the gripper


def test_distances_lead_from_the_gripper_to_the_object(labelled):
    for found, _, poses, grip, _ in labelled:
        asker = Asker(found["facts"], np.random.default_rng(0))
        ids = {name: key for key, name in asker.names.items()}
        for _ in range(8):
            question = asker.draw("offset")
            if question is None:
                continue
            name = re.match(r"how far is the (.*)\?", question.ask)[1]
            way = np.array([int(value) for value in re.findall(r"<cm([+-]\d+)>", question.answer)]) / 100
            if np.abs(way).max() < 0.63:  # the end of the scale
                far = np.abs(grip + way - poses[ids[name]])
                assert far[:2].max() < (0.16 if name == "cabinet" else 0.06) and far[2] < 0.25


def test_relations_agree_with_poses(labelled):
    asked = {"left": 0, "right": 0, "front": 0, "behind": 0}
    for found, _, poses, _, _ in labelled:
        asker = Asker(found["facts"], np.random.default_rng(0))
        ids = {name: key for key, name in asker.names.items()}
        for kind, axis in (("side", 1), ("depth", 0)):
            for _ in range(8):
                question = asker.draw(kind)
                if question is None:
                    continue
                pattern = r"is the (.*) (?:left or right of|in front of or behind) the (.*)\?"
                first, second = (poses[ids[name]][axis] for name in re.match(pattern, question.ask).groups())
                # LIBERO's: left is smaller y, the front is larger x; a cabinet's origin is not its middle
                if abs(first - second) > 0.05:
                    assert question.answer == (("right", "left") if axis else ("front", "behind"))[int(first < second)]
                    asked[question.answer] += 1
    assert min(asked.values()) > 10


def test_places_drawers_and_grasps_agree_with_the_simulator(labelled):
    held = stacked = 0
    for found, _, poses, grip, joints in labelled:
        for thing in found["facts"]["things"]:
            if "of" in thing:
                joint = next(value for name, value in joints.items() if name.startswith(thing["id"].split("_cab")[0])
                             and thing["name"].split()[0] in name)  # fmt: skip
                assert (abs(joint) > 0.03) == (thing["open"] > 0.2)
            elif thing["held"]:
                assert np.linalg.norm(np.subtract(thing["position"], grip)) < 0.12
                held += 1
            elif thing["parent"]:
                gap = poses[thing["id"]] - poses[thing["parent"]]
                reach = {"on": 0.25, "in": 0.4}[thing["relation"]]  # m; a drawer may stand open
                assert np.abs(gap[:2]).max() < reach and (thing["relation"] == "in" or gap[2] > 0)
                stacked += 1
    assert held and stacked >= 5


def test_held_out_pictures_are_not_trained_on(fake_scenes, tmp_path):
    for scene in ("KITCHEN_SCENE1", "STUDY_SCENE2", *HELD_OUT):
        fake_scenes(tmp_path, scene, 30)
    (tmp_path / "KITCHEN_SCENE1-000.npz").rename(tmp_path / "KITCHEN_SCENE1-001.npz")
    parts = {part: load(tmp_path, part, ())["facts"] for part in ("train", "layouts", "scenes")}
    assert {f["scene"] for f in parts["scenes"]} == set(HELD_OUT)
    assert {f["scene"] for f in parts["train"]} == {"KITCHEN_SCENE1", "STUDY_SCENE2"}
    assert [len(parts[part]) for part in ("train", "layouts", "scenes")] == [45, UNSEEN_LAYOUTS, 270]
    stored = json.loads(np.load(tmp_path / "STUDY_SCENE2-000.npz")["facts"].tobytes())
    assert parts["layouts"] == stored[:UNSEEN_LAYOUTS]  # of shards numbered 0 alone
    assert parts["train"][:15] != stored[:UNSEEN_LAYOUTS]


def test_the_scenes_are_the_20_of_libero_90():
    assert len(problems()) == 20 and set(HELD_OUT) < set(problems())
    assert {path.parent.name for path in problems().values()} == {SUITE}


@pytest.mark.parametrize("suite", ["libero_spatial", "libero_object", "libero_goal"])
def test_no_scene_is_one_of_a_test_suite(suite):
    def contents(path: Path) -> tuple[str, ...]:
        text = path.read_text()
        found = [re.search(rf"\(:{part}\n?(.*?)\)", text, re.DOTALL) for part in ("fixtures", "objects")]
        return tuple(" ".join(sorted(match[1].split())) if match else "" for match in found)

    ours = {contents(path) for path in problems().values()}
    theirs = {contents(path) for path in bddl(suite)}
    assert len(bddl(suite)) == 10 and all(map(any, ours | theirs)) and not ours & theirs


def test_the_scenes_held_out_are_those_of_libero_10():
    assert {scene_of(path.name) for path in bddl("libero_10")} == set(HELD_OUT)


def test_rows_of_shards_are_those_of_the_arrays(tmp_path):
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, 256, (n, 3, 5), dtype=np.uint8) for n in (4, 1, 7)]
    for number, part in enumerate(parts):
        np.savez(tmp_path / f"{number}.npz", a=part, b=part[:, 0].astype(np.float16))
    for key, whole in (("a", np.concatenate(parts)), ("b", np.concatenate(parts)[:, 0].astype(np.float16))):
        rows = ShardedRows([mapped(tmp_path / f"{number}.npz", key) for number in range(3)])
        assert len(rows) == 12
        assert all(np.array_equal(rows[n], whole[n]) for n in range(12))
        assert np.array_equal(rows[3:9:2], whole[3:9:2])
        assert np.array_equal(rows[np.array([11, 0, 4])], whole[[11, 0, 4]])
        with pytest.raises(IndexError):
            rows[12]
