"""One client cannot take the others' time or memory: floods, slow readers, half handshakes; and the end of a server.

`benchmarks/attack.py` does the same at length.
"""

import json
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from tests.experts.zoo import ZOO
from tests.serve.running import Running
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from apprentice.serve import limits
from apprentice.serve.wire import pack, unpack

ROOT = Path(__file__).parents[2]
SHAPE = (64, 64, 3)


@pytest.fixture(scope="module")
def act(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = Running(ZOO["act"](tmp_path_factory.mktemp("served") / "act", small_dataset))
    yield running
    running.stop()


def question(**changed: object) -> bytes:
    image = np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)
    images = {"observation/image": image, "observation/wrist_image": image}
    return pack({**images, "observation/state": np.zeros(8), "prompt": "turn on the stove", **changed})


def answered(connection: ClientConnection) -> np.ndarray:
    connection.send(question())
    return unpack(connection.recv(timeout=60))["actions"]


def opened(act: Running) -> ClientConnection:
    connection = connect(act.address, compression=None)
    connection.recv()
    return connection


@pytest.fixture
def good(act: Running) -> Iterator[ClientConnection]:
    """A client beside the bad one: it gets the same answer before and after."""
    with opened(act) as connection:
        before = answered(connection)
        yield connection
        np.testing.assert_array_equal(answered(connection), before)


def frame(opcode: int, data: bytes = b"", fin: bool = True) -> bytes:
    """A masked frame (RFC 6455, 5.2) of less than 64 KiB."""
    size = bytes([0x80 | len(data)]) if len(data) < 126 else b"\xfe" + struct.pack(">H", len(data))
    return bytes([(0x80 if fin else 0) | opcode]) + size + b"\0" * 4 + data


def test_who_was_planned_for_the_least_is_next(act: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three clients ask while a plan is being made: one who took 100 s of planning before, and two who took none."""
    planner, order, free = act.server.planner, list[str](), threading.Event()
    plan = act.server.policy.plan

    def watched(observation: dict[str, np.ndarray], instruction: str) -> np.ndarray:
        order.append(instruction)
        assert free.wait(60)
        return plan(observation, instruction)

    monkeypatch.setattr(act.server.policy, "plan", watched)
    clients = {name: opened(act) for name in ("blocks", "costly", "quick", "other")}
    list(act.server.clients.values())[-3].episode.paid = planner._now + 100
    for count, (name, client) in enumerate(clients.items(), 1):
        client.send(question(prompt=name))
        end = time.monotonic() + 60
        while time.monotonic() < end and len(order) + planner._jobs.qsize() < count:
            time.sleep(0.01)
    free.set()
    for client in clients.values():
        assert unpack(client.recv(timeout=60))["actions"].shape == (6, 7)
        client.close()
    assert order == ["blocks", "quick", "other", "costly"]


@pytest.mark.parametrize(
    ("flood", "said"),
    [
        (frame(9) * 300, "more than 10 pings a second"),
        (frame(10) * 300, "more than 10 pings a second"),
        (frame(2, b"x", fin=False) + frame(0, fin=False) * 1200, "more than 256 frames at once"),
        (frame(2, b"x") * 1000, "more than 256 frames at once"),
    ],
)
def test_a_flood_of_frames_ends_the_connection(act: Running, good: ClientConnection, flood: bytes, said: str) -> None:
    with opened(act) as connection:
        connection.socket.sendall(flood)
        with pytest.raises(ConnectionClosed, match=rf"1002 .*{said}"):
            for _ in range(1000):
                connection.recv(timeout=30)


def test_endless_fragments_end_the_connection(act: Running, good: ClientConnection) -> None:
    with opened(act) as connection, pytest.raises(ConnectionClosed, match=r"1002 .*more than 1000 fragments"):
        connection.socket.sendall(frame(2, b"x", fin=False))
        with suppress(OSError):  # closed by then
            for _ in range(30):
                connection.socket.sendall(frame(0, b"x", fin=False) * 50)
                time.sleep(0.01)
        connection.recv(timeout=30)


def test_who_does_not_read_holds_up_nobody(act: Running, good: ClientConnection) -> None:
    slow = opened(act)
    for _ in range(50):
        slow.socket.sendall(b"\x82\xff" + struct.pack(">Q", len(question())) + b"\0" * 4 + question())
    for _ in range(3):
        answered(good)
    slow.socket.shutdown(socket.SHUT_RDWR)


def test_half_handshakes_leave_room(act: Running, good: ClientConnection) -> None:
    """The oldest is cut off when there are too many."""
    half = [socket.create_connection(("127.0.0.1", act.port)) for _ in range(limits.HANDSHAKES + 8)]
    for each in half:
        each.sendall(b"GET / HT")
    with opened(act) as another:
        answered(another)
    half[0].settimeout(30)
    with suppress(ConnectionResetError):
        assert half[0].recv(1) == b""
    for each in half:
        each.close()


def test_the_attack_is_survived(tmp_path: Path) -> None:
    """Every kind of `benchmarks/attack.py` once; it ends the server by SIGTERM."""
    command = [sys.executable, str(ROOT / "benchmarks/attack.py"), "--messages", "100", "--loose"]
    done = subprocess.run([*command, "--out", str(tmp_path / "figures.json")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["survived"] == 100 and figures["kinds"] > 90 and figures["good answers"] > 0
    assert figures["log lines"] < 40 and figures["exit code"] == 0 and figures["ended after (s)"] < 5
