"""The twin as one small class: joint targets in, pictures on demand. A frame of 1/30 s is ten physics steps."""

from dataclasses import dataclass

import mujoco
import numpy as np

from apprentice.common.errors import UserError
from apprentice.simulators.so101.simulator.faults import TICK, Faults, draw
from apprentice.simulators.so101.simulator.goals import Goals
from apprentice.simulators.so101.simulator.layout import Layout, shifted, way_out
from apprentice.simulators.so101.simulator.layout import draw as draw_layout
from apprentice.simulators.so101.simulator.pictures import Cameras, light, spoilt
from apprentice.simulators.so101.simulator.scene import CUP_HEIGHT, EXTRA, OBJECTS, SUBSTEPS, compiled
from apprentice.simulators.so101.suites import CARRIED, INSTRUCTIONS, SUITES
from apprentice.simulators.so101.units import to_lerobot, to_radians

HOME = np.array([0.0, -1.40, 0.92, 1.53, -1.60, 0.05])  # rad: the jaws over the cups, turned as they grasp
START_NOISE = 3.0  # degrees that each joint starts from home at most
SETTLE_STEPS = 10  # frames
OLDEST = 8  # frames that a picture may be old
PUSH_FRAMES, SHOVE_FRAMES = 6, 3
PUSH_NEAR, CARRIED_HIGH = 0.10, 0.03  # m: how near the hand is when an object slides away; how high it is carried
INTEGRATION = mujoco.mjtState.mjSTATE_INTEGRATION


@dataclass
class Snapshot:
    """What one observation shows: enough to draw it again, bit for bit, in an environment of the same suite."""

    seed: np.ndarray  # () int64, of the episode: its faults follow
    frame: np.ndarray  # () int64: the noise follows
    qpos: np.ndarray  # (nq,) that the cameras see
    mocap: np.ndarray  # (3, 3) m, where plate and distractors are
    state: np.ndarray  # (6,) float32


@dataclass
class TwinState(Snapshot):
    """All that an episode goes on from, bit for bit."""

    physics: np.ndarray  # (N,) MuJoCo's integration state
    queue: np.ndarray  # (delay, 6) rad, commands that have not arrived
    past: np.ndarray  # (OLDEST + 1, nq) what cameras may still show, the newest last
    pushes: (
        np.ndarray
    )  # (3,) frames of a push and of a shove that are left, -1 before they begin; was the object touched?
    escape: np.ndarray  # (2,) m a frame, how the object slides; zeros: not at all
    heights: np.ndarray  # () m, of the object at the start


