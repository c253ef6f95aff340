"""What LeRobot imports to find our policies, and our SO-101 twin as an environment and as a robot."""

from contextlib import suppress
from importlib import import_module

from apprentice.common import camera_size
from apprentice.experts.seer import configuration_seer, processor_seer
from apprentice.experts.seer_full import configuration_seer_full, processor_seer_full
from apprentice.policy import configuration_apprentice, processor_apprentice

__all__ = [
    "camera_size",
    "configuration_apprentice",
    "configuration_seer",
    "configuration_seer_full",
    "processor_apprentice",
    "processor_seer",
    "processor_seer_full",
]

# Importing a module of a policy's trio, or of a processor step, registers it. The twin is no part of the method, and is
# not packed with it (`apprentice.offline`): hence by name, if it is there.
with suppress(ModuleNotFoundError):
    import_module("apprentice.simulators.so101.plugin.environment")
    import_module("apprentice.simulators.so101.plugin.twinrobot")
