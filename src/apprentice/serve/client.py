"""A policy server that speaks openpi's protocol, as something that turns an observation into the next actions.

What is sent is what openpi's example of a simulator sends: two images, turned as the simulator's contract says and 224
px wide unless the server's metadata say otherwise, the state, and the instruction. What has another name in LeRobot's
keys is sent under that name.
"""

import json
import socket
import time
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import numpy as np
from PIL import Image
from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.sync.client import ClientConnection, connect

from apprentice.common.errors import UserError
from apprentice.common.files import checked, fingerprint
from apprentice.data.contract import Contract
from apprentice.serve.checkpoint import usable
from apprentice.serve.policy_card import Execution, PolicyCard
from apprentice.serve.wire import LARGEST, pack, unpack

KEYS = {
    "observation.images.image": "observation/image",
    "observation.images.image2": "observation/wrist_image",
    "observation.state": "observation/state",
}
IMAGE_SIZE = 224  # px, what openpi's models read
REPLAN = 5  # actions, as in openpi's example
PATIENCE = 600.0  # s for an answer: a server may compile its model when it is first asked, and be deaf meanwhile
REACHED = 10.0  # s until a machine that is there takes a connection


def is_address(place: str) -> bool:
    return place.startswith(("ws://", "wss://"))


def inspect_server(name: str, address: str, environment: Contract, execution: Execution) -> PolicyCard:
    """Ask a server what it is. Raises UserError if none answers, or if its policy does not fit."""
    server = RemotePolicy(name, address, len(environment.action or ()), execution.n_action_steps)
    server.reset(0)
    server.close()
    if execution.ensembling is not None:
        raise UserError(
            f"policy {name}: expected a checkpoint for temporal ensembling, found the server {address}; "
            "fix: leave --ensembling out; a server that makes ensembles is asked with --n-action-steps 1"
        )
    sent = server.metadata.get("contract", {})
    if sent:
        fix, text = "leave it out of the server's metadata", json.dumps(sent, default=str, skipkeys=True)
        contract = checked(text, Contract, "a contract", f"from policy {name} at {address}", fix=fix)
        environment.check(contract, "the environment", f"policy {name}")
    identity = server.metadata.get("checkpoint") or fingerprint(address, pack(server.metadata))
    return PolicyCard(server.metadata.get("type", "server"), identity, server.n_action_steps)


class RemotePolicy:
    """A connection, made anew for each episode, which is how a server learns that one begins."""

    def __init__(self, name: str, address: str, action_dim: int, n_action_steps: int | None = None):
        self.name, self.address, self.metadata = name, address, dict[str, Any]()
        self.action_dim = action_dim
        self._n_action_steps = n_action_steps
        self._connection: ClientConnection | None = None

    @property
    def n_action_steps(self) -> int:
        """Actions of a chunk that are executed: as asked for, or as the server says, or as openpi's example does."""
        return self._n_action_steps or self.metadata.get("n_action_steps", REPLAN)

    def reset(self, seed: int) -> None:
        """Begin an episode. A server of ours samples from `seed`; others ignore it. Raises UserError."""
        self.close()
        try:
            self._connection = _connected(f"{self.address}{'&' if '?' in self.address else '?'}seed={seed}")
        except InvalidStatus as error:
            said = error.response.body.decode(errors="replace").strip()[:500] if error.response.body else error
            raise self.error("a policy server", said, "see what it says, or correct the address") from error
        except (OSError, WebSocketException, ValueError, ImportError) as error:  # ImportError: of a SOCKS proxy
            raise self.error("a policy server", error, "start it, or correct the address or the proxy") from error
        self.metadata = self._receive()
        if not isinstance(self.metadata, dict):
            raise self.error("a map of metadata first", self.metadata, "ask a server of openpi's protocol")

    def plan(self, observation: dict[str, np.ndarray], instruction: str) -> np.ndarray:
        """Turn one observation (images uint8 (H, W, 3), state (S,)) into the next `n_action_steps` actions (N, A).

        Raises UserError if the server fails, or if the actions are not finite, too few, or of another shape.
        """
        assert self._connection is not None, "reset comes first"
        size = self.metadata.get("image_size", None if "checkpoint" in self.metadata else IMAGE_SIZE)  # ours say it
        sent = {
            KEYS.get(key, key): _resized(value, size) if value.ndim == 3 and size else value
            for key, value in observation.items()
        }
        try:
            self._connection.send(pack(sent | {"prompt": instruction}))
        except WebSocketException as error:
            raise self.error("to be heard", error, "look at the server's log") from error
        answer = self._receive()
        if not isinstance(answer, dict) or not isinstance(answer.get("actions"), np.ndarray):
            raise self.error("a map with an array `actions`", type(answer), "ask a server of openpi's protocol")
        actions = np.asarray(answer["actions"], dtype=np.float32)[: self.n_action_steps]
        return usable(actions, self.n_action_steps, f"policy {self.name}, instruction {instruction!r}", self.action_dim)

    def close(self) -> None:
        """End the episode: others may be waiting for the server."""
        if self._connection:
            self._connection.close()
        self._connection = None

    def _receive(self) -> Any:
        assert self._connection is not None
        try:
            message = self._connection.recv(timeout=PATIENCE)
            if isinstance(message, bytes):
                return unpack(message)
        except (TimeoutError, WebSocketException, ValueError) as error:
            raise self.error("an answer", error, "look at the server's log") from error
        last = message.strip().splitlines()[-1:]  # of a traceback
        raise self.error("an answer", f"the error {' '.join(last)}", "look at the server's log")

    def error(self, expected: str, found: object, fix: str) -> UserError:
        """To be raised: what was expected and found at this address."""
        said = f"{type(found).__name__} {found}".strip() if isinstance(found, Exception) else found
        return UserError(f"policy {self.name}: expected {expected} at {self.address}, found {said}; fix: {fix}")


def _connected(address: str) -> ClientConnection:
    """Connect, in the end of `PATIENCE` at the latest; a server that is full (503) is asked again until then.

    Between machines of one network no proxy of the environment is used.
    """
    settings: dict[str, Any] = {"compression": None, "max_size": LARGEST, "close_timeout": 1, "ping_timeout": PATIENCE}
    parts, end = urlsplit(address), time.monotonic() + PATIENCE
    port = parts.port or (443 if parts.scheme == "wss" else 80)
    while True:
        left = max(end - time.monotonic(), 1.0)
        try:
            if getproxies() and not _near(parts.hostname or ""):
                return connect(address, open_timeout=left, **settings)
            sock = socket.create_connection((parts.hostname, port), timeout=min(left, REACHED))
            sock.settimeout(None)
            return connect(address, sock=sock, open_timeout=left, **settings)
        except InvalidStatus as error:
            if error.response.status_code != 503 or time.monotonic() > end - 1:
                raise
        time.sleep(1)


def _near(host: str) -> bool:
    """Whether a host is this machine, or has an address that is not of the public internet."""
    try:
        found = [ip_address(str(place[4][0]).partition("%")[0]) for place in socket.getaddrinfo(host, None)]
    except OSError:  # a proxy may know it
        return False
    return not any(address.is_global for address in found)


def _resized(image: np.ndarray, size: int) -> np.ndarray:
    """A square image (H, H, 3) as (size, size, 3), as openpi's example resizes."""
    if image.shape[0] == size:
        return image
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))
