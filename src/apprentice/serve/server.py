"""A checkpoint behind a websocket, in openpi's protocol: their clients can ask it, and so can `apprentice eval`.

A connection begins with our metadata, and with a policy that remembers nothing. Each client has a memory of its own.
Another episode begins with another connection, another prompt, `{"__ctrl__": "episode_start"}`, or `"reset": True` in
an observation. `?seed=3` in the address seeds what the policy samples. See docs/serving.md.
"""

import asyncio
import gc
import http
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as listen
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request, Response
from websockets.protocol import State

from apprentice.common.adapters import rename_map, resized_cameras, whole_checkpoint
from apprentice.common.device import best_device
from apprentice.common.errors import UserError
from apprentice.common.progress import console
from apprentice.data.contract import FILE as CONTRACT
from apprentice.data.contract import Contract
from apprentice.serve.checkpoint import Checkpoint, complete, configured, identity, longest_chunk
from apprentice.serve.limits import Gate, GuardedConnection, one_line_log, report
from apprentice.serve.planner import COPIED, Planner, Session
from apprentice.serve.requests import Control, Reader
from apprentice.serve.wire import pack

LOOPBACK = ("127.0.0.1", "::1", "localhost")
IDLE = 30.0  # s without a question, after which another client takes the place of this one if all are taken
PAUSE = 0.01  # s before the next message is read of a client whose last one was not planned
LONGEST_ANSWER = 1000  # characters of an error
GOODBYE = 2.0  # s for clients to close their connections
ACKNOWLEDGED = ("episode_start", "episode_end")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def serve(checkpoint: Path, *, port: int = 8000, host: str = "127.0.0.1", clients: int = 32) -> None:
    """Serve a policy until interrupted.

    Args:
        checkpoint: folder of a LeRobot checkpoint.
        port: port to listen on; 0 takes a free one and prints it.
        host: address to listen on; by default only this machine can connect. There is no password.
        clients: largest number of connections at a time; the policy's memory is kept for each.

    Raises UserError if the checkpoint is incomplete, or the port is taken.
    """
    if clients < 1:
        raise UserError(f"expected at least 1 client, found --clients {clients}; fix: leave it out")
    server = PolicyServer(Path(checkpoint), clients)

    def ready(port: int) -> None:
        console.print(f"serving {server.metadata['type']} at ws://{host}:{port}", highlight=False, soft_wrap=True)
        if host not in LOOPBACK:
            console.print("anyone who can reach this address can use the policy", highlight=False)

    gc.freeze()  # what is loaded stays: to search it for garbage would hold up all for a second
    try:
        asyncio.run(_until_signal(server.run(host, port, ready)))
    except OSError as error:
        raise UserError(f"expected a free port {port} at {host}, found {error}; fix: choose another --port") from error


async def _until_signal(running: Any) -> None:
    """Run until it ends, or until a signal, which ends the process. Who started it may have it ignore some of them."""
    loop, signalled = asyncio.get_running_loop(), asyncio.Event()
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, signalled.set)
    tasks = asyncio.ensure_future(running), asyncio.ensure_future(signalled.wait())
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    if tasks[0].done():
        return tasks[0].result()
    tasks[0].cancel()
    with suppress(asyncio.CancelledError):
        await tasks[0]
    console.print("stopped", highlight=False)
    sys.stdout.flush()
    os._exit(0)  # a plan that is being made, and torch's own end, can take longer than who stopped us waits


@dataclass
class Client:
    """Who is connected; `since` is when it last had an answer, None while it waits for one."""

    episode: Session
    since: float | None


