"""The same seed gives the same episode; states are restored and resumed to the bit; units are LeRobot's."""

import mujoco
import numpy as np
import pytest
import torch
from lerobot.motors import Motor, MotorCalibration, MotorNormMode
from lerobot.motors.feetech import FeetechMotorsBus

from apprentice.data.noise import state_noise
from apprentice.simulators.base import simulator_of, suites_with, variant_of
from apprentice.simulators.so101.interface import TWIN
from apprentice.simulators.so101.simulator.env import TwinEnv
from apprentice.simulators.so101.simulator.faults import Faults
from apprentice.simulators.so101.simulator.layout import (
    FARTHEST,
    GAP,
    LEFT,
    NEAREST,
    RADIUS,
    RIGHT,
    draw,
    free,
    inside,
    shifted,
)
from apprentice.simulators.so101.simulator.scene import (
    BLOCK_HALF,
    FRONT_AIM,
    FRONT_CAMERA,
    FRONT_FOV,
    compiled,
    looking,
    polar,
)
from apprentice.simulators.so101.suites import INSTRUCTIONS, JOINTS
from apprentice.simulators.so101.units import CAMERAS, CLOSED, OPEN, to_lerobot, to_radians


def wandering(steps: int) -> np.ndarray:
    """Smooth targets (steps, 6) in LeRobot's units."""
    at = np.linspace(0, 1, steps)[:, None]
    return np.array([0.0, -80, 55, 85, -90, 20]) + at * np.array([25.0, 20, -10, -5, 20, 40])


def test_its_suites_are_known() -> None:
    assert simulator_of("so101_twin") is TWIN and simulator_of("so101_twin_shifted") is TWIN
    assert variant_of("so101_twin_droop") == ("so101_twin", "droop") and variant_of("so101_twin") == ("so101_twin", "")
    assert next(suites_with({INSTRUCTIONS[0], INSTRUCTIONS[4]})) == ("so101_twin", [0, 4])
    assert all(len(TWIN.paraphrases(said)) >= 2 for said in INSTRUCTIONS)
    assert not {other for said in INSTRUCTIONS for other in TWIN.paraphrases(said)} & set(INSTRUCTIONS)


def test_layouts_have_room_and_do_not_tell_the_task() -> None:
    for seed in range(30):
        layout = draw(seed, 2)
        assert set(layout.places) == set(RADIUS) and 0.04 <= layout.drawer <= 0.085 and len(layout.extras) == 2
        assert all(inside(place) and free(name, place, layout.places, GAP) for name, place in layout.places.items())
        assert all(shifted(name, layout.places, seed) is not None for name in ("cup_red", "block_red", "sponge"))
    same = [TwinEnv("so101_twin_clean", task) for task in (0, 4)]
    for env in same:
        env.reset(5)
    np.testing.assert_array_equal(same[0].data.qpos, same[1].data.qpos)


def test_nothing_is_done_at_the_start_and_objects_rest(clean: TwinEnv) -> None:
    for seed in range(3):
        clean.reset(seed)
        assert not any(clean.success_of(task) for task in range(5))
        before = clean.data.qpos[7:].copy()
        for _ in range(10):
            clean.step(clean.to_action(clean.start))
        assert np.abs(clean.data.qpos[7:] - before).max() < 2e-3


def test_an_episode_follows_from_its_seed_and_is_restored_and_resumed_to_the_bit() -> None:
    runs = []
    for task in (2, 2):
        env = TwinEnv("so101_twin", task)
        env.reset(11)
        frames = []
        for number, action in enumerate(wandering(14)):
            if number == 6:
                captured = env.capture()
            env.step(action)
            frames.append((env.proprioception(), env.snapshot()))
        runs.append((frames, env.observe()))
    for (one, first), (two, second) in zip(runs[0][0], runs[1][0], strict=True):
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(first.qpos, second.qpos)
    for key, image in runs[0][1].items():
        np.testing.assert_array_equal(image, runs[1][1][key])
    env.reset(12)
    env.resume(captured)
    for action, (state, _) in zip(wandering(14)[6:], runs[0][0][6:], strict=True):
        env.step(action)
        np.testing.assert_array_equal(env.proprioception(), state)
    again = env.observe()
    env.reset(12)
    env.restore(runs[0][0][-1][1])
    for key, image in env.observe().items():
        np.testing.assert_array_equal(image, again[key])
    env.close()


