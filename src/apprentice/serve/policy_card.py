"""What is known of a policy before it acts, and how whoever runs it wants its plans carried out."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PolicyCard:
    """Which policy ran: its type, the fingerprint of its checkpoint, and after how many actions it plans again."""

    type: str
    checkpoint: str
    n_action_steps: int


@dataclass(frozen=True)
class Execution:
    """How the actions of a plan are carried out, in place of what the checkpoint says where a field is not None.

    Attributes:
        n_action_steps: actions of a plan that are carried out before the policy plans again.
        ensembling: coefficient of temporal ensembling: the policy plans after each action, and what all plans say of
            the next one is averaged with weights exp(-coefficient * i), the oldest plan's i being 0.
    """

    n_action_steps: int | None = None
    ensembling: float | None = None


PLAIN = Execution()
