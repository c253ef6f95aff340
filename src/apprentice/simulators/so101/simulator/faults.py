"""What a real arm and its cameras do wrong, drawn for an episode from its seed.

| fault | real level | source |
| --- | --- | --- |
| delay | 1-3 frames of 1/30 s | moonbeards/sim_stack_v2: 3 frames measured on SO-101; UMI robot_action_latency 0.1 s |
| cameradelay | 1-4 frames | UMI camera_obs_latency 0.125 s |
| play | servo dead zone +-0.5 degrees | SO-ARM100 issue 134; Menagerie's class backlash |
| droop | kp 38 N m/rad x U(0.7, 1.3) in place of 998 | SO-ARM100 issue 134: 1.8-2.6 degrees under 1.47 N m |
| encoder | steps of 360/4096 degrees, noise 1 step | STS3215 |
| light | lamp's direction +-0.5, power +-35 %, colour +-12 %, ambient 0.2-0.5 | ManiSkill's SO-100; our guess |
| exposure | +-20 %, white balance +-8 % a channel | our guess |
| sensor | noise 2.5-7.5 of 255, JPEG 55-75, blur 0-0.5 px of a picture 128 px wide | our guess |
| camera | +-2 cm, field of view +-2 degrees of 45 | ManiSkill's SO-100 |
| objects | friction x U(0.3, 1), mass x U(0.5, 2), size +-7 % | ManiSkill |
| push, shove | 3 cm; 3 N for 0.1 s; each in every second episode | our guess |
| distractors | 0-2 | Colosseum, RoboTwin 2.0 |
| joints | +-2 degrees, state and action alike; never at the real level | SO-ARM100 issue 149; our guess |

At the shifted level, each departure from the clean twin is twice as large.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from apprentice.simulators.so101.suites import CLEAN, REAL, REAL_KINDS, SHIFTED

STIFF, SOFT = 998.22, 38.0  # N m/rad: Menagerie's servos, and what real ones hold against
TICK = 360 / 4096  # degrees
SIZED = ("cups", "block_red", "block_green", "sponge")  # cups are of one size, or they would not nest


def _ones(count: int) -> Callable[[], np.ndarray]:
    return lambda: np.ones(count)


def _zeros(count: int) -> Callable[[], np.ndarray]:
    return lambda: np.zeros(count)


@dataclass(frozen=True)
class Faults:
    """What is wrong in an episode; the default is nothing.

    Attributes:
        delay: frames that a command is late.
        camera_delay: frames that a picture is old.
        play: half of the gears' free play (rad).
        stiffness: (6,) of the servos (N m/rad).
        encoder: largest noise of a joint's reading, in steps of `TICK`; None reads exactly.
        lamp: (3,) by how much the lamp's direction is turned.
        lamp_colour: (3,) factors.
        ambient: light that comes from everywhere.
        gain: (3,) factors of the picture's channels.
        noise: standard deviation of a pixel (of 255).
        quality: of JPEG; None leaves it out.
        blur: standard deviation (px of a picture 128 px wide).
        camera: (3,) how far the front camera is moved (m).
        aim: (2,) how far the point that it looks at is moved (m).
        fov: factor of both cameras' field of view.
        friction, mass: factors for all objects; size: (4,) for each of SIZED.
        push: direction (rad) in which the object slides away; None: not at all.
        push_length: how far (m).
        shove: direction (rad) in which the carrying hand is pushed; None: not at all.
        shove_force: (N).
        distractors: how many.
        joints: (6,) rad: what a joint is off when it reads 0.
    """

    delay: int = 0
    camera_delay: int = 0
    play: float = 0.0
    stiffness: np.ndarray = field(default_factory=lambda: np.full(6, STIFF))
    encoder: int | None = None
    lamp: np.ndarray = field(default_factory=_zeros(3))
    lamp_colour: np.ndarray = field(default_factory=_ones(3))
    ambient: float = 0.35
    gain: np.ndarray = field(default_factory=_ones(3))
    noise: float = 0.0
    quality: int | None = None
    blur: float = 0.0
    camera: np.ndarray = field(default_factory=_zeros(3))
    aim: np.ndarray = field(default_factory=_zeros(2))
    fov: float = 1.0
    friction: float = 1.0
    mass: float = 1.0
    size: np.ndarray = field(default_factory=_ones(4))
    push: float | None = None
    push_length: float = 0.03
    shove: float | None = None
    shove_force: float = 3.0
    distractors: int = 0
    joints: np.ndarray = field(default_factory=_zeros(6))


def kinds_of(suite: str) -> tuple[tuple[str, ...], float]:
    """Which kinds of faults a suite has, and how large they are: 1 at the real level."""
    ending = suite.removeprefix(REAL).removeprefix("_")
    if ending == CLEAN:
        return (), 1.0
    if ending == SHIFTED:
        return (*REAL_KINDS, "joints"), 2.0
    return (ending,) if ending else REAL_KINDS, 1.0


def draw(suite: str, seed: int) -> Faults:
    """The faults of an episode. Each kind has its own numbers: alone it is what it is among others."""
    kinds, scale = kinds_of(suite)
    faults = Faults()
    for number, (kind, make) in enumerate(DRAWS.items()):
        if kind in kinds:
            faults = replace(faults, **make(np.random.default_rng([seed, 7, number]), scale))
    return faults


def _delay(rng: np.random.Generator, scale: float) -> dict:
    return {"delay": int(scale * rng.integers(1, 4))}


def _cameradelay(rng: np.random.Generator, scale: float) -> dict:
    return {"camera_delay": int(scale * rng.integers(1, 5))}


def _play(rng: np.random.Generator, scale: float) -> dict:
    return {"play": scale * np.deg2rad(0.5)}


def _droop(rng: np.random.Generator, scale: float) -> dict:
    return {"stiffness": SOFT * rng.uniform(1 - 0.3 * scale, 1 + 0.3 * scale, 6)}


def _encoder(rng: np.random.Generator, scale: float) -> dict:
    return {"encoder": int(scale)}


def _light(rng: np.random.Generator, scale: float) -> dict:
    tint = np.array([1 + rng.uniform(-0.12, 0.12) * scale, 1.0, 1 + rng.uniform(-0.12, 0.12) * scale])
    return {
        "lamp": np.append(rng.uniform(-0.5, 0.5, 2) * scale, 0.0),
        "lamp_colour": np.maximum(tint * (1 + rng.uniform(-0.35, 0.35) * scale), 0.05),
        "ambient": max(0.35 + rng.uniform(-0.15, 0.15) * scale, 0.05),
    }


def _exposure(rng: np.random.Generator, scale: float) -> dict:
    balance = np.array([1 + rng.uniform(-0.08, 0.08) * scale, 1.0, 1 + rng.uniform(-0.08, 0.08) * scale])
    return {"gain": balance * (1 + rng.uniform(-0.2, 0.2) * scale)}


def _sensor(rng: np.random.Generator, scale: float) -> dict:
    return {
        "noise": rng.uniform(2.5, 7.5) * scale,
        "quality": int(100 - scale * rng.uniform(25, 45)),
        "blur": rng.uniform(0, 0.5) * scale,
    }


def _camera(rng: np.random.Generator, scale: float) -> dict:
    return {
        "camera": rng.uniform(-0.02, 0.02, 3) * scale,
        "aim": rng.uniform(-0.01, 0.01, 2) * scale,
        "fov": 1 + rng.uniform(-2, 2) / 45 * scale,
    }


def _objects(rng: np.random.Generator, scale: float) -> dict:
    return {
        "friction": max(1 - scale * rng.uniform(0, 0.7), 0.1),
        "mass": 2 ** (scale * rng.uniform(-1, 1)),
        "size": rng.uniform(1 - 0.07 * scale, 1 + 0.07 * scale, len(SIZED)),
    }


def _push(rng: np.random.Generator, scale: float) -> dict:
    happens, way = rng.integers(2), rng.uniform(-np.pi, np.pi)
    return {"push": way, "push_length": 0.03 * scale} if happens else {}


def _shove(rng: np.random.Generator, scale: float) -> dict:
    happens, way = rng.integers(2), rng.uniform(-np.pi, np.pi)
    return {"shove": way, "shove_force": 3.0 * scale} if happens else {}


def _distractors(rng: np.random.Generator, scale: float) -> dict:
    return {"distractors": int(rng.integers(0, 3))}


def _joints(rng: np.random.Generator, scale: float) -> dict:
    return {"joints": np.append(np.deg2rad(rng.uniform(-2, 2, 5)), 0.0)}


DRAWS: dict[str, Callable[[np.random.Generator, float], dict]] = {
    "delay": _delay,
    "cameradelay": _cameradelay,
    "play": _play,
    "droop": _droop,
    "encoder": _encoder,
    "light": _light,
    "exposure": _exposure,
    "sensor": _sensor,
    "camera": _camera,
    "objects": _objects,
    "push": _push,
    "shove": _shove,
    "distractors": _distractors,
    "joints": _joints,
}
