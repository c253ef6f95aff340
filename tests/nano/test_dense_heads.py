"""What pre-training's read-outs and the probe measure, against closed forms and planted maps."""

import numpy as np
import pytest
import torch
from tests.nano.tiny_nano import TINY

from apprentice.nano.batches import ENTITIES, Chat
from apprentice.nano.dense_heads import DenseHead, heat_loss
from apprentice.nano.model import build_model, build_processor
from apprentice.nano.scenes.catalogue import CATEGORIES, CELL
from apprentice.nano.scenes.dataset import load
from apprentice.nano.score.probe import _ridge, linear
from apprentice.nano.score.validation import HeldOut

PLATE, BOWL = CATEGORIES.index("plate"), CATEGORIES.index("black bowl")


def test_a_planted_linear_map_is_found_exactly():
    """More rows than features, no noise: least squares is the map itself."""
    generator = torch.Generator().manual_seed(0)
    features, asked = (torch.randn(n, 12, generator=generator) for n in (400, 50))
    planted, shift = torch.randn(12, 3, generator=generator), torch.tensor([1.0, -2.0, 0.5])
    guess = linear(features, features @ planted + shift, asked)
    assert torch.allclose(guess, asked @ planted + shift, atol=0.02)


def test_the_probe_is_ridge_regression():
    """Solved in the space of rows, it is the textbook's (X'X + a I)^-1 X'y with an intercept."""
    generator = torch.Generator().manual_seed(1)
    features, asked = (torch.randn(n, 60, generator=generator).double() + 3 for n in (40, 9))
    targets = torch.randn(40, 3, generator=generator).double()
    centred = features - features.mean(0)
    damping = 0.1 * (centred**2).sum(1).mean() * torch.eye(60)
    weights = torch.linalg.solve(centred.T @ centred + damping, centred.T @ (targets - targets.mean(0)))
    expected = (asked - features.mean(0)) @ weights + targets.mean(0)
    assert torch.allclose(_ridge(features, targets, asked, 0.1), expected, atol=1e-8)


def test_tokens_cover_the_cells_below_them():
    """The category read off a token is that of its own square of the picture, row by row."""
    head = DenseHead(TINY)
    side, cells = head.side, head.cells
    assert side * cells * CELL == TINY.image
    with torch.no_grad():
        head.category.weight.zero_(), head.category.bias.zero_()
        bias = head.category.bias.view(cells, cells, len(CATEGORIES))
        bias[1, 3, PLATE] = 5.0  # row 1, column 3 of every token's square
        head.category.weight.view(cells, cells, len(CATEGORIES), 32)[0, 0, BOWL, 0] = 1.0
    tokens = torch.zeros(2, TINY.image_tokens, 32)
    tokens[0, side + 2, 0] = 7.0  # the token in row 1, column 2
    logits = head.categories(tokens).unflatten(1, (side * cells, side * cells))
    for row in range(side * cells):
        for column in range(side * cells):
            plate = row % cells == 1 and column % cells == 3
            assert logits[0, row, column, PLATE] == (5.0 if plate else 0.0)
    bowl = (logits[0, :, :, BOWL] > 0).nonzero().tolist()
    assert bowl == [[cells, 2 * cells]] and not logits[1, :, :, BOWL].any()


def test_heat_is_the_share_that_lies_on_the_thing():
    """Closed form: with equal logits the share of a thing that covers k of P cells is k / P."""
    labels = torch.zeros(1, 1024, dtype=torch.long)
    labels[0, :8], labels[0, 100:132] = PLATE, BOWL
    logits = torch.zeros(1, 1024, len(CATEGORIES))
    expected = -(np.log(8 / 1024) + np.log(32 / 1024)) / 2
    assert heat_loss(logits, labels).item() == pytest.approx(expected, rel=1e-5)
    logits[0, :8, PLATE] = logits[0, 100:132, BOWL] = 50.0
    assert heat_loss(logits, labels).item() == pytest.approx(0.0, abs=1e-5)
    assert heat_loss(logits, torch.zeros_like(labels)).item() == 0.0  # nothing to search for