class PolicyServer:
    """One policy and whoever is connected."""

    def __init__(self, folder: Path, clients: int = 32):
        complete(folder)
        config = configured("policy", folder)
        self.policy = Checkpoint("policy", folder, best_device())
        self.metadata = _metadata(folder, config, self.policy.n_action_steps)
        remembers = self.policy.every_step or config.n_obs_steps > 1
        if not remembers:  # then a client may execute more of a chunk than the checkpoint says
            self.policy.n_action_steps = longest_chunk(config)
        self.places = 1 if remembers and config.type not in COPIED else clients
        # Of other cameras a server takes the learned size alone, which keeps its messages small.
        resized = [key for key, any_size in resized_cameras(folder).items() if any_size]
        self.reader = Reader(config, rename_map(folder), resized)
        self.planner = Planner(self.policy, remembers)
        self.clients: dict[ServerConnection, Client] = {}
        self._closing: set[asyncio.Task[None]] = set()

    async def run(self, host: str, port: int, ready: Callable[[int], None]) -> None:
        """Listen until cancelled; `ready` is called with the port that is open."""
        asyncio.get_running_loop().set_exception_handler(report)
        server = await listen(
            self._converse,
            host,
            port,
            compression=None,
            max_size=self.reader.largest,
            max_queue=(1, 0),
            open_timeout=5,
            close_timeout=GOODBYE,
            origins=[None],  # no page in a browser may ask
            process_request=self._admit,
            logger=one_line_log(),
            create_connection=partial(GuardedConnection, Gate()),  # type: ignore[arg-type]
        )
        try:
            ready(next(iter(server.sockets)).getsockname()[1])
            await asyncio.get_running_loop().create_future()  # `serve_forever` would wait for who does not leave
        finally:
            server.close()
            with suppress(TimeoutError):
                await asyncio.wait_for(server.wait_closed(), GOODBYE)

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """Whether a client may come in: None, or the answer that it gets instead."""
        if urlsplit(request.path).path == "/healthz":
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        try:
            _seed(request)
        except ValueError as error:
            return _refused(connection, http.HTTPStatus.BAD_REQUEST, f"expected ?seed=NUMBER, found {error}")
        if len(self.clients) >= self.places:
            idle = [(client.since, key) for key, client in self.clients.items() if client.since is not None]
            since, longest = min(idle, default=(time.monotonic(), None), key=lambda pair: pair[0])
            if longest is None or time.monotonic() - since < IDLE:
                said = f"expected fewer than {self.places} clients, found that many; fix: come again later"
                return _refused(connection, http.HTTPStatus.SERVICE_UNAVAILABLE, said)
            del self.clients[longest]
            closing = asyncio.ensure_future(longest.close(CloseCode.TRY_AGAIN_LATER, "idle, another client takes over"))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
        return None

    async def _converse(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        client = self.clients[connection] = Client(Session(_seed(connection.request)), time.monotonic())
        try:
            await connection.send(pack(self.metadata))
            async for message in connection:
                client.since = None
                answer, planned = await self._answer(connection, client.episode, message)
                client.since = time.monotonic()
                await connection.send(answer)
                if not planned:
                    await asyncio.sleep(PAUSE)
        except ConnectionClosed:
            pass
        finally:
            self.clients.pop(connection, None)

    async def _answer(self, connection: ServerConnection, episode: Session, message: bytes | str) -> tuple[Any, bool]:
        """What is sent back, a text if it is an error, and whether a plan was made."""
        try:
            value = self.reader.read(message)
            if isinstance(value, Control):
                known = value.kind in ACKNOWLEDGED
                if known:
                    episode.begin()
                return pack({"__ack__": value.kind if known else "ignored"}), False
            planned = await self.planner.plan(episode, value, lambda: connection.state is State.OPEN)
        except Exception as error:  # of whatever was asked: the next question may be a good one
            ours = isinstance(error, ValueError | UserError)
            return f"{'' if ours else type(error).__name__ + ': '}{error}"[:LONGEST_ANSWER], False
        if planned is None:
            return "", False  # nobody reads it
        return pack({"actions": planned[0], "server_timing": {"infer_ms": 1000 * planned[1]}}), True


def _refused(connection: ServerConnection, status: http.HTTPStatus, said: str) -> Response:
    connection.logger.warning("refused: %s", said)
    return connection.respond(status, said + "\n")


def _seed(request: Request) -> int:
    """The number in the address, 0 if there is none. Raises ValueError."""
    value = parse_qs(urlsplit(request.path).query, max_num_fields=16).get("seed", ["0"])[0]
    if not value.isascii() or not value.isdigit() or len(value) > 18:
        raise ValueError(value[:60])
    return int(value)


def _metadata(folder: Path, config: Any, n_action_steps: int) -> dict[str, Any]:
    """What a client learns first; `image_size` only if all images are square and of one size."""
    whole = whole_checkpoint(folder)
    sizes = {tuple(feature.shape[-2:]) for feature in config.image_features.values()}
    known: dict[str, Any] = {}
    if (whole / CONTRACT).exists():
        contract, sent = Contract.load(whole), {new: old for old, new in rename_map(folder).items()}
        cameras = tuple(sent.get(key, key) for key in contract.cameras or ()) or None
        known["contract"] = asdict(contract.having(cameras=cameras))
    if len(sizes) == 1 and len(set(*sizes)) == 1:
        known["image_size"] = sizes.pop()[0]
    return {"type": config.type, "checkpoint": identity(folder), "n_action_steps": n_action_steps, **known}
