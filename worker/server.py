"""Uvicorn, with the end of a process as a worker needs it."""

import asyncio
import socket
import time
from types import FrameType

import uvicorn

from worker import exits
from worker.app import create_app
from worker.lifecycle import Lifecycle, Load
from worker.settings import Settings

KEEP_ALIVE_S = 5
_LAST_ANSWERS_S = 5.0
"""For sending what is drawn. nginx takes answers off at once; only who reads a stream or a large
archive slowly, or not at all, is cut."""


class Server(uvicorn.Server):
    """Ends when its life is over, after the answers that are under way are sent.

    A signal starts the draining at once, and the routes go on answering 503 meanwhile, so that
    nginx moves on; any further signal changes nothing.
    """

    def __init__(self, config: uvicorn.Config, lifecycle: Lifecycle) -> None:
        super().__init__(config)
        self._lifecycle = lifecycle
        self._loop = asyncio.get_running_loop()
        self._stopped_at: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._stopped_at is None:
            self._stopped_at = time.monotonic()
        self._loop.call_soon_threadsafe(self._lifecycle.stop)

    async def on_tick(self, counter: int) -> bool:
        return self._lifecycle.over.done() or await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.config.timeout_graceful_shutdown = max(1, round(self._left_s()))
        await super().shutdown(sockets)

    def _left_s(self) -> float:
        if self._stopped_at is None:
            return _LAST_ANSWERS_S
        end = self._stopped_at + self._lifecycle.settings.drain_timeout_s
        return min(_LAST_ANSWERS_S, end - time.monotonic())


async def serve(settings: Settings, load: Load, listening: socket.socket) -> int:
    """Serve until the worker's life is over; returns its exit code."""
    app = create_app(settings, load)
    lifecycle: Lifecycle = app.state.lifecycle
    config = uvicorn.Config(
        app,
        http="httptools",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
    )
    await Server(config, lifecycle).serve([listening])
    return lifecycle.over.result() if lifecycle.over.done() else exits.MODEL_FAILED
