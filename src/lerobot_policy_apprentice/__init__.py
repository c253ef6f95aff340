"""What LeRobot imports to find our policies; importing a module of the trio registers it."""

from apprentice.experts.seer import configuration_seer, processor_seer
from apprentice.experts.seer_full import configuration_seer_full, processor_seer_full
from apprentice.policy import configuration_apprentice, processor_apprentice

__all__ = [
    "configuration_apprentice",
    "configuration_seer",
    "configuration_seer_full",
    "processor_apprentice",
    "processor_seer",
    "processor_seer_full",
]
