"""A policy behind a port: openpi's bytes, the same actions as without a port, and questions that make no sense."""

from pathlib import Path

import msgpack
import numpy as np
import pytest
import torch
from tests.experts.zoo import ZOO
from tests.serve.running import Running
from tests.support import CAMERAS
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from apprentice.common.errors import UserError
from apprentice.data.contract import Contract
from apprentice.serve import client
from apprentice.serve.checkpoint import Checkpoint, inspect_checkpoint
from apprentice.serve.client import RemotePolicy as Client
from apprentice.serve.client import inspect_server
from apprentice.serve.policy_card import PLAIN, Execution
from apprentice.serve.wire import pack, unpack

ENVIRONMENT = Contract(cameras=CAMERAS, image_size=(64, 64), fps=20)


@pytest.fixture(scope="module")
def folders(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("served")
    return {kind: ZOO[kind](root / kind, small_dataset) for kind in ("act", "diffusion")}


@pytest.fixture(scope="module")
def act(folders: dict[str, Path]):
    running = Running(folders["act"])
    yield running
    running.stop()


def observation(seed: int, size: int = 64) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    images = {key: rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for key in CAMERAS}
    return images | {"observation.state": rng.normal(size=8).astype(np.float32)}


def sent(seed: int = 0, **changed: object) -> bytes:
    """A good message of openpi's example, but for what is changed."""
    content = {client.KEYS[key]: value for key, value in observation(seed).items()}
    return pack({**content, "prompt": "turn on the stove", **changed})


def test_the_bytes_are_openpis() -> None:
    """What `openpi_client.msgpack_numpy` 0.1.2 packs."""
    array, scalar = np.arange(3, dtype=np.int16), np.float32(0.5)
    expected = bytes.fromhex(
        "83a16184c40b5f5f6e6461727261795f5fc3c40464617461c406000001000200c4056474797065a33c6932c4057368617065"
        "9103a16283c40d5f5f6e7067656e657269635f5fc3c40464617461cb3fe0000000000000c4056474797065a33c6634a670726f6d7074a178"
    )
    assert pack({"a": array, "b": scalar, "prompt": "x"}) == expected
    found = unpack(expected)
    assert found["b"] == scalar and found["b"].dtype == np.float32 and found["prompt"] == "x"
    np.testing.assert_array_equal(found["a"], array)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xc1",
        b"\x81" * 2000,
        pack({}) + b"\x00",
        pack({b"__ndarray__": True}),
        pack({b"__ndarray__": True, b"data": b"x", b"dtype": "|O", b"shape": [1]}),
        pack({b"__ndarray__": True, b"data": b"x", b"dtype": "<f8", b"shape": [2**40]}),
        pack({b"__ndarray__": True, b"data": b"xx", b"dtype": "|u1", b"shape": [-1, -2]}),
        pack({b"__ndarray__": True, b"data": b"", b"dtype": "|u1", b"shape": [0] * 70}),
        pack({b"__ndarray__": True, b"data": b"", b"dtype": "|u1", b"shape": [0, 2**62, 2**62]}),
        pack({b"__ndarray__": True, b"data": b"x" * 16, b"dtype": "<f16", b"shape": [1]}),
        pack({b"__ndarray__": True, b"data": b"x" * 5, b"dtype": "|S5", b"shape": [1]}),
        pack({b"__ndarray__": True, b"data": b"x" * 8, b"dtype": "i4,i4", b"shape": [1]}),
        pack({b"__ndarray__": True, b"data": "x", b"dtype": "|u1", b"shape": [1]}),
        pack({b"__ndarray__": True, b"data": b"x", b"dtype": "|u1", b"shape": [True]}),
        pack({b"__ndarray__": True, b"data": b"x", b"dtype": "|u1", b"shape": 1}),
        pack({b"__npgeneric__": True, b"data": [1], b"dtype": "|V8"}),
        pack({b"__npgeneric__": True, b"data": 2_000_000_000, b"dtype": "S"}),
        pack({b"__npgeneric__": True, b"data": 2_000_000_000, b"dtype": "U"}),
        pack({b"__npgeneric__": True, b"data": 256, b"dtype": "|u1"}),
        pack({b"__npgeneric__": True, b"data": "1", b"dtype": "|u1"}),
        pack([{}] * 256),
        pack([[]] * 257),
        pack({str(number): 0 for number in range(257)}),
        b"\xdf\xff\xff\xff\xff",
        b"\x91" * 1000 + b"\x90",
        pack({"a": msgpack.ExtType(1, b"x")}),
        b"\x81\xa1\xff\x00",
    ],
)
def test_malformed_messages_are_a_value_error(message: bytes) -> None:
    with pytest.raises(ValueError):
        unpack(message)


