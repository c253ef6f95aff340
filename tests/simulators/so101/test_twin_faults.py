"""Each fault alone does what its name says, by a closed form; what is drawn depends on the seed alone."""

import mujoco
import numpy as np
import pytest

from apprentice.simulators.so101.simulator.env import HOME, OLDEST, TwinEnv
from apprentice.simulators.so101.simulator.faults import DRAWS, TICK, Faults, draw, kinds_of
from apprentice.simulators.so101.simulator.pictures import spoilt
from apprentice.simulators.so101.simulator.scene import SUBSTEPS, compiled
from apprentice.simulators.so101.suites import KINDS, REAL_KINDS, SUITES, VARIANTS
from apprentice.simulators.so101.units import CAMERAS

AHEAD = np.array([20.0, -65.0, 45.0, 85.0, -80.0, 30.0])  # in LeRobot's units


def begun(suite: str = "so101_twin_clean", task: int = 2, **faults: object) -> TwinEnv:
    env = TwinEnv(suite, task)
    env.reset(3, faults=Faults(**faults))  # type: ignore[arg-type]
    return env


def test_levels_have_their_kinds() -> None:
    assert set(DRAWS) == set(KINDS)
    assert kinds_of("so101_twin") == (REAL_KINDS, 1.0) and "joints" not in REAL_KINDS
    assert kinds_of("so101_twin_clean")[0] == ()
    assert kinds_of("so101_twin_shifted") == ((*REAL_KINDS, "joints"), 2.0)
    assert all(kinds_of(f"so101_twin_{kind}") == ((kind,), 1.0) for kind in KINDS)
    assert len(SUITES) == 1 + len(VARIANTS)


def test_faults_follow_from_the_seed_and_a_fault_alone_is_what_it_is_among_others() -> None:
    real = [draw("so101_twin", seed) for seed in range(24)]
    assert {each.delay for each in real} == {1, 2, 3} and {each.camera_delay for each in real} == {1, 2, 3, 4}
    assert {each.push is None for each in real} == {each.shove is None for each in real} == {True, False}
    assert all(each.size.min() >= 0.93 and each.size.max() <= 1.07 for each in real)
    for seed, each in enumerate(real[:4]):
        for kind in REAL_KINDS:
            alone = vars(draw(f"so101_twin_{kind}", seed))
            for name, value in alone.items():
                if not np.array_equal(value, vars(Faults())[name]):
                    np.testing.assert_array_equal(value, vars(each)[name])
    assert all((each.joints == 0).all() for each in real)
    shifted = [draw("so101_twin_shifted", seed) for seed in range(24)]
    assert {each.delay for each in shifted} == {2, 4, 6}
    assert all(0 < np.rad2deg(np.abs(each.joints)).max() <= 2 and each.camera_delay <= OLDEST for each in shifted)


def test_a_delay_shifts_commands_by_its_frames() -> None:
    at_once, late = begun(), begun(delay=3)
    moved = []
    for env in (at_once, late):
        states = [env.proprioception()]
        for _ in range(9):
            env.step(AHEAD)
            states.append(env.proprioception())
        moved.append(np.array(states))
    np.testing.assert_allclose(moved[1][3:, :5], moved[0][: len(moved[1]) - 3, :5], atol=0.02)
    assert np.abs(moved[1][:4, :5] - moved[1][0, :5]).max() < 0.02 < np.abs(moved[0][1, :5] - moved[0][0, :5]).max()


def test_a_camera_delay_shows_what_was_some_frames_ago() -> None:
    env, shown, qpos = begun(camera_delay=2), [], []
    for _ in range(5):
        env.step(AHEAD)
        shown.append(env.snapshot().qpos)
        qpos.append(env.data.qpos.copy())
    np.testing.assert_array_equal(shown[4], qpos[2])


def test_play_leaves_a_joint_within_its_dead_zone() -> None:
    play = np.deg2rad(0.5)
    env = begun(play=play)
    target = env.to_action(env.start) + np.array([3.0, 0, 0, 0, 3.0, 0])
    for _ in range(60):
        env.step(target)
    rest = target[:5] - env.proprioception()[:5]
    assert (np.abs(rest[[0, 4]]) < 0.6).all() and (np.abs(rest[[0, 4]]) > 0.2).all(), "on either side of the target"
    exact = begun()
    for _ in range(60):
        exact.step(target)
    assert np.abs(target[:5] - exact.proprioception()[:5]).max() < 0.3


def test_a_soft_servo_droops_by_torque_over_stiffness() -> None:
    env = begun(stiffness=np.full(6, 38.0))
    target = env.to_action(env.start)
    for _ in range(60):
        env.step(target)
    error = np.deg2rad(target[:5]) - env.data.qpos[:5]
    mujoco.mj_forward(env.model, env.data)
    torque = env.data.qfrc_bias[:5] - env.data.qfrc_constraint[:5]  # dry friction holds a part of gravity
    np.testing.assert_allclose(38.0 * error, torque, atol=0.01)
    height = env.data.site("gripperframe").xpos[2]
    stiff = begun()
    assert height < stiff.data.site("gripperframe").xpos[2] - 5e-4, "the hand hangs lower"


