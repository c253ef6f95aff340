"""What strangers send to a policy server, by kind: messages, and connections that go wrong. For attack.py."""

import asyncio
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from apprentice.serve.wire import ARRAY, SCALAR, pack, unpack

PLANNED, ERROR, CLOSED, ACK = "planned", "error", "closed", "acknowledged"
LONGEST = "🤖" * 128  # of instructions: 512 bytes, each a token of its own


@dataclass(frozen=True)
class Target:
    """What attackers know of the server; images (H, W, 3), as many as keys."""

    host: str
    port: int
    largest: int
    images: tuple[str, ...]
    size: tuple[int, int, int]
    state: int
    prompt: str

    def observation(self, rng: np.random.Generator, **changed: Any) -> dict[str, Any]:
        """A good question, but for what is changed; a key that is changed to None is left out."""
        content: dict[str, Any] = {key: rng.integers(0, 256, self.size, dtype=np.uint8) for key in self.images}
        content |= {"observation/state": rng.normal(size=self.state) / 10, "prompt": self.prompt, **changed}
        return {key: value for key, value in content.items() if value is not None}


# ---- messages on a connection: bytes or text, and what may come back

Message = tuple[bytes | str, set[str]]


def array(data: Any, dtype: Any, shape: Any) -> dict[Any, Any]:
    return {ARRAY: True, b"data": data, b"dtype": dtype, b"shape": shape}


def scalar(data: Any, dtype: Any) -> dict[Any, Any]:
    return {SCALAR: True, b"data": data, b"dtype": dtype}


def messages(target: Target, rng: np.random.Generator) -> dict[str, Callable[[], Message]]:
    """By kind, how to make one."""

    def odd(**changed: Any) -> Callable[[], Message]:
        return lambda: (pack(target.observation(rng, **changed)), {ERROR})

    def raw(content: Any) -> Callable[[], Message]:
        return lambda: (content if isinstance(content, bytes | str) else msgpack.packb(content), {ERROR})

    def broken(change: Callable[[bytearray], None]) -> Callable[[], Message]:
        def make() -> Message:
            message = bytearray(pack(target.observation(rng)))
            change(message)
            return bytes(message), {ERROR, PLANNED, ACK}

        return make

    def flip(message: bytearray) -> None:
        for place in rng.integers(0, 400, 3):
            message[place] ^= 1 << int(rng.integers(8))

    def cut(message: bytearray) -> None:
        del message[int(rng.integers(1, len(message))) :]

    image, state = target.images[0], "observation/state"
    height, width, _ = target.size
    good = {ERROR, PLANNED}
    return {
        "a good question": lambda: (pack(target.observation(rng)), {PLANNED}),
        "another instruction": lambda: (pack(target.observation(rng, prompt=f"do {rng.integers(10**9)}")), {PLANNED}),
        "an instruction of 512 bytes": lambda: (pack(target.observation(rng, prompt="abcdefg " * 64)), {PLANNED}),
        "an instruction of emoji": lambda: (pack(target.observation(rng, prompt=LONGEST)), {PLANNED}),
        "an instruction with <image>": lambda: (pack(target.observation(rng, prompt="<image> go")), good),
        "an instruction of control characters": lambda: (pack(target.observation(rng, prompt="\0\x1b[2J\n")), good),
        "an instruction of 513 bytes": odd(prompt="x" * 513),
        "an instruction of 400 KB": odd(prompt="x" * 400_000),
        "an instruction as number": odd(prompt=3),
        "an instruction as array": odd(prompt=np.array("x")),
        "no instruction": odd(prompt=None),
        "no image": odd(**{image: None}),
        "an image of another size": odd(**{image: np.zeros((height + 1, width, 3), np.uint8)}),
        "an image as floats": odd(**{image: np.zeros(target.size, np.float32)}),
        "an image, channels first": odd(**{image: np.zeros((3, height, width), np.uint8)}),
        "a batch of images": odd(**{image: np.zeros((1, *target.size), np.uint8)}),
        "an image as list": odd(**{image: [[0] * 100] * 100}),
        "NaN in the state": odd(**{state: np.full(target.state, np.nan)}),
        "infinity in the state": odd(**{state: np.full(target.state, -np.inf)}),
        "1e39 in the state": odd(**{state: np.full(target.state, 1e39)}),
        "3e38 in the state": lambda: (pack(target.observation(rng, **{state: np.full(target.state, 3e38)})), good),
        "a state of another length": odd(**{state: np.zeros(target.state + 1)}),
        "a state as list": odd(**{state: [0.0] * target.state}),
        "a state of truth values": odd(**{state: np.zeros(target.state, bool)}),
        "an episode's beginning": lambda: (pack({"__ctrl__": "episode_start"}), {ACK}),
        "an unknown control": lambda: (pack({"__ctrl__": {"a": [1] * 200}}), {ACK}),
        "a question that resets": lambda: (pack(target.observation(rng, reset=True)), {PLANNED}),
        "a reset that is a text": odd(reset="yes"),
        "nothing": raw(b""),
        "random bytes": lambda: (rng.bytes(int(rng.integers(1, 3000))), {ERROR, ACK}),
        "random bytes, large": lambda: (rng.bytes(target.largest), {ERROR, ACK}),
        "a good question, cut": broken(cut),
        "a good question, bits flipped": broken(flip),
        "a good question and a byte": broken(lambda message: message.append(0)),
        "a text": raw("hello"),
        "a large text": raw("x" * (target.largest - 1)),
        "a number": raw(3),
        "a list": raw([1, 2, 3]),
        "2 GB of text in 40 bytes": raw({"a": scalar(2_000_000_000, "S")}),
        "2 GB of letters in 40 bytes": raw({"a": scalar(500_000_000, "U")}),
        "a scalar out of range": raw({"a": scalar(2**40, "|u1")}),
        "an array of objects": raw({"a": array(b"x" * 8, "|O", [1])}),
        "an array of records": raw({"a": array(b"x" * 8, "i4,i4", [1])}),
        "a type of 100 KB": raw({"a": array(b"", "i4," * 30_000, [0])}),
        "a shape of 2^60": raw({"a": array(b"x", "<f8", [2**60])}),
        "a shape of 0 x 2^60 x 2^60": raw({"a": array(b"", "<f8", [0, 2**60, 2**60])}),
        "a negative shape": raw({"a": array(b"xx", "|u1", [-1, -2])}),
        "a shape of 70 dimensions": raw({"a": array(b"", "|u1", [0] * 70)}),
        "a shape that is a text": raw({"a": array(b"", "|u1", "12")}),
        "bytes that are a text": raw({"a": array("x" * 8, "<f8", [1])}),
        "empty maps": raw(b"\xdd" + struct.pack(">I", target.largest - 5) + b"\x80" * (target.largest - 5)),
        "255 x 255 empty maps": raw([[{}] * 255] * 255),
        "255 x 255 nothings": raw([[None] * 255] * 200),
        "900 lists in each other": raw(b"\x91" * 900 + b"\xc0"),
        "100,000 lists in each other": raw(b"\x91" * 100_000 + b"\xc0"),
        "900 maps in each other": raw(b"\x81\xa1a" * 900 + b"\xc0"),
        "a map of 4 billion": raw(b"\xdf\xff\xff\xff\xff"),
        "a text of 4 billion": raw(b"\xdb\xff\xff\xff\xff"),
        "a map of 257": raw({str(number): 0 for number in range(257)}),
        "a key that is a list": raw(b"\x81\x90\xc0"),
        "an extension type": raw({"a": msgpack.ExtType(5, b"x" * 1000)}),
        "a time": raw({"a": msgpack.Timestamp(1, 2)}),
        "a text that is no UTF-8": raw(b"\x81\xa1\xff\xc0"),
    }


