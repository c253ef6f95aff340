"""Real-time chunking (RTC) for policies that plan a chunk in one pass: `lerobot-rollout --inference.type=rtc`.

LeRobot then plans in a thread while the robot carries out what is left over of the last chunk. RTC (arXiv 2506.07339)
steers a denoiser towards that left-over. Here nothing is denoised, so the finished chunk is mixed with it, by the
weights of LeRobot's own RTC: 1 for the steps that pass while it is planned, which the robot carries out anyway, then
falling to 0 at the execution horizon. Whatever planning really took, up to the delay that was expected, the robot goes
on where it is.
"""

from typing import Any

from lerobot.policies.rtc.modeling_rtc import RTCProcessor
from torch import Tensor

from apprentice.experts.base import ActionDecoder


class RealTime:
    """Goes in front of LeRobot's PreTrainedPolicy. Its chunks begin with the action of the present observation."""

    config: Any
    decoder: ActionDecoder
    rtc: RTCProcessor | None = None

    def supports_rtc(self) -> bool:
        """Tell LeRobot whether `predict_action_chunk` may be called whenever there is time, with what is left over.

        A policy with a history plans at its own intervals.
        """
        return self.config.n_obs_steps == 1

    def init_rtc_processor(self) -> None:
        """LeRobot calls this when it has put its settings into `config.rtc_config`."""
        self.rtc = RTCProcessor(self.config.rtc_config)

    def continued(
        self, chunk: Tensor, prev_chunk_left_over: Tensor | None = None, inference_delay: int = 0, **_: Any
    ) -> Tensor:
        """Let a chunk (B, T, A) go on from the left-over (n, A) of the last one, both beginning at the same step.

        `inference_delay` is how many steps planning is expected to take. LeRobot fills left-overs up with zeros; they
        count as nothing.
        """
        if self.rtc is None or not self.rtc.rtc_config.enabled or prev_chunk_left_over is None:
            return chunk
        steps = prev_chunk_left_over.any(-1).nonzero()
        count = min(int(steps[-1]) + 1, chunk.shape[1]) if len(steps) else 0
        end = min(self.rtc.rtc_config.execution_horizon, count)
        weights = self.rtc.get_prefix_weights(inference_delay, end, chunk.shape[1])[:count, None].to(chunk)
        mixed = chunk.clone()
        mixed[:, :count] = self.decoder.mix(chunk[:, :count], prev_chunk_left_over[:count].to(chunk), weights)
        return mixed