class TwinEnv:
    """One task. Call `reset` first, then `step` and `observe`."""

    def __init__(self, suite: str, task: int, *, render: str = "fast", size: int = 128):
        if render not in ("fast", "exact"):
            raise UserError(f"expected render to be 'fast' or 'exact', found {render!r}; fix: name one of them")
        self.suite, self.task, self.render, self.size = suite, task, render, size
        self.instruction, self.max_steps = INSTRUCTIONS[task], SUITES[suite]
        self.carried = CARRIED.get(task)
        self._cameras: Cameras | None = None
        self._seed: int | None = None

    def reset(
        self, seed: int, *, settle_steps: int = SETTLE_STEPS, moved: int | None = None, faults: Faults | None = None
    ) -> None:
        """Draw faults and layout from `seed`, and let everything settle while the arm holds its start.

        `moved`: the object of this task stands elsewhere. `faults`, if given, are those of the episode.
        Raises UserError if there is no room to move it.
        """
        self._take(seed, faults)
        layout = draw_layout(seed, self.faults.distractors)
        start = HOME.copy()
        start[:5] += np.deg2rad(np.random.default_rng([seed, 2]).uniform(-START_NOISE, START_NOISE, 5))
        if moved is not None:
            name = CARRIED[moved]
            place = shifted(name, layout.places, seed)
            if place is None:
                raise UserError(
                    f"expected room to move {name} in {self.suite} task {self.task}, seed {seed}, found none; "
                    "fix: leave the probe 'moved' or this task out"
                )
            layout.places[name] = place
        self._put(layout, start)
        self.start = start  # (6,) rad that the arm has been told to hold
        self._frame = 0
        self._pushes = np.array([-1, -1, 0])
        self._escape = self._way_out(layout)
        self._queue = [start.copy() for _ in range(self.faults.delay)]
        mujoco.mj_step(self.model, self.data, 6 * SUBSTEPS)
        self._height = self._object_height()
        self._past = [self.data.qpos.copy()] * (OLDEST + 1)
        hold = self.to_action(start)
        for _ in range(settle_steps):
            self._advance(hold)
        self._pushes[:] = -1, -1, 0
        self._height = self._object_height()
        self._read()

    def step(self, action: np.ndarray) -> bool:
        """Run one action (6,), targets in LeRobot's units, for 1/30 s; says whether the goal holds now."""
        self._advance(np.asarray(action, dtype=np.float64))
        self._read()
        return self.success_of(self.task)

    def observe(self) -> dict[str, np.ndarray]:
        """The observation of now: two images (H, W, 3) uint8 and the state (6,) float32."""
        if self._cameras is None:
            self._cameras = Cameras(self.model, self.size, shadows=self.render == "exact")
        self._view.qpos[:] = self._seen
        self._view.mocap_pos[:] = self.data.mocap_pos
        mujoco.mj_kinematics(self.model, self._view)
        mujoco.mj_camlight(self.model, self._view)
        rng = np.random.default_rng([self._seed or 0, 8, self._frame])
        images = {key: spoilt(image, self.faults, rng) for key, image in self._cameras.draw(self._view).items()}
        return {**images, "observation.state": self.proprioception()}

    def proprioception(self) -> np.ndarray:
        """State (6,) float32: degrees of five joints, and the gripper from 0 to 100."""
        return self._state.copy()

    def success_of(self, task: int) -> bool:
        """Is this task of the suite done now?"""
        return self.goals.holds(self.data, task)

    def to_action(self, joints: np.ndarray) -> np.ndarray:
        """The action (6,) that asks for joints (6,) rad, as this arm is calibrated."""
        return to_lerobot(joints - self.faults.joints)

    def snapshot(self) -> Snapshot:
        """What `observe` would show now."""
        return Snapshot(
            np.array(self._seed), np.array(self._frame), self._seen.copy(), self.data.mocap_pos.copy(), self._state
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Show what a snapshot shows. Physics does not go on from here."""
        if int(snapshot.seed) != self._seed:
            self._take(int(snapshot.seed))
        self._frame, self._seen, self._state = int(snapshot.frame), snapshot.qpos, snapshot.state
        self.data.mocap_pos[:] = snapshot.mocap

    def capture(self) -> TwinState:
        """What `resume` goes on from."""
        physics = np.empty(mujoco.mj_stateSize(self.model, INTEGRATION))
        mujoco.mj_getState(self.model, self.data, physics, INTEGRATION)
        return TwinState(
            **vars(self.snapshot()),
            physics=physics,
            queue=np.array(self._queue).reshape(-1, 6),
            past=np.array(self._past),
            pushes=self._pushes.copy(),
            escape=self._escape.copy(),
            heights=np.array(self._height),
        )

    def resume(self, state: TwinState) -> None:
        """Go on from a captured state."""
        self.restore(state)
        mujoco.mj_setState(self.model, self.data, state.physics, INTEGRATION)
        mujoco.mj_forward(self.model, self.data)  # where everything is; it changes the solver's warm start
        mujoco.mj_setState(self.model, self.data, state.physics, INTEGRATION)
        self._queue, self._past = list(state.queue), list(state.past)
        self._pushes, self._escape, self._height = state.pushes.copy(), state.escape.copy(), float(state.heights)

    def close(self) -> None:
        if self._cameras is not None:
            self._cameras.close()
            self._cameras = None

    def _take(self, seed: int, faults: Faults | None = None) -> None:
        """Become the arm, the objects and the room of an episode."""
        self.close()
        self._seed, self.faults = seed, faults or draw(self.suite, seed)
        self.model = compiled(self.faults)
        light(self.model, self.faults)
        self.data, self._view = mujoco.MjData(self.model), mujoco.MjData(self.model)
        self.goals = Goals(self.model)
        self._hand = self.model.body("gripper").id

    def _put(self, layout: Layout, start: np.ndarray) -> None:
        data = self.data
        mujoco.mj_resetData(self.model, data)
        data.qpos[:6] = data.ctrl[:6] = start
        for name in OBJECTS:
            height = 0.0005 if name.startswith("cup") else self._rest(name)
            yaw = layout.yaws[name]
            data.joint(name).qpos[:] = [*layout.places[name], height, np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)]
        data.joint("drawer").qpos[0] = layout.drawer
        data.mocap_pos[self._mocap("plate"), :2] = layout.places["plate"]
        for name, place in zip(EXTRA, layout.extras, strict=False):
            data.mocap_pos[self._mocap(name)] = [*place, 0.0]

    def _mocap(self, name: str) -> int:
        return int(self.model.body(name).mocapid[0])

    def _rest(self, name: str) -> float:
        """How high (m) the middle of a box is that lies on the table."""
        return self.goals.half_height(name) + 0.0005

    def _object_height(self) -> float:
        return float(self.data.body(self.carried).xpos[2]) if self.carried else CUP_HEIGHT

    def _way_out(self, layout: Layout) -> np.ndarray:
        """How far (2,) m the object slides in a frame, if it is to."""
        if self.carried is None or self.faults.push is None:
            return np.zeros(2)
        place = way_out(self.carried, layout.places, self.faults.push, self.faults.push_length)
        return np.zeros(2) if place is None else (place - layout.places[self.carried]) / PUSH_FRAMES

    def _advance(self, action: np.ndarray) -> None:
        """One frame of physics under the episode's faults."""
        model, data, faults = self.model, self.data, self.faults
        self._queue.append(to_radians(action) + faults.joints)
        goal = np.clip(self._queue.pop(0), *model.actuator_ctrlrange[:6].T)
        slide = self._disturb()
        for _ in range(SUBSTEPS):
            error = goal - data.qpos[:6]
            data.ctrl[:6] = data.qpos[:6] + np.sign(error) * np.maximum(np.abs(error) - faults.play, 0)
            if slide is not None:
                data.joint(self.carried).qpos[:2] += slide / SUBSTEPS
            mujoco.mj_step(model, data)
        mujoco.mj_kinematics(model, data)
        self._frame += 1
        self._past = [*self._past[1:], data.qpos.copy()]

    def _disturb(self) -> np.ndarray | None:
        """Let the object slide away once the hand is near, push the hand once it carries; how far (2,) m to slide."""
        data, faults = self.data, self.faults
        data.xfrc_applied[self._hand] = 0
        if self.carried is None or (not self._escape.any() and faults.shove is None):
            return None
        place = data.body(self.carried).xpos
        touched = self.goals.touched(data, self.carried)
        self._pushes[2] |= touched
        slide = None
        near = np.linalg.norm(self.goals.tips(data)[:2] - place[:2]) < PUSH_NEAR
        if self._escape.any() and self._pushes[0] < 0 and near and not self._pushes[2]:
            self._pushes[0] = PUSH_FRAMES
        if self._pushes[0] > 0:
            self._pushes[0] -= 1
            slide = None if touched else self._escape
        if faults.shove is not None and self._pushes[1] < 0 and touched and place[2] > self._height + CARRIED_HIGH:
            self._pushes[1] = SHOVE_FRAMES
        if self._pushes[1] > 0:
            self._pushes[1] -= 1
            force = faults.shove_force * np.array([np.cos(faults.shove or 0), np.sin(faults.shove or 0)])
            data.xfrc_applied[self._hand, :2] = force
        return slide

    def _read(self) -> None:
        """What sensors give: joints in steps of their encoder, and pictures that may be old."""
        joints = self.data.qpos[:6] - self.faults.joints
        if self.faults.encoder is not None:
            rng = np.random.default_rng([self._seed or 0, 9, self._frame])
            noise = rng.integers(-self.faults.encoder, self.faults.encoder + 1, 6)
            tick = np.deg2rad(TICK)
            joints = (np.round(joints / tick) + noise) * tick
        self._state = to_lerobot(joints).astype(np.float32)
        self._seen = self._past[-1 - self.faults.camera_delay]


_kept: list[TwinEnv] = []  # of this process, at most one: it holds a GL context


def environment(suite: str, task: int, *, render: str, size: int) -> TwinEnv:
    """The environment of this process, made anew if it is another."""
    wanted = (suite, task, render, size)
    if _kept and (_kept[0].suite, _kept[0].task, _kept[0].render, _kept[0].size) != wanted:
        _kept.pop().close()
    if not _kept:
        _kept.append(TwinEnv(suite, task, render=render, size=size))
    return _kept[0]
