"""LIBERO as one small class: the same physics and the same observations as LeRobot's environment, but images on demand.

Observations are those of `lerobot.envs.libero` after its `LiberoProcessorStep`: to the bit when `render="exact"`,
otherwise images look the same, and states are the same to rounding.
"""

import contextlib
import io
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
from scipy.spatial.transform import Rotation

from apprentice.common.errors import UserError
from apprentice.simulators.libero.simulator.arm import Arm
from apprentice.simulators.libero.simulator.geometry import Geometry
from apprentice.simulators.libero.simulator.layout import spread
from apprentice.simulators.libero.simulator.render import CAMERAS, Renderer, renderers
from apprentice.simulators.libero.simulator.suites import STEP_LIMITS, goals, initial_states, tasks
from apprentice.simulators.libero.simulator.variants import TaskText, find_task

SETTLE = np.array([0, 0, 0, 0, 0, 0, -1.0])
SETTLE_STEPS = 10  # initial states hang some centimetres in the air
SUBSTEPS = 25  # physics steps of 2 ms in a control step of 50 ms
SEEN_SUBSTEP = 23  # after an initial state is set, robosuite samples its observations here, 4 ms before the step ends
DRAWS, NEXT_DRAW, THROWN = 5, 1_000_003, 0.2  # m: an object that moved so far while it settled was thrown
LOADED = 3  # times that lerobot-eval has loaded the model when its first episode begins
TURN_PER_METRE = 4.0  # rad: a start moved by 3 cm may also be turned by 0.12 rad (7 degrees)


@dataclass
class Snapshot:
    """What one observation shows: enough to draw it again, bit for bit, in an environment of the same task."""

    qpos: np.ndarray  # (nq,) m and rad
    body_pos: np.ndarray  # (nbody, 3) m: fixtures are moved in the model, not in qpos
    body_quat: np.ndarray  # (nbody, 4)
    site_rgba: np.ndarray  # (nsite, 4): the stove's flame
    state: np.ndarray  # (8,) float32 proprioception


@dataclass
class SimulatorState(Snapshot):
    """All that an episode goes on from, bit for bit, in an environment of the same task."""

    physics: np.ndarray  # (N,) MuJoCo's integration state: positions, velocities, controls, the solver's warm start
    goal_position: np.ndarray  # (3,) m: what the arm's controller heads for
    goal_rotation: np.ndarray  # (3, 3)
    gripper: np.ndarray  # (2,) the fingers' commands: they move by a little in each physics step


