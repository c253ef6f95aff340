"""A checkpoint behind a websocket, in openpi's protocol: their clients can ask it, and so can `apprentice eval`.

A connection is an episode: it begins with our metadata, and with a policy that remembers nothing. `?seed=3` in the
address seeds what the policy samples. Images are as large as the policy learned them; openpi's example sends others
with `--args.resize-size`.
"""

import asyncio
import http
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import torch
from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as listen
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from apprentice.adapters import whole_checkpoint
from apprentice.data.contract import FILE as CONTRACT
from apprentice.data.features import read_features
from apprentice.device import best_device
from apprentice.errors import UserError
from apprentice.evaluate.checkpoint import Checkpoint, complete, configured, identity, longest_chunk
from apprentice.evaluate.client import KEYS
from apprentice.evaluate.wire import LARGEST, pack, unpack
from apprentice.files import read_json
from apprentice.progress import console

LOOPBACK = ("127.0.0.1", "::1", "localhost")
NAMES = {theirs: ours for ours, theirs in KEYS.items()}


def serve(checkpoint: Path, *, port: int = 8000, host: str = "127.0.0.1") -> None:
    """Serve a policy until interrupted.

    Args:
        checkpoint: folder of a LeRobot checkpoint.
        port: where to listen; 0 takes a free one and prints it.
        host: address to listen at; the default is reached from this machine alone. There is no password.

    Raises UserError if the checkpoint is incomplete, or the port is taken.
    """
    server = PolicyServer(Path(checkpoint))
    try:
        asyncio.run(server.run(host, port, announce=True))
    except OSError as error:
        raise UserError(f"expected a free port {port} at {host}, found {error}; fix: choose another --port") from error


@dataclass
class Session:
    """A connection: random numbers of its own, so that what others ask does not change what it gets."""

    random: tuple[torch.Tensor, list[torch.Tensor]]

    def resume(self) -> None:
        torch.set_rng_state(self.random[0])
        torch.cuda.set_rng_state_all(self.random[1])

    @staticmethod
    def now() -> tuple[torch.Tensor, list[torch.Tensor]]:
        return torch.get_rng_state(), torch.cuda.get_rng_state_all()


class PolicyServer:
    """One policy and whoever is connected."""

    def __init__(self, folder: Path):
        complete("policy", folder)
        config = configured("policy", folder)
        self.policy = Checkpoint("policy", folder, best_device())
        self.policy.action_dim = config.output_features["action"].shape[0]
        self.metadata = _metadata(folder, config, self.policy.n_action_steps)
        self.remembers = self.policy.every_step or config.n_obs_steps > 1
        if not self.remembers:  # then a client may execute more of a chunk than the checkpoint says
            self.policy.n_action_steps = longest_chunk(config)
        self.inputs = _inputs(config)
        self._episode, self._plan = asyncio.Lock(), asyncio.Lock()

    async def run(self, host: str, port: int, announce: bool = False, ready: Any = None) -> None:
        """Listen until cancelled; `ready` is called with the port that is open."""
        async with listen(
            self._connected,
            host,
            port,
            compression=None,
            max_size=LARGEST,
            origins=[None],  # no page in a browser may ask
            process_request=_health,
        ) as server:
            port = next(iter(server.sockets)).getsockname()[1]
            if announce:
                console.print(f"serving {self.metadata['type']} at ws://{host}:{port}", highlight=False, soft_wrap=True)
                if host not in LOOPBACK:
                    console.print("whoever reaches this address can use the policy", highlight=False)
            if ready:
                ready(port)
            await server.serve_forever()

    async def _connected(self, connection: ServerConnection) -> None:
        """An episode. A policy that remembers has one at a time; who comes meanwhile waits."""
        try:
            if self.remembers:
                async with self._episode:
                    await self._converse(connection)
            else:
                await self._converse(connection)
        except ConnectionClosed:
            pass

    async def _converse(self, connection: ServerConnection) -> None:
        try:
            async with self._plan:
                session = self._begin(connection)
        except ValueError as error:
            await connection.send(f"expected ?seed=NUMBER, found {error}")
            return
        await connection.send(pack(self.metadata))
        async for message in connection:
            try:
                async with self._plan:
                    answer: bytes | str = await asyncio.to_thread(self._answer, session, message)
            except Exception as error:  # of whatever was asked: the next question may be a good one
                answer = f"{type(error).__name__}: {error}"
            await connection.send(answer)

    def _begin(self, connection: ServerConnection) -> Session:
        asked = parse_qs(urlsplit(connection.request.path).query) if connection.request else {}
        self.policy.reset(int(asked.get("seed", ["0"])[0]))
        return Session(Session.now())

    def _answer(self, session: Session, message: bytes | str) -> bytes:
        observation, instruction = self._read(message)
        session.resume()
        start = time.perf_counter()
        actions = self.policy.plan(observation, instruction)
        passed = time.perf_counter() - start
        session.random = Session.now()
        return pack({"actions": actions, "server_timing": {"infer_ms": 1000 * passed}})

    def _read(self, message: bytes | str) -> tuple[dict[str, np.ndarray], str]:
        """An observation under LeRobot's names, and the instruction. Raises ValueError saying what is wrong."""
        content = unpack(message) if isinstance(message, bytes) else message
        if not isinstance(content, dict):
            raise ValueError(f"expected a map, found {type(content).__name__}")
        sent = {NAMES.get(key, key): value for key, value in content.items()}
        missing = [KEYS.get(key, key) for key in self.inputs if key not in sent]
        missing += [] if isinstance(sent.get("prompt"), str) else ["prompt (a text)"]
        if missing:
            raise ValueError(f"expected {', '.join(missing)}, found {', '.join(map(str, content)) or 'nothing'}")
        for key, shape in self.inputs.items():
            value, kind = sent[key], "uint8" if len(shape) == 3 else "numbers"
            fits = isinstance(value, np.ndarray) and value.shape == shape
            if not fits or (len(shape) == 3 and value.dtype != np.uint8) or value.dtype.kind not in "iuf":
                found = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
                raise ValueError(f"{KEYS.get(key, key)}: expected {kind} {shape}, found {found}")
        images = {key: sent[key].copy() for key, shape in self.inputs.items() if len(shape) == 3}
        return images | {k: sent[k].astype(np.float32) for k in self.inputs if k not in images}, sent["prompt"]


def _inputs(config: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of what a policy reads, images as (H, W, 3)."""
    shapes = {key: tuple(feature.shape) for key, feature in read_features(config.input_features).items()}
    return {key: (*shape[1:], 3) if len(shape) == 3 else shape for key, shape in shapes.items()}


def _metadata(folder: Path, config: Any, n_action_steps: int) -> dict[str, Any]:
    """What a client learns first; `image_size` only if all images are square and of one size."""
    whole = whole_checkpoint(folder)
    sizes = {shape[:2] for shape in _inputs(config).values() if len(shape) == 3}
    known = {"contract": read_json(whole / CONTRACT)} if (whole / CONTRACT).exists() else {}
    if len(sizes) == 1 and len(set(*sizes)) == 1:
        known["image_size"] = sizes.pop()[0]
    return {"type": config.type, "checkpoint": identity(folder), "n_action_steps": n_action_steps, **known}


def _health(connection: ServerConnection, request: Request) -> Response | None:
    return connection.respond(http.HTTPStatus.OK, "OK\n") if request.path == "/healthz" else None
