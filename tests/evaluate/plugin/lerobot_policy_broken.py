"""A LeRobot plugin: an ACT that breaks when it plans, in a way that its checkpoint names."""

import os
import time
from dataclasses import dataclass
from typing import Any

from lerobot.configs import PreTrainedConfig
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACTPolicy
from torch import Tensor

from apprentice.evaluate.selfcheck import faults

faults.FIRST_PLAN = 2.0  # s; a test has no two minutes


@PreTrainedConfig.register_subclass("broken")
@dataclass
class BrokenConfig(ACTConfig):
    how: str = "nan"  # or hang, or die


class BrokenPolicy(ACTPolicy):
    config_class = BrokenConfig
    name = "broken"

    def predict_action_chunk(self, batch: dict[str, Tensor]) -> Tensor:
        if self.config.how == "hang":
            time.sleep(3600)
        if self.config.how == "die":
            os.abort()
        return super().predict_action_chunk(batch) * float("nan")

    def select_action(self, batch: dict[str, Tensor]) -> Any:
        return self.predict_action_chunk(batch)[:, 0]
