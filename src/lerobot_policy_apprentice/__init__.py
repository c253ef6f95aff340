"""What LeRobot imports to find our policies; importing a module of the trio registers it."""

from apprentice.experts.seer import configuration_seer, processor_seer

__all__ = ["configuration_seer", "processor_seer"]
