"""What a client may ask: an observation and an instruction, or that an episode begins."""

from collections.abc import Collection
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from apprentice.data.features import read_features
from apprentice.serve.client import KEYS
from apprentice.serve.wire import unpack

NAMES = {theirs: ours for ours, theirs in KEYS.items()}
PROMPT = 512  # bytes of UTF-8: what an instruction takes at most
LARGEST_IMAGE = (1080, 1920, 3)  # of a camera whose images the policy makes smaller
SPARE = 512 * 2**10  # bytes that a message may be larger than twice what the policy reads
CONTROL, RESET = "__ctrl__", "reset"


@dataclass(frozen=True)
class Control:
    """Not a question: `kind` is "episode_start", "episode_end", or what the server ignores."""

    kind: str


@dataclass(frozen=True)
class Request:
    """Images uint8 (H, W, 3) and numbers float32 under LeRobot's names; `reset` if an episode begins with it."""

    observation: dict[str, np.ndarray]
    instruction: str
    reset: bool


class Reader:
    """Reads messages as one policy needs them.

    A client may send what the policy's processor renames, under the name that it had before: the robot's.

    Args:
        config: the policy's configuration.
        renamed: its processor's new names of observations, by those that it is sent.
        resized: cameras whose images may have any size, up to `LARGEST_IMAGE`: its processor resizes them.

    Attributes:
        needed: shapes of what the policy reads, images as (H, W, 3).
        known: those, and what else stood in its dataset; it may be sent.
        names: the names under which each of these may be sent, the robot's first.
        largest: bytes of a message at most: an image of another size still gets an answer that says so.
    """

    def __init__(self, config: Any, renamed: dict[str, str] | None = None, resized: Collection[str] = ()):
        renamed = renamed or {}
        self.known = {key: _shape(feature) for key, feature in config.input_features.items()}
        self.needed = {key: self.known[key] for key in read_features(config.input_features)}
        self.names: dict[str, list[str]] = {
            key: [old for old, new in renamed.items() if new == key] + ([] if key in renamed else [key])
            for key in self.known
        }
        self.resized = frozenset(resized)
        sizes = [LARGEST_IMAGE if key in self.resized else shape for key, shape in self.needed.items()]
        self.largest = 2 * sum(prod(size) * (1 if len(size) == 3 else 8) for size in sizes) + SPARE

    def read(self, message: bytes | str) -> Request | Control:
        """Raises ValueError: expected ..., found ...; fix: ... ."""
        if isinstance(message, str):
            raise ValueError("expected a message in msgpack, found a text; fix: pack it as openpi's client does")
        content = unpack(message)
        if not isinstance(content, dict):
            raise ValueError(f"expected a map, found {type(content).__name__}; fix: send an observation")
        if CONTROL in content:
            return Control(str(content[CONTROL])[:PROMPT])
        sent = {NAMES.get(key, key): value for key, value in content.items()}
        offered = {key: [name for name in names if name in sent] for key, names in self.names.items()}
        given = {key: names[0] for key, names in offered.items() if names}
        missing = [" or ".join(KEYS.get(n, n) for n in self.names[key]) for key in self.needed if key not in given]
        missing += [] if "prompt" in sent else ["prompt (a text)"]
        if missing:
            found = ", ".join(str(key)[:60] for key in list(content)[:20]) or "nothing"
            raise ValueError(f"expected {', '.join(missing)}, found {found}; fix: send what is missing")
        if not isinstance(sent["prompt"], str):
            raise ValueError(f"prompt: expected a text, found {type(sent['prompt']).__name__}; fix: send one text")
        if (length := len(sent["prompt"].encode())) > PROMPT:
            raise ValueError(f"expected a prompt of at most {PROMPT} bytes, found {length}; fix: say it in fewer words")
        reset = sent.get(RESET, False)
        if type(reset) not in (bool, np.bool_):
            raise ValueError(f"expected true or false as {RESET}, found {type(reset).__name__}; fix: leave it out")
        observation = {
            name: _checked(name, sent[name], self.known[key], key in self.resized) for key, name in given.items()
        }
        return Request(observation, sent["prompt"], bool(reset))


def _shape(feature: Any) -> tuple[int, ...]:
    shape = tuple(feature.shape)
    return (*shape[1:], 3) if len(shape) == 3 else shape


def _checked(key: str, value: Any, shape: tuple[int, ...], resized: bool) -> np.ndarray:
    """One part of an observation. Raises ValueError unless it is of this shape, which of a `resized` image is any, and
    uint8 or finite.
    """
    name, image = KEYS.get(key, key), len(shape) == 3
    found = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
    if resized and isinstance(value, np.ndarray) and value.ndim == 3 and value.shape[2] == 3 and value.size:
        shape = value.shape
    fits = isinstance(value, np.ndarray) and value.shape == shape
    if not fits or value.dtype.kind not in "iuf" or (image and value.dtype != np.uint8):
        kind, how = ("uint8", "of this size, channels last") if image else ("numbers", "as an array, without a batch")
        raise ValueError(f"{name}: expected {kind} {shape}, found {found}; fix: send {kind} {how}")
    if image:
        return value.copy()
    with np.errstate(over="ignore"):
        numbers = value.astype(np.float32)
    if not np.isfinite(numbers).all():
        worst = value[~np.isfinite(numbers)].flat[0]
        raise ValueError(f"{name}: expected finite numbers {shape}, found {worst}; fix: look at the robot's sensors")
    return numbers
