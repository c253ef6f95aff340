"""Images that were encoded before, and tokens of our own, in the place of what a model's forward pass would compute."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def filled(model: Any, image_tokens: Tensor | None, listed: bool, tokens: Tensor | None) -> Iterator[None]:
    """For one pass of a Hugging Face model of width H, replace what it computes; afterwards it is as it was.

    Args:
        model: the model.
        image_tokens: (B, n, K * H), which its vision path yields; None for a pass without images.
        listed: whether that path yields a list with each image's tokens, instead of one tensor.
        tokens: (B, T, S, H), which replace the last S rows of each of T equal parts of the input embeddings; None for
            a pass without tokens of our own.
    """
    embeddings = model.get_input_embeddings()

    def seen(*_: Any, **__: Any) -> SimpleNamespace:
        assert image_tokens is not None
        first, *deeper = image_tokens.to(model.dtype).split(embeddings.embedding_dim, -1)
        features = list(first) if listed else first
        return SimpleNamespace(pooler_output=features, deepstack_features=[level.flatten(0, 1) for level in deeper])

    def fill(module: nn.Module, inputs: tuple[Tensor], rows: Tensor) -> Tensor:
        if tokens is None:
            return rows
        turns = rows.unflatten(1, (tokens.shape[1], -1))
        return torch.cat([turns[:, :, : -tokens.shape[2]], tokens.to(rows.dtype)], 2).flatten(1, 2)

    base = model.base_model
    if image_tokens is not None:
        base.get_image_features = seen
    handle = embeddings.register_forward_hook(fill)
    try:
        yield
    finally:
        handle.remove()
        vars(base).pop("get_image_features", None)
