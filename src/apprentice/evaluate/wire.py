"""openpi's wire format: msgpack, and numpy arrays in it as maps of their bytes, type and shape.

A websocket carries it: the server's first message is its metadata; each message from a client is an observation, each
answer `{"actions": (N, A), "server_timing": {"infer_ms": ...}}`, or a text, which is an error.
"""

from math import prod
from typing import Any

import msgpack
import numpy as np

ARRAY, SCALAR = b"__ndarray__", b"__npgeneric__"
KINDS = "biufSU"  # numpy kinds that are nothing but bytes
LARGEST = 64 * 2**20  # bytes of a message


def pack(content: Any) -> bytes:
    """Raises ValueError or TypeError for what the format cannot hold, such as arrays of objects."""
    return msgpack.packb(content, default=_encode)


def unpack(message: bytes) -> Any:
    """Arrays are read-only views. Raises ValueError if `message` is not in the format."""
    try:
        return msgpack.unpackb(message, object_hook=_decode)
    except ValueError:
        raise
    except Exception as error:  # msgpack and numpy have several for what is malformed
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _encode(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind not in KINDS:
        raise ValueError(f"expected numbers, found an array of {value.dtype}")
    if isinstance(value, np.ndarray):
        return {ARRAY: True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    if isinstance(value, np.generic):
        return {SCALAR: True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(f"expected numbers, texts, lists and maps, found {type(value).__name__}")


def _decode(value: dict[Any, Any]) -> Any:
    if ARRAY not in value and SCALAR not in value:
        return value
    dtype = np.dtype(value[b"dtype"])
    if dtype.kind not in KINDS:
        raise ValueError(f"expected numbers, found an array of {dtype}")
    if SCALAR in value:
        return dtype.type(value[b"data"])
    shape = tuple(int(size) for size in value[b"shape"])
    if min(shape, default=0) < 0 or prod(shape) * dtype.itemsize != len(value[b"data"]):
        raise ValueError(f"expected {shape} of {dtype}, found {len(value[b'data'])} bytes")
    return np.ndarray(shape, dtype, value[b"data"])
