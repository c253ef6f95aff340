"""Where the hand is for given joints, and joints for a given hand: damped least squares from a start in closed form.

The arm has five joints, so not all poses can be reached: a solution comes with what is left of the error.
"""

from functools import cache

import mujoco
import numpy as np

from apprentice.simulators.so101.simulator.scene import ARM, PAN

LIMIT_MARGIN = 0.01  # rad
ROTATION_WEIGHT = 0.08  # m a rad
DAMPING = 1e-5
NEAR_ENOUGH, TURNED_ENOUGH = 2e-4, 0.01  # m, rad
LARGEST_STEP = 0.3  # rad
ROLLS = 37  # wrist angles that are tried for a start


class Kinematics:
    """The arm alone. A hand is a point (3,) m and axes (3, 3): towards the fixed jaw, across, forward."""

    def __init__(self) -> None:
        spec = mujoco.MjSpec.from_file(str(ARM))
        spec.compiler.discardvisual = True
        self._model = spec.compile()
        self._data = mujoco.MjData(self._model)
        self._site = self._model.site("gripperframe").id
        self._body = self._model.site_bodyid[self._site]
        low, high = self._model.jnt_range[:5].T
        self.low, self.high = low + LIMIT_MARGIN, high - LIMIT_MARGIN
        self._jacobian = np.zeros((6, self._model.nv))
        self._pan_sign = float(np.sign(self.forward(np.array([0.3, -0.5, 0.5, 1.0, 0.0]))[0][1]))

    def forward(self, joints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The point between the tips (3,) m and the hand's axes (3, 3), of five or six joints (rad)."""
        self._data.qpos[:5] = joints[:5]
        mujoco.mj_kinematics(self._model, self._data)
        return self._data.site_xpos[self._site].copy(), self._data.site_xmat[self._site].reshape(3, 3).copy()

    def inverse(
        self, point: np.ndarray, axes: np.ndarray, start: np.ndarray, offset: float = 0.0, rounds: int = 60
    ) -> tuple[np.ndarray, float, float]:
        """Joints (5,) that bring what is `offset` m beside the tips' middle to a point; errors left in m and rad."""
        joints = np.array(start[:5], dtype=float)
        if np.trace(self.forward(joints)[1].T @ axes) < 2.0:
            joints = self._rough(point, axes, joints)
        for _ in range(rounds):
            place, now = self.forward(joints)
            held = place + offset * now[:, 0]
            turn = 0.5 * np.cross(now.T, axes.T).sum(axis=0)
            error = np.concatenate([point - held, ROTATION_WEIGHT * turn])
            if np.linalg.norm(error[:3]) < NEAR_ENOUGH and np.linalg.norm(turn) < TURNED_ENOUGH:
                break
            mujoco.mj_comPos(self._model, self._data)
            mujoco.mj_jac(self._model, self._data, self._jacobian[:3], self._jacobian[3:], held, self._body)
            jacobian = self._jacobian[:, :5].copy()
            jacobian[3:] *= ROTATION_WEIGHT
            step = np.linalg.solve(jacobian.T @ jacobian + DAMPING * np.eye(5), jacobian.T @ error)
            joints = np.clip(joints + np.clip(step, -LARGEST_STEP, LARGEST_STEP), self.low, self.high)
        return joints, float(np.linalg.norm(error[:3])), float(np.linalg.norm(turn))

    def _rough(self, point: np.ndarray, axes: np.ndarray, joints: np.ndarray) -> np.ndarray:
        """From afar least squares would stick: first the arm's plane, the hand's lean and the wrist's roll."""
        pan = self._pan_sign * np.arctan2(point[1] - PAN[1], point[0] - PAN[0])
        joints[0] = np.clip(pan, self.low[0], self.high[0])
        tilt = np.arccos(np.clip(-axes[2, 2], -1, 1))
        joints[3] = np.clip(np.pi / 2 - tilt - joints[1] - joints[2], self.low[3], self.high[3])

        def fit(roll: float) -> float:
            joints[4] = roll
            return float(self.forward(joints)[1][:, 0] @ axes[:, 0])

        joints[4] = max(np.linspace(self.low[4], self.high[4], ROLLS), key=fit)
        return joints


@cache
def kinematics() -> Kinematics:
    """The one of this process."""
    return Kinematics()


def hand_axes(place: np.ndarray, tilt: float, yaw: float) -> np.ndarray:
    """Axes (3, 3) of a hand over a place: it leans outwards by `tilt` rad, its fixed jaw points to `yaw` rad."""
    around = azimuth(place)
    forward = np.array([np.sin(tilt) * np.cos(around), np.sin(tilt) * np.sin(around), -np.cos(tilt)])
    jaw = np.array([np.cos(yaw), np.sin(yaw), 0.0])
    jaw -= (jaw @ forward) * forward
    jaw /= np.linalg.norm(jaw)
    return np.column_stack([jaw, np.cross(forward, jaw), forward])


def azimuth(place: np.ndarray) -> float:
    """The angle (rad) at which a place lies from the first joint's axis."""
    return float(np.arctan2(place[1] - PAN[1], place[0] - PAN[0]))