def test_an_encoder_reads_steps_with_noise() -> None:
    env = begun(encoder=1)
    values = []
    for _ in range(12):
        env.step(env.to_action(env.start))
        values.append(env.proprioception()[:5])
    ticks = np.array(values) / TICK
    np.testing.assert_allclose(ticks, np.round(ticks), atol=1e-3)
    off = np.array(values[-1]) - np.rad2deg(env.data.qpos[:5])
    assert np.abs(off).max() <= 1.5 * TICK + 1e-3 and len(np.unique(np.round(ticks), axis=0)) > 1


def test_joints_calibrated_otherwise_read_and_obey_alike() -> None:
    offset = np.append(np.deg2rad([2.0, -2.0, 1.0, -1.0, 2.0]), 0.0)
    env, true = begun(joints=offset), begun()
    np.testing.assert_allclose(env.proprioception()[:5], true.proprioception()[:5] - np.rad2deg(offset[:5]), atol=0.05)
    target = env.to_action(HOME)
    for _ in range(40):
        env.step(target)
    np.testing.assert_allclose(env.data.qpos[:5], HOME[:5], atol=0.005)
    np.testing.assert_allclose(env.proprioception()[:5], target[:5], atol=0.3)


def test_objects_have_their_size_mass_and_friction() -> None:
    usual = compiled(Faults())
    other = compiled(Faults(friction=0.5, mass=1.5, size=np.array([1.05, 0.95, 1.0, 1.07])))
    for name, scale in (("cup_red", 1.05), ("cup_blue", 1.05), ("block_red", 0.95), ("sponge", 1.07)):
        geom = usual.body(name).geomadr[0]
        np.testing.assert_allclose(other.geom_size[geom, 0], usual.geom_size[geom, 0] * scale, rtol=0.01)
        assert other.body(name).mass[0] == pytest.approx(1.5 * usual.body(name).mass[0])
        assert other.geom_friction[geom, 0] == pytest.approx(0.5 * usual.geom_friction[geom, 0])


def test_a_push_slides_the_object_before_it_is_touched() -> None:
    env = begun(push=0.7)
    place = env.data.body("block_red").xpos[:2].copy()
    assert env._escape.any()
    site = env.model.site("gripperframe").id
    env.data.site_xpos[site, :2] = place  # as if the hand were over it
    for frame in range(8):
        env._advance(env.to_action(env.start))
        if frame < 6:
            env.data.site_xpos[site, :2] = env.data.body("block_red").xpos[:2]
    assert np.linalg.norm(env.data.body("block_red").xpos[:2] - place) == pytest.approx(0.03, abs=0.004)
    assert env._pushes[0] == 0


def test_a_shove_pushes_the_hand_that_carries() -> None:
    env = begun(shove=0.0)
    env._height = -1.0  # as if the object were in the air
    env.goals.touched = lambda *_: True  # type: ignore[method-assign]
    forces = []
    for _ in range(6):
        env._advance(env.to_action(env.start))
        forces.append(env.data.xfrc_applied[env._hand].copy())
    assert [force[0] for force in forces] == [3, 3, 3, 0, 0, 0] and np.abs(np.array(forces)[:, 1:]).max() < 1e-12


def test_pictures_are_spoilt_as_told() -> None:
    image = np.full((96, 128, 3), 100, np.uint8)
    rng = np.random.default_rng(0)
    assert (spoilt(image, Faults(), rng) == image).all()
    assert (spoilt(image, Faults(gain=np.array([1.1, 1.0, 0.9])), rng)[0, 0] == [110, 100, 90]).all()
    noisy = spoilt(image, Faults(noise=5.0), rng).astype(float)
    assert noisy.std() == pytest.approx(5 * np.sqrt(1.25), rel=0.05)
    edge = image.copy()
    edge[:, 64:] = 200
    soft = spoilt(edge, Faults(blur=1.0), rng)
    assert 110 < soft[48, 63, 0] < 190 and (spoilt(soft, Faults(quality=60), rng) != soft).any()


def test_lamp_camera_and_distractors_change_the_picture_but_not_the_physics() -> None:
    seen = {}
    for kind in ("clean", "light", "camera", "distractors"):
        env = TwinEnv(f"so101_twin_{kind}", 2)
        env.reset(1)
        for _ in range(2):
            env.step(AHEAD)
        seen[kind] = (env.observe(), env.data.qpos.copy(), env.faults)
        env.close()
    for kind in ("light", "camera"):
        assert np.abs(seen[kind][0][CAMERAS[0]].astype(float) - seen["clean"][0][CAMERAS[0]]).mean() > 0.5
        np.testing.assert_array_equal(seen[kind][1], seen["clean"][1])
    places = [draw("so101_twin_distractors", seed).distractors for seed in range(30)]
    assert set(places) == {0, 1, 2}
    assert SUBSTEPS == 10
