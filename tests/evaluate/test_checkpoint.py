"""Checkpoints of LeRobot's kinds act as `lerobot-eval` makes them act, and otherwise only where a protocol says so."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from tests.experts import zoo
from tests.support import CAMERAS

from apprentice.common.errors import UserError
from apprentice.data.contract import Contract
from apprentice.serve.checkpoint import Checkpoint, inspect_checkpoint
from apprentice.serve.policy_card import Execution

KINDS = ("act", "diffusion", "diffusion, n_obs_steps=1", "vqbet")
CPU, TASK, STEPS, SEED = torch.device("cpu"), "turn on the stove", 7, 3


def with_settings(folder: Path, out: Path, **fields: Any) -> Path:
    """A copy of a checkpoint whose configuration says something else."""
    shutil.copytree(folder, out)
    config = json.loads((out / "config.json").read_text()) | fields
    (out / "config.json").write_text(json.dumps(config))
    return out


@pytest.fixture(scope="module")
def folders(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("zoo")
    found = {kind: zoo.ZOO[kind](root / kind, small_dataset) for kind in KINDS}
    ensembling = {"temporal_ensemble_coeff": 0.01, "n_action_steps": 1}
    found["act, ensembling"] = with_settings(found["act"], root / "act, ensembling", **ensembling)
    found["act, 2 of 6"] = with_settings(found["act"], root / "act, 2 of 6", n_action_steps=2)
    found["diffusion, 2 of 7"] = with_settings(found["diffusion"], root / "diffusion, 2 of 7", n_action_steps=2)
    return found


def observation(step: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(step)
    images = {key: rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for key in CAMERAS}
    return images | {"observation.state": rng.normal(size=8).astype(np.float32)}


def by_lerobot(folder: Path) -> np.ndarray:
    """Actions (N, 7): every observation goes through the processors and `select_action`, as in `lerobot-eval`."""
    config = PreTrainedConfig.from_pretrained(folder)
    policy = get_policy_class(config.type).from_pretrained(folder)
    before, after = make_pre_post_processors(config, str(folder))
    torch.manual_seed(SEED)
    policy.reset()
    actions = []
    for step in range(STEPS):
        seen = observation(step)
        batch: dict[str, Any] = {k: torch.from_numpy(seen[k]).permute(2, 0, 1)[None].float() / 255 for k in CAMERAS}
        batch |= {"observation.state": torch.from_numpy(seen["observation.state"])[None], "task": [TASK]}
        with torch.inference_mode():
            actions.append(after(policy.select_action(before(batch))))
    return torch.cat(actions).numpy()


def by_us(folder: Path, **execution: Any) -> np.ndarray:
    policy = Checkpoint("x", folder, CPU, Execution(**execution))
    policy.reset(SEED)
    actions: list[np.ndarray] = []
    while len(actions) < STEPS:  # an observation only when a plan is due
        actions.extend(policy.plan(observation(len(actions)), TASK))
    return np.array(actions[:STEPS])


@pytest.mark.parametrize("kind", [*KINDS, "act, ensembling"])
def test_actions_are_those_of_lerobot(kind: str, folders: dict[str, Path]) -> None:
    np.testing.assert_allclose(by_us(folders[kind]), by_lerobot(folders[kind]), atol=1e-5)


@pytest.mark.parametrize(
    ("trained", "as_if", "execution"),
    [
        ("act", "act, 2 of 6", {"n_action_steps": 2}),
        ("act", "act, ensembling", {"ensembling": 0.01}),
        ("act, ensembling", "act, 2 of 6", {"n_action_steps": 2}),
        ("diffusion", "diffusion, 2 of 7", {"n_action_steps": 2}),
    ],
)
def test_a_protocol_can_say_otherwise(
    trained: str, as_if: str, execution: dict[str, Any], folders: dict[str, Path]
) -> None:
    ours = by_us(folders[trained], **execution)
    np.testing.assert_allclose(ours, by_lerobot(folders[as_if]), atol=1e-5)
    assert np.abs(ours - by_us(folders[trained])).max() > 1e-3


def test_what_a_policy_cannot_do_is_refused(folders: dict[str, Path]) -> None:
    environment = Contract(cameras=CAMERAS)

    def inspect(kind: str, **execution: Any) -> int:
        return inspect_checkpoint("x", folders[kind], environment, Execution(**execution)).n_action_steps

    assert (inspect("act"), inspect("act", n_action_steps=3), inspect("act", ensembling=0.01)) == (6, 3, 1)
    assert (inspect("diffusion"), inspect("diffusion", n_action_steps=7), inspect("vqbet")) == (4, 7, 1)
    for kind, execution, said in (
        ("act", {"n_action_steps": 7}, "expected 1 to 6 actions of a chunk to be executed, found 7"),
        ("diffusion", {"n_action_steps": 8}, "expected 1 to 7 actions"),
        ("vqbet", {"n_action_steps": 2}, "expected what it was trained to"),
        ("diffusion", {"ensembling": 0.01}, "reads the present alone for temporal ensembling, found n_obs_steps 2"),
    ):
        with pytest.raises(UserError, match=said):
            inspect(kind, **execution)
