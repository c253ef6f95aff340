"""Prompts as tensors, and the turns of a chat as one prompt."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass
class Prompt:
    """Tokenised prompts, padded to one length.

    Attributes:
        ids: (B, L) token ids.
        mask: (B, L), 0 on padding.
        positions: (A, B, L), 0 on padding; A is 3 for a language model that counts time, rows and columns, else 1.
        types: (B, L) each; what else the model reads of every token (`token_type_ids`), by name.
    """

    ids: Tensor
    mask: Tensor
    positions: Tensor
    types: dict[str, Tensor]

    def __len__(self) -> int:
        """L."""
        return self.ids.shape[1]

    def to(self, device: torch.device | str) -> "Prompt":
        """The same on another device."""
        types = {name: value.to(device) for name, value in self.types.items()}
        return Prompt(self.ids.to(device), self.mask.to(device), self.positions.to(device), types)

    def padded(self, length: int, token: int) -> "Prompt":
        """The same with `token` as padding on the left, `length` tokens long."""
        more = (length - len(self), 0)
        types = {name: pad(value, more) for name, value in self.types.items()}
        return Prompt(pad(self.ids, more, value=token), pad(self.mask, more), pad(self.positions, more), types)

    def extended(self, count: int, token: int, kind: int) -> "Prompt":
        """The same with `count` placeholders (`token`, of type `kind`) at the end of every row that is not empty."""
        mask = self.mask.amax(1, keepdim=True).expand(-1, count)
        positions = (self.next_position[:, None] + torch.arange(count, device=self.ids.device)) * mask
        return Prompt(
            pad(self.ids, (0, count), value=token),
            torch.cat([self.mask, mask], 1),
            torch.cat([self.positions, positions.expand(len(self.positions), -1, -1)], -1),
            {name: pad(value, (0, count), value=kind) for name, value in self.types.items()},
        )

    def without(self, is_pad: Tensor) -> "Prompt":
        """The same with nothing but padding in the rows that `is_pad` (B,) marks."""
        mask = self.mask * ~is_pad[:, None]
        return Prompt(self.ids, mask, self.positions * mask, self.types)

    @property
    def next_position(self) -> Tensor:
        """Where (B,) the next token would stand."""
        return (self.positions.amax((0, 2)) + 1) * self.mask.any(1)


class Recent:
    """Prompts that were made before, by what they were made of. Together they hold at most `most` tokens, or are one
    prompt: those that were asked for the longest time ago are forgotten.
    """

    def __init__(self, make: Callable[..., Prompt], most: int):
        self._make, self._most, self._tokens = make, most, 0
        self._kept: OrderedDict[tuple[Any, ...], Prompt] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, key: tuple[Any, ...]) -> Prompt:
        if key not in self._kept:
            self._kept[key] = self._make(*key)
            self._tokens += len(self._kept[key])
        self._kept.move_to_end(key)
        while self._tokens > self._most and len(self._kept) > 1:
            self._tokens -= len(self._kept.popitem(last=False)[1])
        return self._kept[key]

    def clear(self) -> None:
        """Forget all."""
        self._kept.clear()
        self._tokens = 0


def stacked(prompts: Sequence[Prompt]) -> Prompt:
    """Prompts of one length as one batch."""
    types = {name: torch.cat([each.types[name] for each in prompts]) for name in prompts[0].types}
    ids, mask = torch.cat([each.ids for each in prompts]), torch.cat([each.mask for each in prompts])
    return Prompt(ids, mask, torch.cat([each.positions for each in prompts], 1), types)


def joined(turns: Sequence[Prompt]) -> Prompt:
    """Turns one after the other, each standing where the one before it ended."""
    whole = turns[0]
    for turn in turns[1:]:
        positions = (turn.positions + whole.next_position[:, None]) * turn.mask
        whole = Prompt(
            torch.cat([whole.ids, turn.ids], 1),
            torch.cat([whole.mask, turn.mask], 1),
            torch.cat([whole.positions, positions], -1),
            {name: torch.cat([value, turn.types[name]], 1) for name, value in whole.types.items()},
        )
    return whole
