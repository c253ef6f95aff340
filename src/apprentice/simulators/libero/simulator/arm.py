"""Robosuite's arm, with what cannot change within a control step computed once, and each Jacobian once a physics step.

Robosuite looks up limits, names and Jacobians again and again, 500 times a simulated second: a fifth of what a control
step costs. The torques are the same to the bit.
"""

from typing import Any

import mujoco
import numpy as np


class Arm:
    """Takes the place of `_pre_action` in the environment of one robot with operational space control."""

    def __init__(self, domain: Any):
        self.robot = robot = domain.robots[0]
        self.model: mujoco.MjModel = domain.sim.model._model
        self.data: mujoco.MjData = domain.sim.data._data
        self.low, self.high = (limit.copy() for limit in robot.torque_limits)  # N m
        self.joints = robot._ref_joint_actuator_indexes
        self.fingers = [domain.sim.model.actuator_name2id(name) for name in robot.gripper.actuators]
        low, high = self.model.actuator_ctrlrange[self.fingers].T
        self.middle, self.reach = 0.5 * (high + low), 0.5 * (high - low)
        self.move = np.zeros(2)  # of each finger's command in a physics step
        self.site = robot.eef_site_id
        self.jacobian = np.zeros((2, 3, self.model.nv))
        self.mass = np.zeros((self.model.nv, self.model.nv))

    def act(self, action: np.ndarray, policy_step: bool = False) -> None:
        """Set the controls for the next physics step; `policy_step` is the first of a control step."""
        robot, controller = self.robot, self.robot.controller
        if policy_step:  # goals and what robosuite remembers of a control step
            robot.control(action, policy_step=True)
            self.move = np.array([-1.0, 1.0]) * robot.gripper.speed * np.sign(action[controller.control_dim :])
            return
        self._update(controller)
        robot.torques = np.clip(controller.run_controller(), self.low, self.high)
        # As robosuite's `PandaGripper.format_action`, which works out `move` anew.
        fingers = robot.gripper.current_action = np.clip(robot.gripper.current_action + self.move, -1.0, 1.0)
        self.data.ctrl[self.fingers] = self.middle + self.reach * fingers
        self.data.ctrl[self.joints] = robot.torques

    def _update(self, controller: Any) -> None:
        """What `Controller.update` does, which then finds nothing to do."""
        if not controller.new_update:
            return
        controller.sim.forward()
        data, columns = self.data, controller.qvel_index
        linear, angular = self.jacobian
        mujoco.mj_jacSite(self.model, data, linear, angular, self.site)
        controller.ee_pos = data.site_xpos[self.site].copy()
        controller.ee_ori_mat = data.site_xmat[self.site].reshape(3, 3).copy()
        controller.ee_pos_vel, controller.ee_ori_vel = np.dot(linear, data.qvel), np.dot(angular, data.qvel)
        controller.joint_pos, controller.joint_vel = data.qpos[controller.qpos_index], data.qvel[columns]
        controller.J_pos, controller.J_ori = linear[:, columns], angular[:, columns]
        controller.J_full = np.vstack([controller.J_pos, controller.J_ori])
        mujoco.mj_fullM(self.model, self.mass, data.qM)
        controller.mass_matrix = self.mass[columns, :][:, columns]
        controller.new_update = False