def test_nothing_but_numbers_is_packed() -> None:
    for content in (np.array([object()]), {"a": object()}, np.array([1j])):
        with pytest.raises((ValueError, TypeError), match="expected numbers"):
            pack(content)


def noisy(policy: Checkpoint) -> None:
    """Make a policy sample."""
    predict = policy.policy.predict_action_chunk
    policy.policy.predict_action_chunk = lambda batch: (chunk := predict(batch)) + torch.randn_like(chunk)


def test_two_clients_get_what_the_checkpoint_gives(act: Running, folders: dict[str, Path]) -> None:
    """Each samples from the seed of its own connection, whatever the other asks in between."""
    noisy(act.server.policy)
    clients = [Client(str(seed), act.address, 7) for seed in (3, 4)]
    for seed, each in zip((3, 4), clients, strict=True):
        each.reset(seed)
    served = [[each.plan(observation(step), "turn on the stove") for each in clients] for step in range(2)]
    for each in clients:
        each.close()
    del act.server.policy.policy.predict_action_chunk
    alone = Checkpoint("alone", folders["act"], torch.device("cpu"))
    noisy(alone)
    for number, seed in enumerate((3, 4)):
        alone.reset(seed)
        for step in range(2):
            np.testing.assert_allclose(
                served[step][number], alone.plan(observation(step), "turn on the stove"), atol=1e-6
            )
    assert np.abs(served[0][0] - served[0][1]).max() > 1e-2


def test_a_server_says_what_it_serves(act: Running, folders: dict[str, Path]) -> None:
    card = inspect_server("x", act.address, ENVIRONMENT, PLAIN)
    assert card == inspect_checkpoint("x", folders["act"], ENVIRONMENT)
    short = Execution(n_action_steps=2)
    assert inspect_server("x", act.address, ENVIRONMENT, short).n_action_steps == 2
    policy = Client("x", act.address, 7, 2)
    policy.reset(0)
    assert policy.plan(observation(0, size=96), "turn on the stove").shape == (2, 7)  # resized to what it asks for
    policy.close()


