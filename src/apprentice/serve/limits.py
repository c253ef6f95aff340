"""What keeps one client from taking the time or the memory of all: limits on frames and handshakes, a short log."""

import asyncio
import logging
import time
from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ProtocolError
from websockets.frames import OP_BINARY as OP_BYTES
from websockets.frames import OP_CONT, OP_TEXT, Frame

HANDSHAKES = 32  # that may be under way; then the oldest is cut off
CONTROL_FRAMES = 100  # pings and pongs that may come at once
CONTROL_RATE = 10.0  # pings and pongs a second, after those
FRAGMENTS = 1000  # of a message
AT_ONCE = 256  # frames that arrive together


class Gate:
    """Connections whose handshake is not finished, the oldest first."""

    def __init__(self) -> None:
        self.waiting: dict[GuardedConnection, None] = {}

    def enter(self, connection: "GuardedConnection") -> None:
        """Count a connection; cut off the oldest if there are too many."""
        self.waiting[connection] = None
        if len(self.waiting) > HANDSHAKES:
            oldest = next(iter(self.waiting))
            del self.waiting[oldest]
            oldest.transport.abort()

    def leave(self, connection: "GuardedConnection") -> None:
        """Its handshake is finished, or it is gone."""
        self.waiting.pop(connection, None)


class GuardedConnection(ServerConnection):
    """A connection that is closed if it sends more frames than any client would.

    Each frame costs time of the thread that serves all, and each ping an answer, which waits in memory if the client
    does not read.
    """

    def __init__(self, gate: Gate, *arguments: Any, **settings: Any):
        super().__init__(*arguments, **settings)
        self.gate, self._fragments = gate, 0
        self._credit, self._counted = float(CONTROL_FRAMES), time.monotonic()
        self._receive = self.protocol.recv_frame
        self.protocol.recv_frame = self._checked  # type: ignore[method-assign]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.gate.enter(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.gate.leave(self)
        super().connection_lost(exc)

    def start_keepalive(self) -> None:  # the handshake is finished
        self.gate.leave(self)
        super().start_keepalive()

    def _checked(self, frame: Frame) -> None:
        if len(self.protocol.events) > AT_ONCE:
            raise ProtocolError(f"more than {AT_ONCE} frames at once")
        if frame.opcode in (OP_CONT, OP_TEXT, OP_BYTES):
            self._fragments = self._fragments + 1 if frame.opcode is OP_CONT else 0
            if self._fragments > FRAGMENTS:
                raise ProtocolError(f"a message in more than {FRAGMENTS} fragments")
        else:
            now = time.monotonic()
            earned = CONTROL_RATE * (now - self._counted)
            self._credit, self._counted = min(self._credit + earned, CONTROL_FRAMES) - 1, now
            if self._credit < 0:
                raise ProtocolError(f"more than {CONTROL_RATE:.0f} pings a second")
        self._receive(frame)


def one_line_log() -> logging.Logger:
    """A log on stderr in which whatever goes wrong with a connection takes one line, without a traceback."""
    log = logging.getLogger("apprentice.serve")
    if not log.handlers:
        log.setLevel(logging.WARNING)
        log.propagate = False
        log.addFilter(_shortened)
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        log.addHandler(handler)
    return log


def _shortened(record: logging.LogRecord) -> bool:
    connection, error = getattr(record, "websocket", None), record.exc_info and record.exc_info[1]
    peer = connection.transport.get_extra_info("peername") if connection else None
    who = f"{peer[0]}:{peer[1]}: " if peer else ""
    why = f": {type(error).__name__}: {error}" if error else ""
    record.msg, record.args = f"{who}{record.getMessage()}{why}".encode("unicode_escape").decode()[:300], ()
    record.exc_info = record.exc_text = record.stack_info = None
    return True


def report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What asyncio would print with a traceback, such as no free file descriptor for one more connection."""
    error = context.get("exception")
    one_line_log().error("%s%s", context.get("message", ""), f": {type(error).__name__}: {error}" if error else "")
