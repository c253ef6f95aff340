"""Simulators behind one interface, and what collects demonstrations in any of them."""

import os

# Both must be set before MuJoCo and PyOpenGL are imported: they choose how to draw without a display.
os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("PYOPENGL_PLATFORM", os.environ["MUJOCO_GL"])
