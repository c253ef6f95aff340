"""What LeRobot imports to find our policies; importing a module of the trio registers it."""

from apprentice.experts.seer import configuration_seer, processor_seer
from apprentice.policy import configuration_apprentice, processor_apprentice

__all__ = ["configuration_apprentice", "configuration_seer", "processor_apprentice", "processor_seer"]
