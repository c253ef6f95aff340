"""The full Seer behind the `ActionExpert` interface."""

from apprentice.experts.seer.expert import SeerExpert


class SeerFullExpert(SeerExpert):
    """Frames of one time are a history of one; frames (B, F, ...) of several end with the present one."""