def test_perfect_read_outs_cost_nothing():
    head, generator = DenseHead(TINY), torch.Generator().manual_seed(0)
    places = torch.randn(1, 2, len(ENTITIES), 3, generator=generator)
    with torch.no_grad():
        for layer, place in ((head.workspace, places[0, 0]), (head.offset, places[0, 1])):
            layer.weight.zero_(), layer.bias.copy_(10 * place.flatten())
    batch = {
        "category": torch.zeros(1, 2, 32, 32, dtype=torch.long), "depth": torch.ones(1, 2, 32, 32),
        "positions": places, "known": torch.ones(1, 2, len(ENTITIES), dtype=torch.bool),
    }  # fmt: skip
    tokens = torch.zeros(2, TINY.image_tokens, 32)
    assert head(tokens, batch)["position"].item() == pytest.approx(0.0, abs=1e-6)
    batch["known"][0, 1] = False
    batch["positions"] = places + torch.tensor([0.0, 5.0])[None, :, None, None]
    assert head(tokens, batch)["position"].item() == pytest.approx(0.0, abs=1e-6)  # what is not known costs nothing


def test_the_searcher_learns_where_things_are():
    """Each thing's place is written into one token; a query by name must find that token among 32."""
    torch.manual_seed(0)
    head = DenseHead(TINY).search
    generator = torch.Generator().manual_seed(0)
    names = torch.randn(4, 26, generator=generator)

    def draw(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        tokens, places = torch.zeros(count, 32, 32), torch.rand(count, 4, 3, generator=generator) * 4 - 2
        for row in range(count):
            for thing, at in enumerate(torch.randperm(32, generator=generator)[:4]):
                tokens[row, at, :3], tokens[row, at, 3:29] = places[row, thing], names[thing]
        return tokens.reshape(2 * count, 16, 32), places

    optimizer = torch.optim.Adam(head.parameters(), lr=5e-3)
    for _ in range(200):
        tokens, places = draw(16)
        loss = (head(tokens)[:, 1, :4] - places).abs().mean()
        optimizer.zero_grad(), loss.backward(), optimizer.step()
    tokens, places = draw(100)
    assert (head(tokens)[:, 1, :4] - places).abs().mean() < 0.3 < (places - places.mean(0)).abs().mean()


def test_checks_measure_what_they_say(tokenizer, fake_scenes, tmp_path):
    """A head without weights guesses the middle and the first cell: its errors follow from the stored facts."""
    fake_scenes(tmp_path, "KITCHEN_SCENE1", 20)
    model, head = build_model(TINY, tokenizer).eval(), DenseHead(TINY)
    for parameter in head.parameters():
        parameter.data.zero_()
    check = HeldOut(tmp_path, "layouts", Chat.of(build_processor(TINY, tokenizer)), layouts=10)
    found = check.run(model, head, answering=True)
    stored = load(tmp_path, "layouts")
    rows = np.linspace(0, len(stored["facts"]) - 1, 10).astype(int)
    places = [t["position"] for row in rows for t in stored["facts"][row]["things"]]
    far = np.linalg.norm(np.array(places) - [0, 0, 0.9], axis=1)  # the kitchen's middle, on its table
    assert found["workspace"] == pytest.approx(1000 * np.median(far), abs=1)
    hits = [
        picture.flat[0] == thing
        for picture in stored["category"][rows].reshape(-1, 32, 32)
        for thing in np.unique(picture[picture > CATEGORIES.index("gripper")])
    ]
    assert found["heat"] == pytest.approx(np.mean(hits), abs=1e-4)
    assert found["loss category"] == pytest.approx(np.log(len(CATEGORIES)), abs=1e-3)
    assert 0 <= found["point"] <= 1 and 0 <= found["all answers"] <= 1
