"""What a pass keeps for the passes after it: keys and values, which can be stored as one tensor."""

from copy import copy, deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from apprentice.vlm.prompt import Prompt
from apprentice.vlm.quantized import unpacked

PLAIN = (DynamicLayer, DynamicSlidingWindowLayer)  # layers that hold keys and values, and nothing else


@dataclass
class Prefix:
    """What a pass needs of what was before it: keys and values, and the prompt that they are of."""

    cache: Cache
    prompt: Prompt

    def pack(self) -> Tensor | None:
        """It as one tensor (B, layers, 2, heads, L, d), or None if it is more, or less, than keys and values."""
        layers: list[Any] = self.cache.layers
        if any(type(layer) not in PLAIN for layer in layers):
            return None
        shapes = {layer.keys.shape for layer in layers} | {layer.values.shape for layer in layers}
        if len(shapes) > 1 or shapes.pop()[-2] != self.prompt.ids.shape[1]:  # a window forgets what is before it
            return None
        return torch.stack([torch.stack([layer.keys, layer.values], 1) for layer in layers], 1)

    @classmethod
    def unpack(cls, packed: Tensor, prompt: Prompt, model: Any) -> "Prefix":
        """What `pack` returned, for a prompt that is as long and for the same model; 8-bit numbers are unpacked."""
        cache = DynamicCache(config=model.get_decoder().config)
        whole = unpacked(packed, model.dtype) if packed.dtype == torch.uint8 else packed.to(model.dtype)
        for number, layer in enumerate(whole.unbind(1)):
            cache.update(layer[:, 0], layer[:, 1], number)
        return cls(cache, prompt)

    def unshared(self) -> "Prefix":
        """The same, which a pass may let grow: plain layers then get new tensors, and the old ones stay."""
        cache = copy(self.cache)
        cache.layers = [copy(layer) if type(layer) in PLAIN else deepcopy(layer) for layer in self.cache.layers]
        return Prefix(cache, self.prompt)