class LiberoEnv:
    """One task, as published or its variant of that number. Call `reset` first, then `step` and `observe`."""

    def __init__(self, suite: str, task: int, variant: int | None = None, *, render: str = "fast", size: int = 128):
        if render not in ("fast", "exact"):
            raise UserError(f"expected render to be 'fast' or 'exact', found {render!r}; fix: name one of them")
        self.suite, self.task, self.variant, self.render, self.size = suite, task, variant, render, size
        self.definition = find_task(suite, task, variant)
        self.instruction, self.max_steps = self.definition.instruction, STEP_LIMITS[suite]
        self.control = _make_control(str(self.definition.bddl))
        self.model: mujoco.MjModel = self.control.env.sim.model._model
        self.data: mujoco.MjData = self.control.env.sim.data._data
        self._robot = self.control.env.robots[0]
        self._hand = self.model.body(self._robot.robot_model.eef_name).id
        self._view = mujoco.MjData(self.model)  # what the cameras see; the physics keeps its own data
        self._renderers: dict[str, Renderer] = {}
        self._states: np.ndarray | None = None
        fixtures = self.control.env.fixtures_dict.values()
        self._fixtures = [self.model.body(fixture.root_body).id for fixture in fixtures]
        places = [f.get_obj().get("pos", "0 0 0").split() for f in fixtures]
        self._at_first = np.array(places, dtype=float).reshape(-1, 3)
        self._substep = 0
        # Robosuite refreshes some 40 sensors in every physics step; we read the three that we need ourselves.
        self.control.env._observables = {}
        self.control.env._update_observables = self._watch
        # MuJoCo's own, a force and a torque at the wrist, nobody reads; and its flags, one for each of up to a million
        # bounding volumes, are for its viewer alone.
        self.model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_SENSOR
        self.model.vis.global_.bvactive = 0
        self._polar = _torchs_polar if render == "exact" else _polar
        self._stepping = self._fresh = False
        self.control.env.sim.forward, self.control.env.sim.step = self._forward, self._integrate
        self.control.env._pre_action = Arm(self.control.env).act

    def reset(
        self, *, seed: int, init_state: int | None = None, start_noise: float = 0.0, settle_steps: int | None = None
    ) -> None:
        """Start an episode: fixtures and objects from `seed`, or objects and robot from a test state; let them settle.

        `start_noise` (m): the hand starts up to that far from home on each axis, and turned by up to
        `TURN_PER_METRE * start_noise` rad about each axis. LIBERO sometimes places two objects into one another, and
        physics throws them off the table: such a layout is drawn again, from a seed that follows from `seed`.

        Raises UserError for a test state of a variant.
        """
        if init_state is not None and self.variant is not None:
            raise UserError(f"expected no test state of a variant, found {init_state}; fix: leave one of them out")
        for draw in range(DRAWS):
            placed = self._place((seed + draw * NEXT_DRAW) % 2**32, init_state)
            if start_noise:
                rng = np.random.default_rng([seed, 1])
                shift, turn = rng.uniform(-start_noise, start_noise, (2, 3)) * [[1.0], [TURN_PER_METRE]]
                self.move_hand(shift, turn)
            for _ in range(SETTLE_STEPS if settle_steps is None else settle_steps):
                self.step(SETTLE)
            if init_state is not None or np.abs(self._objects() - placed).max(initial=0.0) < THROWN:
                return

    def _objects(self) -> np.ndarray:
        """Where (N, 2) m the objects are, seen from above."""
        bodies = self.control.env.obj_body_id
        return self.data.xpos[[bodies[name] for name in self.control.env.objects_dict], :2].copy()

    def _place(self, seed: int, init_state: int | None) -> np.ndarray:
        """Put everything in its place; returns where (N, 2) m the objects are before they settle."""
        self.control.seed(seed)
        # LIBERO places what lies on or in a fixture as if the fixture were where a newly loaded model has it.
        self.model.body_pos[self._fixtures], self.model.body_quat[self._fixtures] = self._at_first, [1.0, 0, 0, 0]
        # Each time it loads the model, LIBERO lists once more what begins open or turned on, and it draws a number for
        # each entry before it places things. lerobot-eval loads it at each reset, so its places depend on that.
        listed = self.control.env.object_property_initializers
        if init_state is not None:
            self.control.env.object_property_initializers = listed * (LOADED + init_state)
        self.control.reset()
        self.control.env.object_property_initializers = listed
        # Robosuite forgets it: the gripper would go on from where the last episode left it.
        self._robot.gripper.current_action = np.zeros(self._robot.gripper.dof)
        if init_state is not None:
            if self._states is None:
                self._states = initial_states(self.suite, self.task)
            self.control.set_init_state(self._states[init_state])
        if self.variant is not None:
            spread(self.geometry(), TaskText.of(self.definition).loose, np.random.default_rng([seed, 4]))
        return self._objects()

    def step(self, action: np.ndarray) -> bool:
        """Run one action (7,) for 50 ms; says whether the goal holds now. Nothing is drawn."""
        self._substep = 0
        self._site_rgba = self.model.site_rgba.copy()
        self._stepping, self._fresh = True, False
        try:
            return bool(self.control.step(np.asarray(action, dtype=np.float64))[2])
        finally:
            self._stepping = False

    def observe(self) -> dict[str, np.ndarray]:
        """The observation of now: two images (H, W, 3) uint8 and the state (8,) float32."""
        if not self._renderers:
            self._renderers = renderers(self.model, self.size, fast=self.render == "fast")
        self._view.qpos[:] = self._seen_qpos
        mujoco.mj_kinematics(self.model, self._view)
        mujoco.mj_camlight(self.model, self._view)
        now, self.model.site_rgba[:] = self.model.site_rgba.copy(), self._site_rgba
        images = {f"observation.images.{k}": self._renderers[c].draw(self._view, c) for k, c in CAMERAS.items()}
        self.model.site_rgba[:] = now
        return {**images, "observation.state": self.proprioception()}

    def proprioception(self) -> np.ndarray:
        """State (8,) float32: hand position 3 (m), axis-angle 3 (rad), finger positions 2 (m)."""
        return self._state.copy()

    def geometry(self) -> Geometry:
        """Where things are, from privileged state."""
        return Geometry(self.model, self.data, self.control.env)

    def snapshot(self) -> Snapshot:
        """What `observe` would show now."""
        model = self.model
        return Snapshot(
            self._seen_qpos.copy(), model.body_pos.copy(), model.body_quat.copy(), self._site_rgba.copy(), self._state
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Show what `snapshot` shows. Physics does not go on from here: velocities are not kept."""
        self.model.body_pos[:], self.model.body_quat[:] = snapshot.body_pos, snapshot.body_quat
        self._site_rgba = self.model.site_rgba[:] = snapshot.site_rgba
        self._seen_qpos, self._state = snapshot.qpos, snapshot.state

    def capture(self) -> SimulatorState:
        """What `resume` goes on from."""
        physics = np.empty(mujoco.mj_stateSize(self.model, mujoco.mjtState.mjSTATE_INTEGRATION))
        mujoco.mj_getState(self.model, self.data, physics, mujoco.mjtState.mjSTATE_INTEGRATION)
        controller, fingers = self._robot.controller, self._robot.gripper.current_action
        return SimulatorState(
            **vars(self.snapshot()),
            physics=physics,
            goal_position=controller.goal_pos.copy(),
            goal_rotation=controller.goal_ori.copy(),
            gripper=fingers + np.zeros(2),
        )

    def resume(self, state: SimulatorState) -> None:
        """Go on from a captured state, after a `reset`. Raises UserError if it belongs to another scene."""
        size = mujoco.mj_stateSize(self.model, mujoco.mjtState.mjSTATE_INTEGRATION)
        if state.physics.shape != (size,):
            raise UserError(
                f"expected a state of {size} numbers in {self.suite} task {self.task}, found {state.physics.size}; "
                "fix: resume it in the task that it was captured in"
            )
        self.restore(state)
        mujoco.mj_setState(self.model, self.data, state.physics, mujoco.mjtState.mjSTATE_INTEGRATION)
        mujoco.mj_forward(self.model, self.data)  # where everything is; it changes the solver's warm start
        mujoco.mj_setState(self.model, self.data, state.physics, mujoco.mjtState.mjSTATE_INTEGRATION)
        controller = self._robot.controller
        controller.update(force=True)
        controller.goal_pos, controller.goal_ori = state.goal_position.copy(), state.goal_rotation.copy()
        self._robot.gripper.current_action = state.gripper.copy()

    def goals_of(self, task: int) -> tuple[tuple[str, ...], ...]:
        """The goal of a task of this suite, as predicates. Raises UserError if its objects are not here."""
        goal = goals(tasks(self.suite)[task].bddl)
        missing = {name for _, *names in goal for name in names} - set(self.control.env.object_states_dict)
        if missing:
            raise UserError(
                f"expected task {task} of {self.suite} to be possible in the scene of task {self.task}, "
                f"found no {min(missing)}; fix: choose two tasks that share a scene"
            )
        return goal

    def success_of(self, task: int) -> bool:
        """Would the goal of another task of this suite hold now? Raises UserError if its objects are not here."""
        return all(self.control.env._eval_predicate(list(predicate)) for predicate in self.goals_of(task))

    def close(self) -> None:
        for renderer in set(self._renderers.values()):
            renderer.close()
        self._renderers = {}
        self.control.close()

    def _forward(self) -> None:
        """In place of robosuite's `sim.forward`, which it calls twice before each physics step.

        `mj_step` begins with the same computation once more. MuJoCo cuts it in two where the controls come in, so
        that it is done once (`mj_step1`, then `mj_step2`); the states are the same to the bit.
        """
        if not self._stepping:
            mujoco.mj_forward(self.model, self.data)
        elif not self._fresh:
            mujoco.mj_step1(self.model, self.data)
            self._fresh = True

    def _integrate(self) -> None:
        """In place of robosuite's `sim.step`."""
        mujoco.mj_step2(self.model, self.data)
        self._fresh = False

    def _watch(self, force: bool = False) -> None:
        """Called by robosuite after each physics step; keeps what a sensor would have sampled at SEEN_SUBSTEP.

        MuJoCo computes positions of bodies before it integrates, so those belong to the step before.
        """
        self._substep += 1
        if self._substep == SEEN_SUBSTEP:
            self._seen_qpos = self.data.qpos.copy()
        elif self._substep == SEEN_SUBSTEP + 1:
            self._state = self._read_state()

    def _read_state(self) -> np.ndarray:
        w, *xyz = self.data.xquat[self._hand].astype(np.float32)
        w, xyz = np.clip(w, -1, 1), np.array(xyz)
        length, angle = self._polar(w)
        turn = xyz / length * angle if length > 1e-10 else np.zeros(3)
        fingers = self.data.qpos[self._robot._ref_gripper_joint_pos_indexes]
        return np.concatenate([self.data.site_xpos[self._robot.eef_site_id], turn, fingers]).astype(np.float32)

    def move_hand(self, shift: np.ndarray, turn: np.ndarray) -> None:
        """Move the arm so that the hand is displaced by `shift` (3,) m and `turn` (3,) rad: damped least squares."""
        site, joints = self._robot.eef_site_id, self._robot._ref_joint_pos_indexes
        columns = self._robot._ref_joint_vel_indexes
        jacobian = np.zeros((6, self.model.nv))
        home = self.data.site_xmat[site].reshape(3, 3).copy()
        position = self.data.site_xpos[site] + shift
        rotation = Rotation.from_rotvec(turn).as_matrix() @ home
        for _ in range(30):
            now = self.data.site_xmat[site].reshape(3, 3)
            error = np.concatenate(
                [position - self.data.site_xpos[site], Rotation.from_matrix(rotation @ now.T).as_rotvec()]
            )
            mujoco.mj_comPos(self.model, self.data)
            mujoco.mj_jacSite(self.model, self.data, jacobian[:3], jacobian[3:], site)
            arm = jacobian[:, columns]
            self.data.qpos[joints] += arm.T @ np.linalg.solve(arm @ arm.T + 1e-4 * np.eye(6), error)
            mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_forward(self.model, self.data)
        self._robot.controller.update(force=True)
        self._robot.controller.reset_goal()  # or it would turn the hand back home


_kept: list[LiberoEnv] = []  # of this process, at most one


def environment(suite: str, task: int, variant: int | None = None, *, render: str, size: int) -> LiberoEnv:
    """The environment of this process, made anew if it is another: that takes seconds, keeping one hundreds of MB."""
    wanted = (find_task(suite, task, variant), render, size)
    if _kept and (_kept[0].definition, _kept[0].render, _kept[0].size) != wanted:
        _kept.pop().close()
    if not _kept:
        _kept.append(LiberoEnv(suite, task, variant, render=render, size=size))
    return _kept[0]


def _polar(w: np.float32) -> tuple[np.float32, np.float32]:
    """Length of a unit quaternion's imaginary part, and the angle (rad) of its turn."""
    return np.sqrt(np.maximum(1 - w * w, 0), dtype=np.float32), 2 * np.arccos(w)


def _torchs_polar(w: np.float32) -> tuple[np.float32, np.float32]:
    """What LeRobot gets: PyTorch rounds a third of its square roots, and some arc cosines, another way than NumPy."""
    import torch

    cosine = torch.tensor([float(w)], dtype=torch.float32)
    length = torch.sqrt(torch.clamp(1.0 - cosine * cosine, min=0.0))
    return length.numpy()[0], (2.0 * torch.acos(cosine)).numpy()[0]


def _make_control(bddl: str) -> Any:
    """LIBERO's own environment without cameras, and without its chatter."""
    with contextlib.redirect_stdout(io.StringIO()):
        from libero.libero.envs.env_wrapper import ControlEnv

        return ControlEnv(bddl, has_offscreen_renderer=False, use_camera_obs=False, ignore_done=True, hard_reset=False)