def test_a_served_contract_is_checked(act: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    turned = {"cameras": list(CAMERAS), "rotation": 0}
    for contract, said in (
        (turned, "rotation: the environment has 180, policy x has 0"),
        (
            {"a": 1},
            r"contract from policy x at ws://.* found in a: an unknown key; .*; fix: leave it out of the server's",
        ),
        ({"cameras": 5}, r"found in cameras: input should be a valid array, 5; fix"),
        ([3], r"contract from policy x at ws://.* found"),
    ):
        monkeypatch.setitem(act.server.metadata, "contract", contract)
        with pytest.raises(UserError, match=said):
            inspect_server("x", act.address, ENVIRONMENT.having(rotation=180), PLAIN)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (b"\xc1", "FormatError"),
        ("hello", "expected a message in msgpack, found a text; fix"),
        (pack([1, 2]), "expected a map, found list"),
        (pack({"prompt": "x"}), "expected observation/image, observation/wrist_image, observation/state, found prompt"),
        (sent(prompt=3), "prompt: expected a text, found int; fix: send one text"),
        (sent(**{"observation/image": np.zeros((32, 32, 3), np.uint8)}), r"expected uint8 \(64, 64, 3\), found .*32"),
        (sent(**{"observation/image": np.zeros((64, 64, 3))}), "expected uint8 .*, found float64"),
        (sent(**{"observation/image": np.zeros((3, 64, 64), np.uint8)}), "expected uint8 .*, found uint8 .3, 64, 64."),
        (
            sent(**{"observation/image": np.zeros((224, 224, 3), np.uint8)}),
            r"uint8 .64, 64, 3., found .*224",
        ),
        (sent(**{"observation/state": [0.0] * 8}), r"expected numbers \(8,\), found list"),
        (sent(**{"observation/state": np.zeros(8, bool)}), r"expected numbers \(8,\), found bool"),
        (
            sent(**{"observation/state": np.full(8, np.nan)}),
            r"state: expected finite numbers .8,., found nan",
        ),
        (
            sent(**{"observation/state": np.full(8, 1e39)}),
            r"state: expected finite numbers .8,., found 1e.39",
        ),
        (sent(prompt=np.array("turn")), "expected numbers of a type such as .*, found '<U4'; fix: send a text as such"),
        (sent(prompt="é" * 257), "expected a prompt of at most 512 bytes, found 514; fix: say it in fewer words"),
        (sent(reset="yes"), "expected true or false as reset, found str"),
    ],
)
def test_bad_questions_are_answered_and_good_ones_after_them(act: Running, message: bytes | str, said: str) -> None:
    with connect(act.address) as connection:
        assert unpack(connection.recv())["type"] == "act"
        connection.send(message)
        answer = connection.recv()
        assert isinstance(answer, str)
        with pytest.raises(ValueError, match=said):
            raise ValueError(answer)
        connection.send(sent())
        good = unpack(connection.recv())
        assert good["actions"].shape == (6, 7) and good["server_timing"]["infer_ms"] > 0


def test_what_is_not_let_in(act: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidStatus, match="403"):
        connect(act.address, origin="http://elsewhere")
    with pytest.raises(InvalidStatus, match="200"):
        connect(f"{act.address}/healthz")
    for seed in ("x", "-1", "1.5", "9" * 19, "%E0%A5%A7", ""):
        if seed:
            with pytest.raises(InvalidStatus, match="400") as refused:
                connect(f"{act.address}/?seed={seed}")
            assert b"expected ?seed=NUMBER" in refused.value.response.body
    largest = act.server.reader.largest
    assert largest == 2 * (2 * 64 * 64 * 3 + 8 * 8) + 512 * 2**10
    with connect(act.address) as connection:
        connection.recv()
        connection.send(b"\x00" * (largest + 1))
        with pytest.raises(ConnectionClosed, match="1009"):
            connection.recv()
    assert inspect_server("x", act.address, ENVIRONMENT, PLAIN).type == "act"


def test_a_client_says_what_is_wrong(act: Running) -> None:
    with pytest.raises(UserError, match=r"policy x: expected a policy server at ws://127\.0\.0\.1:9, found"):
        inspect_server("x", "ws://127.0.0.1:9", ENVIRONMENT, PLAIN)
    with pytest.raises(UserError, match="leave --ensembling out"):
        inspect_server("x", act.address, ENVIRONMENT, Execution(ensembling=0.1))
    policy = Client("x", act.address, 7, 7)
    policy.reset(0)
    with pytest.raises(UserError, match=r"policy x, .* expected 7 finite actions of size 7, found shape \(6, 7\)"):
        policy.plan(observation(0), "turn on the stove")
    with pytest.raises(UserError, match=r"policy x: expected an answer .*, found the error .*finite numbers"):
        policy.plan(observation(0) | {"observation.state": np.full(8, np.nan, np.float32)}, "turn on the stove")
    policy.close()
