"""A policy server in a thread of its own."""

import asyncio
import threading
from contextlib import suppress
from pathlib import Path

from apprentice.serve.server import PolicyServer


class Running:
    """It listens at `address` until `stop`."""

    def __init__(self, folder: Path, clients: int = 32):
        self.server, self.loop = PolicyServer(folder, clients), asyncio.new_event_loop()
        opened, self.port = threading.Event(), 0

        def ready(port: int) -> None:
            self.port = port
            opened.set()

        self.task = self.loop.create_task(self.server.run("127.0.0.1", 0, ready=ready))
        threading.Thread(target=self._run, daemon=True).start()
        assert opened.wait(30)
        self.address = f"ws://127.0.0.1:{self.port}"

    def _run(self) -> None:
        with suppress(asyncio.CancelledError):
            self.loop.run_until_complete(self.task)

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.task.cancel)
