"""Read-outs of the image tokens that exist in pre-training alone: they make the tokens hold where things are."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apprentice.nano.batches import ENTITIES
from apprentice.nano.model import NanoConfig
from apprentice.nano.scenes.catalogue import CATEGORIES, CELL

FIRST_THING = CATEGORIES.index("gripper")  # categories before it fill the picture: they are not searched for
ROOM = 0.25  # weight of a cell that shows the room or the arm, against one that shows a thing
READER = 64  # width of a query and of a token's key


class DenseHead(nn.Module):
    """Read-outs, linear in the tokens but for `Searcher`.

    category: of every 4 px cell, from the token that covers it. heat: over all cells of an image, where a thing is.
    depth: log m, of every cell. position: of every thing in the workspace (agent view's tokens) and from the hand (all
    tokens), which is what a linear probe reads. search: the same two from a query by name that attends to the tokens.
    """

    def __init__(self, config: NanoConfig):
        super().__init__()
        self.side = int(config.image_tokens**0.5)
        self.cells = config.image // self.side // CELL
        width, area = config.width, self.cells**2
        self.category = nn.Linear(width, area * len(CATEGORIES))
        self.depth = nn.Linear(width, area)
        self.workspace = nn.Linear(width * config.image_tokens, 3 * len(ENTITIES))
        self.offset = nn.Linear(2 * width * config.image_tokens, 3 * len(ENTITIES))
        self.search = Searcher(width, config.image_tokens)

    def forward(self, tokens: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Losses of image tokens (2 B, T, H): category and heat (nats), depth (log m), position and search (dm)."""
        labels = batch["category"].flatten(0, 1).flatten(1)  # (2 B, S * S)
        logits = self.categories(tokens)
        weight = torch.full((len(CATEGORIES),), 1.0, device=tokens.device)
        weight[:FIRST_THING] = ROOM
        depth = (self._picture(self.depth(tokens).unsqueeze(-1)).squeeze(-1)).float()
        target = 10 * batch["positions"]
        return {
            "category": F.cross_entropy(logits.flatten(0, 1), labels.flatten(), weight),
            "heat": heat_loss(logits, labels),
            "depth": F.l1_loss(depth, batch["depth"].flatten(0, 1).flatten(1).clamp(min=0.01).log()),
            "position": _distance(self.positions(tokens), target, batch["known"]),
            "search": _distance(self.search(tokens), target, batch["known"]),
        }

    def categories(self, tokens: Tensor) -> Tensor:
        """Logits (2 B, S * S, C) of every cell of each image, row by row."""
        return self._picture(self.category(tokens).unflatten(-1, (self.cells**2, -1))).float()

    def positions(self, tokens: Tensor) -> Tensor:
        """Positions (B, 2, E, 3) in dm: in the workspace, and from the hand."""
        flat = tokens.reshape(len(tokens) // 2, 2, -1)
        guess = torch.stack([self.workspace(flat[:, 0]), self.offset(flat.flatten(1))], 1)
        return guess.unflatten(-1, (len(ENTITIES), 3)).float()

    def _picture(self, values: Tensor) -> Tensor:
        """What tokens say of their cells (N, T, cells * cells, C), in the order of the picture (N, S * S, C)."""
        n, c = self.side, self.cells
        return values.unflatten(2, (c, c)).unflatten(1, (n, n)).transpose(2, 3).flatten(1, 4)


class Searcher(nn.Module):
    """A query for each thing that attends, once, to the tokens of both images: as a language model would look."""

    def __init__(self, width: int, tokens: int):
        super().__init__()
        self.query = nn.Parameter(torch.randn(len(ENTITIES), 2, READER) * READER**-0.5)
        self.key = nn.Linear(width, 2 * READER)
        self.value = nn.Linear(width, 2 * READER)
        self.place = nn.Parameter(torch.randn(2 * tokens, 2 * READER) * 0.02)  # what lies where
        self.out = nn.Linear(4 * READER, 6)
        self.hand = nn.Linear(width, 2 * READER)
        self.bias = nn.Parameter(torch.zeros(2, len(ENTITIES), 3))

    def forward(self, tokens: Tensor) -> Tensor:
        """Positions (B, 2, E, 3) in dm from tokens (2 B, T, H)."""
        both = tokens.reshape(len(tokens) // 2, -1, tokens.shape[-1])
        keys, values = (layer(both).unflatten(-1, (2, READER)) for layer in (self.key, self.value))
        scores = torch.einsum("btnd,end->bent", keys, self.query * READER**0.5) * READER**-0.5
        weights = scores.softmax(-1)
        held = torch.einsum("bent,btnd->bend", weights, values + self.place.unflatten(-1, (2, READER)))
        common = F.gelu(self.hand(both)).mean(1, keepdim=True).expand(-1, len(ENTITIES), -1)  # where the hand is
        guess = self.out(F.gelu(torch.cat([held.flatten(2), common], -1)))
        return (guess.unflatten(-1, (2, 3)).transpose(1, 2) + self.bias).float()


def heat_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """How little of each thing's heat lies on it: -log of its share (nats), a mean over the things of all images.

    A thing's heat is the softmax of its logit over the cells (N, P, C) of an image; `shown` (N, P) is what they show.
    """
    heat = logits.log_softmax(1).transpose(1, 2)  # (N, C, P)
    there = F.one_hot(labels, logits.shape[-1]).transpose(1, 2).bool()
    share = heat.masked_fill(~there, -torch.inf).logsumexp(-1)
    present = there.any(-1)
    present[:, :FIRST_THING] = False
    return -(share[present].sum() / present.sum().clamp(min=1))


def _distance(guess: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """Mean L1 distance per axis over the positions (B, 2, E, 3) that are known (B, 2, E)."""
    far = (guess - target).abs().mean(-1)
    return (far * known).sum() / known.sum().clamp(min=1)
