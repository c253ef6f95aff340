"""The full Seer behind the `ActionExpert` interface."""

from apprentice.experts.seer.expert import SeerExpert
from apprentice.experts.seer_full.modeling_seer_full import SeerFullPolicy


class SeerFullExpert(SeerExpert):
    """Frames of one time are a history of one; frames (B, F, ...) of several end with the present one.

    A student that reads the present alone is taught with a history of one; a student with a history of its own with all
    that the window holds.
    """

    policy_class = SeerFullPolicy

    @property
    def most_obs_steps(self) -> int:
        return self.policy.config.n_obs_steps
