import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from apprentice.nano.scenes.catalogue import CATEGORIES
from apprentice.nano.tokenizer import train_tokenizer

WORDS = ["put the bowl on the plate", "how far is the plate?", "point to the stove", "which objects are there?"]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(WORDS * 10, vocab_size=700)


@pytest.fixture(scope="session")
def fake_scenes() -> Callable[[Path, str, int], None]:
    """Writes a shard with random pictures, in the form that `scenes.generate` writes."""
    return _fake_scenes


def _fake_scenes(folder: Path, scene: str, count: int) -> None:
    rng = np.random.default_rng(0)

    def thing(name: str, y: float) -> dict:
        return {
            "id": f"{name}_1",
            "name": name,
            "position": [0.1, y, 0.9],
            "top": 0.95,
            "parent": "",
            "relation": "",
            "movable": True,
            "held": False,
            "px": [[int(rng.integers(8, 120)), 50], None],
            "seen": [90, 0],
        }

    gripper = {"position": [0, 0, 1.1], "opening": 0.08, "px": [[60, 30], [64, 106]], "height": 0.2}
    facts = [
        {"scene": scene, "table": 0.9, "gripper": gripper, "things": [thing("black bowl", 0.1), thing("plate", -0.1)]}
        for _ in range(count)
    ]
    np.savez(
        folder / f"{scene}-000.npz",
        images=rng.integers(0, 256, (count, 2, 128, 128, 3), dtype=np.uint8),
        category=rng.integers(0, len(CATEGORIES), (count, 2, 32, 32), dtype=np.uint8),
        depth=rng.uniform(0.2, 2, (count, 2, 32, 32)).astype(np.float16),
        facts=np.frombuffer(json.dumps(facts).encode(), np.uint8),
    )
