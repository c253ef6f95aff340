"""openpi's wire format: msgpack, and numpy arrays in it as maps of their bytes, type and shape.

A websocket carries it: the server's first message is its metadata; each message from a client is an observation, each
answer `{"actions": (N, A), "server_timing": {"infer_ms": ...}}`, or a text, which is an error.

What a stranger sends takes memory in proportion to its own size: arrays are views of their bytes, of numbers of fixed
size alone, and there are few maps and lists, with few entries.
"""

import re
from math import prod
from typing import Any

import msgpack
import numpy as np

ARRAY, SCALAR = b"__ndarray__", b"__npgeneric__"
NUMBERS = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248])")  # types of numbers of fixed size, as numpy writes them
PYTHONS: dict[str, tuple[type, ...]] = {"b": (bool,), "i": (int,), "u": (int,), "f": (int, float)}
MOST = 256  # maps and lists in a message, and entries of each
MOST_DIMENSIONS = 8
LARGEST = 16 * 2**20  # bytes of what a server says


def pack(content: Any) -> bytes:
    """Raises ValueError or TypeError for what the format cannot hold, such as arrays of objects."""
    return msgpack.packb(content, default=_encode)


def unpack(message: bytes) -> Any:
    """Arrays are read-only views. Raises ValueError if `message` is not in the format, or holds too much."""
    seen = 0

    def counted(value: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen > MOST:
            raise ValueError(f"expected at most {MOST} maps and lists in a message, found more")
        return _decode(value) if isinstance(value, dict) else value

    try:
        return msgpack.unpackb(
            message,
            object_hook=counted,
            list_hook=counted,
            max_map_len=MOST,
            max_array_len=MOST,
            max_ext_len=0,
        )
    except Exception as error:  # msgpack and numpy have several for what is malformed
        said = str(error) or "no message in msgpack"
        raise ValueError(said if type(error) is ValueError else f"{type(error).__name__}: {said}") from error


def _encode(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind not in "biufSU":
        raise ValueError(f"expected numbers, found an array of {value.dtype}")
    if isinstance(value, np.ndarray):
        return {ARRAY: True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    if isinstance(value, np.generic):
        return {SCALAR: True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(f"expected numbers, texts, lists and maps, found {type(value).__name__}")


def _decode(value: dict[Any, Any]) -> Any:
    if ARRAY not in value and SCALAR not in value:
        return value
    kind, data, shape = value.get(b"dtype"), value.get(b"data"), value.get(b"shape")
    if not isinstance(kind, str) or not NUMBERS.fullmatch(kind):
        raise ValueError(
            f"expected numbers of a type such as |u1 or <f4, found {_short(kind)}; fix: send a text as such"
        )
    dtype = np.dtype(kind)
    if SCALAR in value:
        if type(data) not in PYTHONS[dtype.kind]:
            raise ValueError(f"expected a number of type {dtype}, found {type(data).__name__}")
        with np.errstate(over="ignore"):
            return dtype.type(data)
    if type(data) is not bytes:
        raise ValueError(f"expected the bytes of an array of {dtype}, found {type(data).__name__}")
    sizes = shape if isinstance(shape, list) and len(shape) <= MOST_DIMENSIONS else [-1]
    if any(type(size) is not int or size < 0 for size in sizes):
        raise ValueError(f"expected the shape of an array, found {_short(shape)}")
    if prod(sizes) * dtype.itemsize != len(data):
        raise ValueError(f"expected {tuple(sizes)} of {dtype}, found {len(data)} bytes")
    return np.ndarray(sizes, dtype, data)


def _short(value: Any) -> str:
    return repr(value)[:60]