# ---- what happens to a connection: raw bytes, and whether the server cut it off in time

UPGRADE = (
    "GET {path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{more}\r\n"
)


def frame(opcode: int, data: bytes = b"", fin: bool = True, masked: bool = True, length: int | None = None) -> bytes:
    """A websocket frame (RFC 6455, 5.2), masked with zeros; `length` is what it claims."""
    size, mask = len(data) if length is None else length, 0x80 if masked else 0
    head = bytes([(0x80 if fin else 0) | opcode])
    if size < 126:
        head += bytes([mask | size])
    elif size < 2**16:
        head += bytes([mask | 126]) + struct.pack(">H", size)
    else:
        head += bytes([mask | 127]) + struct.pack(">Q", size)
    return head + (b"\0" * 4 if masked else b"") + data


@dataclass(frozen=True)
class Raw:
    """Bytes to send: as a handshake if `open` is false, else after one. `cut` tells whether the server has to close."""

    data: bytes
    open: bool = True
    cut: bool = True
    path: str = "/"


def connections(target: Target, rng: np.random.Generator) -> dict[str, Callable[[], Raw]]:
    """By kind, what is sent on a connection of its own."""
    question = frame(2, pack(target.observation(rng)))

    def shake(data: str | bytes, cut: bool = True) -> Callable[[], Raw]:
        return lambda: Raw(data.encode() if isinstance(data, str) else data, open=False, cut=cut)

    def sent(data: bytes, cut: bool = True) -> Callable[[], Raw]:
        return lambda: Raw(data, cut=cut)

    return {
        "no HTTP": shake(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20),
        "HTTP without websocket": shake("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
        "POST": shake("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"),
        "a header of 100 KB": shake("GET / HTTP/1.1\r\nX: " + "x" * 100_000 + "\r\n\r\n"),
        "1,000 headers": shake("GET / HTTP/1.1\r\n" + "X: x\r\n" * 1000 + "\r\n"),
        "terminal codes in the request": shake("GET \x1b[2J\x1b[31m HTTP/1.1\r\n\r\n"),
        "a page in a browser": shake(UPGRADE.format(path="/", more="Origin: http://evil\r\n")),
        "another version": shake(UPGRADE.format(path="/", more="").replace("13", "99")),
        "a seed that is no number": shake(UPGRADE.format(path="/?seed=x", more="")),
        "a seed of 5,000 digits": shake(UPGRADE.format(path="/?seed=" + "9" * 5000, more="")),
        "a health check": shake("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"),
        "half a handshake, then gone": shake("GET / HT", cut=False),
        "half a handshake, no more": lambda: Raw(b"GET / HT", open=False, cut=True),
        "a handshake, then gone": sent(b"", cut=False),
        "a question, then gone": sent(question, cut=False),
        "half a question, then gone": sent(question[: len(question) // 2], cut=False),
        "20 questions, nothing read, then gone": sent(question * 20, cut=False),
        "a frame that claims 2^62 bytes": sent(frame(2, b"x", length=2**62)),
        "a frame over the largest size": sent(frame(2, bytes(target.largest + 1))),
        "fragments over the largest size": sent(frame(2, bytes(target.largest), fin=False) + frame(0, b"xx")),
        "a frame without mask": sent(frame(2, b"x" * 20, masked=False)),
        "an unknown kind of frame": sent(frame(5, b"x")),
        "a ping of 200 bytes": sent(frame(9, b"x" * 200)),
        "a fragmented ping": sent(frame(9, b"x", fin=False)),
        "reserved bits": sent(b"\xf2" + frame(2, b"x")[1:]),
        "a fragment of nothing": sent(frame(0, b"x")),
        "a frame of text that is no UTF-8": sent(frame(1, b"\xff\xfe")),
        "a close with a bad code": sent(frame(8, struct.pack(">H", 999))),
        "3,000 pings": sent(frame(9) * 3000),
        "3,000 pongs": sent(frame(10) * 3000),
        "5,000 empty fragments": sent(frame(2, b"", fin=False) + frame(0, b"", fin=False) * 5000),
        "5,000 messages of a byte": sent(frame(2, b"x") * 5000),
    }


async def strike(target: Target, asked: Raw) -> str:
    """Send raw bytes; what came of it. Raises AssertionError if the server should have closed and has not."""
    reader, writer = await asyncio.open_connection(target.host, target.port)
    try:
        if asked.open:
            writer.write(UPGRADE.format(path=asked.path, more="").encode())
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
            if b" 101 " not in head:
                return "no place"
        with suppress(ConnectionError):
            writer.write(asked.data)
            if not asked.cut:
                await asyncio.wait_for(writer.drain(), 0.2)
                return "left"
            while await asyncio.wait_for(reader.read(65536), 30):
                pass
        return CLOSED
    except TimeoutError as error:
        if not asked.cut:
            return "left"
        raise AssertionError("the server did not close the connection") from error
    except (asyncio.IncompleteReadError, ConnectionError):
        return CLOSED
    finally:
        writer.transport.abort()


async def ask(connection: Any, message: bytes | str) -> str:
    """Send one message; what came back."""
    await connection.send(message)
    answer = await asyncio.wait_for(connection.recv(), 60)
    if isinstance(answer, str):
        return ERROR
    return ACK if "__ack__" in unpack(answer) else PLANNED


async def attacker(target: Target, kinds: Iterator[str], rng: np.random.Generator, report: Callable[..., None]) -> None:
    """One attacker: messages on a connection that it keeps while it can, and connections for the other kinds."""
    said, struck = messages(target, rng), connections(target, rng)
    connection: Any = None
    for kind in kinds:
        try:
            if kind in struck:
                report(kind, await strike(target, struck[kind]()), None)
                continue
            if connection is None:
                url = f"ws://{target.host}:{target.port}/?seed={rng.integers(100)}"
                connection = await connect(url, compression=None, max_size=None, proxy=None)
                await connection.recv()
            message, allowed = said[kind]()
            found = await ask(connection, message)
            report(kind, found, None if found in allowed else f"expected {allowed}, found {found}")
            if rng.random() < 0.05:
                await connection.close()
                connection = None
        except (ConnectionClosed, InvalidHandshake) as error:
            connection = None
            report(kind, "broken off", f"{type(error).__name__}: {error}")
        except (AssertionError, OSError, TimeoutError) as error:
            connection = None
            report(kind, "failed", f"{type(error).__name__}: {error}")
    if connection is not None:
        await connection.close()
