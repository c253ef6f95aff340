"""Can the simulator draw here? Found from the environment and the system's libraries, before MuJoCo is imported.

MuJoCo draws through EGL (a GPU or the CPU, without a display), OSMesa (the CPU) or GLFW (a display), as MUJOCO_GL says.
"""

import ctypes
import ctypes.util
import os
import sys

from apprentice.common.errors import UserError, meant

KINDS = ("egl", "osmesa", "glfw")
PACKAGES = {"egl": ("EGL", "libegl1"), "osmesa": ("OSMesa", "libosmesa6")}


def check_drawing() -> None:
    """Raise UserError if what MUJOCO_GL and MUJOCO_EGL_DEVICE_ID name cannot draw here."""
    kind = os.environ.get("MUJOCO_GL", "egl").lower().strip()
    if kind not in KINDS:
        raise UserError(f"MUJOCO_GL: expected one of {', '.join(KINDS)}, found {kind!r}; fix: {meant(kind, KINDS)}")
    if sys.platform != "linux":
        return
    platform = os.environ.get("PYOPENGL_PLATFORM", kind)
    if kind in PACKAGES and platform != kind:
        raise UserError(
            f"expected PYOPENGL_PLATFORM to be {kind}, as MUJOCO_GL is, found {platform}; fix: unset PYOPENGL_PLATFORM"
        )
    if kind in PACKAGES and not ctypes.util.find_library(PACKAGES[kind][0]):
        library, package = PACKAGES[kind]
        other = "" if kind == "egl" else ", or unset MUJOCO_GL"
        raise UserError(f"MUJOCO_GL={kind}: expected lib{library}, found none; fix: apt-get install {package}{other}")
    if kind == "glfw" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise UserError("MUJOCO_GL=glfw: expected a display, found none; fix: unset MUJOCO_GL, then EGL needs none")
    if kind == "egl":
        _check_device()


def _check_device() -> None:
    chosen, count = os.environ.get("MUJOCO_EGL_DEVICE_ID"), _devices()
    if count == 0:
        raise UserError(
            "MUJOCO_GL=egl: expected a device that draws, found none; fix: apt-get install libegl-mesa0 "
            "libgl1-mesa-dri, or a GPU's driver"
        )
    if chosen is None or count is None:
        return
    known = f"from 0 to {count - 1}" if count > 1 else "0"
    if not (chosen.isdigit() and int(chosen) < count):
        raise UserError(f"MUJOCO_EGL_DEVICE_ID: expected {known}, found {chosen}; fix: one of these, or unset it")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if visible and chosen not in visible:  # Robosuite insists
        raise UserError(
            f"MUJOCO_EGL_DEVICE_ID: expected one of CUDA_VISIBLE_DEVICES ({visible}), found {chosen}; fix: one of "
            "these, or unset one of both"
        )


def _devices() -> int | None:
    """How many devices EGL can draw with; None if it does not tell."""
    try:
        library = ctypes.CDLL(ctypes.util.find_library("EGL"))
        library.eglGetProcAddress.restype = ctypes.c_void_p
        address = library.eglGetProcAddress(b"eglQueryDevicesEXT")
        kind = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int))
        count = ctypes.c_int()
        return count.value if address and kind(address)(0, None, ctypes.byref(count)) else None
    except (OSError, AttributeError):
        return None
