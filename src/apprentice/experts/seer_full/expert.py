"""The full Seer behind the `ActionExpert` interface."""

from apprentice.experts.seer.expert import SeerExpert


class SeerFullExpert(SeerExpert):
    """Frames of one time are a history of one; frames (B, F, ...) of several end with the present one.

    A student that reads the present alone is taught with a history of one; a student with a history of its own with all
    that the window holds.
    """

    @property
    def most_obs_steps(self) -> int:
        return self.policy.config.n_obs_steps