def test_units_are_those_of_lerobots_calibration() -> None:
    """Ticks of a bus that was calibrated over each joint's range, as LeRobot makes degrees and 0 to 100 of them."""
    model = compiled(Faults())
    motors = {name: Motor(n + 1, "sts3215", MotorNormMode.DEGREES) for n, name in enumerate(JOINTS)}
    motors["gripper"] = Motor(6, "sts3215", MotorNormMode.RANGE_0_100)
    span = {name: (CLOSED, OPEN) if name == "gripper" else (-1.6, 1.6) for name in JOINTS}
    per_radian = 4095 / (2 * np.pi)
    ticks = {name: tuple(round(2048 + r * per_radian) for r in span[name]) for name in JOINTS}
    calibration = {n: MotorCalibration(motors[n].id, 0, 0, *ticks[n]) for n in JOINTS}
    bus = object.__new__(FeetechMotorsBus)  # its making wants a driver, its arithmetic does not
    bus.motors, bus.calibration = motors, calibration
    bus._id_to_name_dict = {motor.id: name for name, motor in motors.items()}
    bus._id_to_model_dict = {motor.id: motor.model for motor in motors.values()}
    joints = np.array([0.5, -1.2, 0.9, 0.3, -0.7, 0.6])
    read = bus._normalize({motors[n].id: round(2048 + q * per_radian) for n, q in zip(JOINTS, joints, strict=True)})
    np.testing.assert_allclose([read[n + 1] for n in range(6)], to_lerobot(joints), atol=0.1)
    np.testing.assert_allclose(to_radians(to_lerobot(joints)), joints, atol=1e-9)
    np.testing.assert_allclose(model.jnt_range[5], [CLOSED, OPEN], atol=1e-5)
    noise = state_noise(TWIN.contract("so101_twin", 128, "fast").state, torch.full((6,), 30.0), 1.0, 0.01)
    np.testing.assert_allclose(noise, [np.rad2deg(0.01) / 30] * 5 + [0], rtol=1e-5)


def test_joints_stop_at_their_limits(clean: TwinEnv) -> None:
    clean.reset(0)
    for _ in range(30):
        clean.step(np.array([400.0, -90, 60, 80, -90, 150]))
    assert clean.data.qpos[0] <= clean.model.jnt_range[0, 1] + 0.02
    assert clean.proprioception()[5] <= 101


def test_a_block_is_ten_pixels_wide_everywhere(clean: TwinEnv) -> None:
    """By projection: the width of a 3 cm block seen along the camera's axis, at the corners of where objects lie."""
    turn = np.zeros(9)
    mujoco.mju_quat2Mat(turn, looking(FRONT_CAMERA, FRONT_AIM))
    axes = turn.reshape(3, 3)
    for distance in (NEAREST, 0.2, FARTHEST):
        for angle in np.linspace(RIGHT, LEFT, 5):
            place = np.append(polar(distance, angle), BLOCK_HALF)
            right, up, back = (place - FRONT_CAMERA) @ axes
            pixels = 96 / (2 * np.tan(np.deg2rad(FRONT_FOV) / 2)) / -back
            assert 2 * BLOCK_HALF * pixels >= 10, (distance, np.rad2deg(angle), 2 * BLOCK_HALF * pixels)
            assert abs(right * pixels) < 61 and abs(up * pixels) < 45, "in the picture"


def test_both_cameras_see_the_scene_in_two_sizes(clean: TwinEnv) -> None:
    clean.reset(0)
    seen = clean.observe()
    assert seen[CAMERAS[0]].shape == seen[CAMERAS[1]].shape == (96, 128, 3)
    red = (seen[CAMERAS[0]][..., 0] > 110) & (seen[CAMERAS[0]][..., 1] < 60)
    assert red.sum() > 80 and all(seen[key].std() > 15 for key in CAMERAS)
    large = TwinEnv("so101_twin_clean", 0, size=640)
    large.reset(0)
    assert large.observe()[CAMERAS[0]].shape == (480, 640, 3)
    large.close()
    assert TWIN.contract("so101_twin", 640, "fast").image_size == (480, 640)


def test_the_probe_moves_the_object(clean: TwinEnv) -> None:
    TWIN.begin(clean, seed=0, init_state=3, settle_steps=2)
    before = clean.data.body("block_red").xpos.copy()
    others = clean.data.body("cup_blue").xpos.copy()
    TWIN.begin(clean, seed=0, init_state=3, settle_steps=2, moved=2)
    way = np.linalg.norm(clean.data.body("block_red").xpos - before)
    assert 0.028 < way < 0.052 and np.linalg.norm(clean.data.body("cup_blue").xpos - others) < 1e-3
    assert [TWIN.can_move("so101_twin", task) for task in range(5)] == [False, True, True, True, True]


def test_it_is_the_reference_twin() -> None:
    from apprentice.simulators.base import PASSED
    from apprentice.simulators.so101 import examination

    env = TwinEnv("so101_twin_clean", 0)
    state, colours = examination.play(env)
    env.close()
    assert [check.verdict for check in examination.compare(state, colours)] == [PASSED, PASSED]
    worse = examination.compare(state + 3, colours + 40)
    assert [check.verdict for check in worse] == ["invalid", "invalid"]
    assert pytest.approx(0, abs=1) == state[:5] - examination.STATE[:5]
