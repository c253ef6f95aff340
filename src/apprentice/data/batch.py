"""The batch: what goes from datasets to experts and to the student, as LeRobot's data loader yields it, and what
training adds.

Letters: B samples; K steps of observation, oldest first, of a policy that reads more than the present; cameras of h x w
px; S entries of the state; W actions of A entries; N latents of D entries; n image tokens of C entries, L tokens in the
VLM's prefix, each with keys and values of d entries.

| key | shape | written by | read by |
| --- | --- | --- | --- |
| `observation.images.top`, ... | (B, 3, h, w) or (B, K, 3, h, w), uint8 or 0..1 | data, samples | experts, student |
| `observation.state` | (B, S) or (B, K, S), in the robot's units | data, samples | experts, student |
| `observation.state_is_pad` | (B, K), bool: step before the episode's beginning | data, samples | experts, student |
| `task` | B instructions, str | data, samples | experts, student |
| `action` | (B, W, A), in the robot's units; for a decoder, normalised | data, samples | losses |
| `action_is_pad` | (B, W), bool: action outside the episode | data, samples | losses |
| `expert_latents` | (B, N, D) or (B, K, N, D) | cache | the student's loss |
| `image_tokens` | (B, n, C) or (B, K, n, C) | cache | student |
| `prefix` | (B, layers, 2, heads, L, d) | cache | student, to align |
| `state_noise` | as `observation.state`, standard normal | samples | student, in training |
| `step_count` | number: steps that the latents' loss is the mean of | samples | the student's loss |
| `action_count` | number: actions that a decoder's loss is the mean of | samples | the decoders' losses |

"data" is `apprentice.data.items`, or a robot, which sends observations and an instruction; "samples" and "cache" are
`apprentice.distill.samples` and `apprentice.distill.caches.cache`.

All from `expert_latents` on may be missing: the policy then computes what it needs, from this batch alone. The two
counts make a batch a share of a larger one, see `Samples.share`.
"""

from typing import Any

from lerobot.utils.constants import ACTION, OBS_STATE

Batch = dict[str, Any]

TASK = "task"
STATE_IS_PAD = f"{OBS_STATE}_is_pad"
ACTION_IS_PAD = f"{ACTION}_is_pad"
EXPERT_LATENTS = "expert_latents"
IMAGE_TOKENS = "image_tokens"
PREFIX = "prefix"
STATE_NOISE = "state_noise"
STEP_COUNT = "step_count"
ACTION_COUNT = "action_count"
COUNTS = (STEP_COUNT, ACTION_COUNT)
