"""The steps that a student reads: those of a batch in training, and the episode that it remembers while it acts.

A history is a chat. Each step is a turn: the user shows the images and says the instruction, the assistant's turn is
the state token and the action tokens. Steps lie as far apart as plans do, `n_action_steps` frames, so that at run time
a student sees what it saw in training. There every step of a history is supervised, so one that begins in the middle of
an episode is as familiar as one that begins with it, at every length up to K.
"""

from dataclasses import dataclass
from typing import Any

import torch
from lerobot.utils.constants import ACTION, OBS_STATE
from torch import Tensor

from apprentice.common.errors import UserError
from apprentice.data.batch import ACTION_IS_PAD, EXPERT_LATENTS, STATE_IS_PAD, TASK, Batch
from apprentice.data.items import present
from apprentice.policy.configuration_apprentice import ApprenticeConfig
from apprentice.vlm.base import VLM
from apprentice.vlm.image_settings import Size
from apprentice.vlm.prefix import Prefix


@dataclass
class Turn:
    """A step of the episode as a turn of the chat: B instructions, image tokens (B, n, C), our tokens (B, S, H)."""

    instructions: list[str]
    image_tokens: Tensor
    tokens: Tensor


@dataclass(frozen=True)
class History:
    """The steps of an episode up to now, at most K of them, and the keys and values that the VLM keeps of them.

    It does not change: reading one more step yields another history, which the policy takes over once it has a plan. So
    a step whose plan failed is not remembered.

    A step is read after those keys and values, so it costs about what a step without history costs. When K steps are
    full, the older half is forgotten and the others, K // 2 + 1 with the new one, are read anew from their image
    tokens. So what comes out is at all times what reading the remembered steps from nothing would give; keys and values
    hold no trace of older ones. Over a long episode a step then costs 1.75 turns on average at K = 7, and 2 at K = 10.
    """

    most: int
    turns: tuple[Turn, ...] = ()
    past: Prefix | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "History":
        return self

    @torch.no_grad()
    def read(self, vlm: VLM, images: tuple[Size, ...], turn: Turn) -> tuple[Tensor, "History"]:
        """Read one more turn, after images of these sizes; return the last hidden states (B, S, H) of its tokens, and
        the history with this turn.

        Raises UserError if it is of more or fewer episodes than the turns before.
        """
        count = len(turn.tokens)
        if self.turns and len(self.turns[0].tokens) != count:
            raise UserError(
                f"expected observations of {len(self.turns[0].tokens)} episodes as before, found {count}; "
                "fix: call the policy's reset() between episodes"
            )
        turns, past = (*self.turns, turn), self.past and self.past.unshared()
        if len(turns) > self.most:
            turns, past = turns[-(self.most // 2 + 1) :], None
        new = turns if past is None else (turn,)
        begins = [past is None and number == 0 for number in range(len(new))]
        hidden, past = vlm.turns(
            [vlm.prompt(each.instructions, images, first=[b] * count) for each, b in zip(new, begins, strict=True)],
            torch.stack([each.image_tokens for each in new], 1),
            torch.stack([each.tokens for each in new], 1),
            past,
            keep=True,
        )
        return hidden[:, -1], History(self.most, turns, past)


def own_steps(config: ApprenticeConfig, batch: Batch) -> Batch:
    """The student's own steps of every observation (B, K, ...), or (B, ...) if it reads the present alone, of a batch
    that may hold more for the expert.
    """
    deltas, found = config.observation_delta_indices, batch[OBS_STATE].shape
    if deltas is None or len(found) == 2 or found[1] == config.n_obs_steps > 1:
        return batch
    if config.n_obs_steps == 1:
        return present(batch)
    where = [deltas.index(step) for step in config.history]
    return {key: value[:, where] if key.startswith("observation.") else value for key, value in batch.items()}


def step_is_pad(batch: Batch) -> Tensor:
    """Which of the student's own steps (B, K) lie before the episode's beginning."""
    is_pad = batch.get(STATE_IS_PAD)
    if is_pad is None:
        is_pad = torch.zeros(batch[OBS_STATE].shape[:2], dtype=torch.bool)
    return is_pad.to(batch[OBS_STATE].device)


def each_step(config: ApprenticeConfig, batch: Batch, valid: Tensor) -> Batch:
    """The M steps that are `valid` (B, K), which lie in their episodes, as M samples: the instruction, the expert's
    latents or what the expert reads, and the actions of the decoder's loss.
    """
    rows, steps = valid.nonzero(as_tuple=True)
    samples: Batch = {TASK: [batch[TASK][row] for row in rows.tolist()]}

    def at(value: Tensor, offsets: list[int], known: list[int]) -> Tensor:
        where = torch.tensor([[known.index(step + offset) for offset in offsets] for step in config.history])
        return value[rows[:, None], where.to(rows.device)[steps]]

    for key in (ACTION, ACTION_IS_PAD):
        if key in batch:
            samples[key] = at(batch[key], list(range(*config.action_window)), config.action_delta_indices)
    if EXPERT_LATENTS in batch:
        samples[EXPERT_LATENTS] = batch[EXPERT_LATENTS][rows, steps]
    elif config.reads_expert:
        deltas, past = config.observation_delta_indices, list(range(1 - config.expert_obs_steps, 1))
        assert deltas is not None
        seen = {key: at(value, past, deltas) for key, value in batch.items() if key.startswith("observation.")}
        samples |= seen if len(past) > 1 else present(seen)
    return samples
