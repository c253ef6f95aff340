"""MuJoCo's renderer in an OpenGL context that stays.

A driver compiles its shaders anew in each context: on a CPU this takes a second, five times as long as all else.
"""

import atexit
import contextlib
import os
import threading
from typing import Any

import mujoco
from mujoco import gl_context

from apprentice.common.errors import UserError

_kept = threading.local()  # a context is current in one thread at a time


class Renderer(mujoco.Renderer):  # type: ignore[misc]
    """As MuJoCo's own, with others in the context of its thread and process."""

    def __init__(self, model: mujoco.MjModel, height: int, width: int):
        """Raises UserError if such a picture cannot be drawn here."""
        theirs, gl_context.GLContext = gl_context.GLContext, _Shared
        try:
            super().__init__(model, height, width)
        except Exception as error:  # of MuJoCo's, of PyOpenGL's, or of a driver's
            raise UserError(
                f"expected to draw {width} px through {os.environ.get('MUJOCO_GL')}, found {type(error).__name__}: "
                f"{error}; fix: another MUJOCO_GL (egl, osmesa or glfw), a smaller --size, or a driver that works"
            ) from error
        finally:
            gl_context.GLContext = theirs
        self._gl_context.owner = self._mjr_context

    def close(self) -> None:
        """Give back textures and meshes, which are numbers in a context: so it must be current."""
        if not hasattr(self, "_mjr_context"):
            return  # it could not be made
        with contextlib.suppress(Exception):  # when Python ends, the context may have gone before
            if self._gl_context:
                self._gl_context.make_current()
        super().close()


class _Shared:
    """The context as one renderer has it.

    Attributes:
        owner: what draws into a buffer of its own.
    """

    def __init__(self, width: int, height: int):
        if getattr(_kept, "process", None) != os.getpid():  # a fork has none
            _kept.context, _kept.process = mujoco.GLContext(width, height), os.getpid()
            atexit.register(_kept.context.free)  # before MuJoCo ends EGL, which it registered earlier
        self._context: Any = _kept.context
        self.owner: mujoco.MjrContext | None = None

    def make_current(self) -> None:
        self._context.make_current()
        if self.owner is not None:
            mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self.owner)

    def free(self) -> None:
        """It stays."""
