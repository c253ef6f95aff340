"""What a served policy remembers: of each client for itself, from an episode's beginning to its end, no failure."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.experts.zoo import ZOO
from tests.serve.running import Running
from tests.support import CAMERAS, make_student
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from apprentice.policy.processor_apprentice import make_apprentice_pre_post_processors
from apprentice.serve import server as serving
from apprentice.serve.checkpoint import Checkpoint
from apprentice.serve.client import KEYS
from apprentice.serve.wire import pack, unpack

KINDS = ("student", "act, ensembled", "diffusion", "vqbet", "seer_full")
TASK = "turn on the stove"


@pytest.fixture(scope="module")
def folders(
    small_dataset: Path, small_expert: Path, small_vlm: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Checkpoints of policies that remember."""
    root = tmp_path_factory.mktemp("served")
    found = {kind: ZOO[kind](root / kind, small_dataset) for kind in ("act", "diffusion", "vqbet", "seer_full")}
    ensembled = found.pop("act")
    config = (ensembled / "config.json").read_text().replace('"n_action_steps": 6', '"n_action_steps": 1')
    (ensembled / "config.json").write_text(
        config.replace('"temporal_ensemble_coeff": null', '"temporal_ensemble_coeff": 0.1')
    )
    student = make_student(small_dataset, small_expert, small_vlm, n_obs_steps=3)
    student.save_pretrained(root / "student")
    for processor in make_apprentice_pre_post_processors(student.config):
        processor.save_pretrained(root / "student")
    return found | {"act, ensembled": ensembled, "student": root / "student"}


@pytest.fixture(scope="module", params=KINDS)
def served(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Iterator[tuple[Running, Checkpoint]]:
    """A server, and the same policy without one."""
    running = Running(folders[request.param])
    yield running, Checkpoint("alone", folders[request.param], torch.device("cpu"))
    running.stop()


def seen(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    images = {key: rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for key in CAMERAS}
    return images | {"observation.state": rng.normal(size=8).astype(np.float32)}


def ask(connection: ClientConnection, seed: int, **changed: Any) -> np.ndarray:
    """Ask for a plan; a text that comes back is a ValueError."""
    connection.send(pack({KEYS[key]: value for key, value in seen(seed).items()} | {"prompt": TASK} | changed))
    answer = connection.recv(timeout=60)
    if isinstance(answer, str):
        raise ValueError(answer)
    return unpack(answer)["actions"]


def opened(running: Running, seed: int = 0) -> ClientConnection:
    connection = connect(f"{running.address}/?seed={seed}", compression=None)
    connection.recv()
    return connection


def alone(policy: Checkpoint, seed: int, steps: list[int], instruction: str = TASK) -> list[np.ndarray]:
    """An episode without a server."""
    policy.reset(seed)
    return [policy.plan(seen(step), instruction) for step in steps]


def test_each_client_has_a_memory_of_its_own(served: tuple[Running, Checkpoint]) -> None:
    running, policy = served
    expected = [alone(policy, seed, list(range(10 * seed, 10 * seed + 5))) for seed in (1, 2)]
    clients = [opened(running, seed) for seed in (1, 2)]
    for step in range(5):
        for client, seed in zip(clients, (1, 2), strict=True):
            np.testing.assert_array_equal(ask(client, 10 * seed + step), expected[seed - 1][step])
    for client in clients:
        client.close()
    assert np.abs(alone(policy, 1, [14])[0] - expected[0][4]).max() > 1e-4  # it does remember


def test_a_question_that_failed_is_not_remembered(
    served: tuple[Running, Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it fails because of what is asked, as most do with such a state, or in what comes after the policy."""
    running, policy = served
    expected = alone(policy, 0, [0, 1, 2, 3])

    def full(_: torch.Tensor) -> torch.Tensor:
        raise OSError("no space left")

    with opened(running) as client:
        for step in range(4):
            with monkeypatch.context() as patch, pytest.raises(ValueError, match=r"finite|nan|OSError: no space left"):
                if step % 2 or running.server.metadata["type"] in ("diffusion", "vqbet"):  # which may go on
                    patch.setattr(running.server.policy, "postprocess", full)
                ask(client, step, **{"observation/state": np.full(8, 3e38)})
            np.testing.assert_array_equal(ask(client, step), expected[step])


@pytest.mark.parametrize("how", ["prompt", "episode_start", "episode_end", "reset"])
def test_another_episode_begins_without_memory(served: tuple[Running, Checkpoint], how: str) -> None:
    """The first plan after it is one of a policy that remembers nothing; random numbers go on."""
    running, policy = served
    text = "another" if how == "prompt" else TASK
    expected = alone(policy, 0, [0, 1])
    policy.policy.reset()
    expected += [policy.plan(seen(step), text) for step in (2, 3)]
    with opened(running) as client:
        plans = [ask(client, 0), ask(client, 1)]
        if how.startswith("episode"):
            client.send(pack({"__ctrl__": how, "__task__": TASK, "__episode_id__": 3}))
            assert unpack(client.recv(timeout=60)) == {"__ack__": how}
        plans += [
            ask(client, 2, prompt=text, **({"reset": True} if how == "reset" else {})),
            ask(client, 3, prompt=text),
        ]
        client.send(pack({"__ctrl__": "dance"}))
        assert unpack(client.recv(timeout=60)) == {"__ack__": "ignored"}
    for found, wanted in zip(plans, expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_an_idle_client_leaves_its_place_and_a_busy_one_does_not(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    running = Running(folders["act, ensembled"], clients=2)
    idle, busy = opened(running), opened(running)
    ask(busy, 0)
    with pytest.raises(InvalidStatus, match="503") as refused:
        opened(running)
    assert b"expected fewer than 2 clients, found that many; fix" in refused.value.response.body
    monkeypatch.setattr(serving, "IDLE", 0.0)
    ask(busy, 1)
    third = opened(running)
    ask(third, 0)
    monkeypatch.undo()
    with pytest.raises(ConnectionClosed, match=r"1013.*idle, another client takes over"):
        idle.recv(timeout=10)
    ask(busy, 2)
    running.stop()


def test_a_kind_whose_memory_is_not_known_has_one_client(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "COPIED", ())
    running = Running(folders["vqbet"])
    assert running.server.places == 1
    with opened(running), pytest.raises(InvalidStatus, match="503"):
        opened(running)
    running.stop()
