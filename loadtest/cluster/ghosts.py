"""Hosts that only answer, a hundred addresses of one process: what fronts and database bear.

    python -m loadtest.cluster.ghosts settings.json

Each takes the front's certificate at its own address, draws as many requests at once as it has
workers, for a known time, refuses what would queue for too long, and enters its row in ``hosts``.
"""

import asyncio
import json
import random
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import sqlalchemy as sa
import uvicorn
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from worker.errors import StoreAway
from worker.storage.database import Database
from worker.storage.hosts import HostReport, write

PORT = 7862
_ROW_S = 2.0
_FOR_EVER_S = 3600.0

Mood = Literal["serves", "silent", "full"]


class Ghost(BaseModel):
    """``draw_s``: of one picture; ``max_queued`` requests wait, the next one is refused."""

    name: str
    address: str
    workers: int = 8
    draw_s: float = 0.7
    max_queued: int = 32


class Change(BaseModel):
    """``at_s`` after the start ``name`` is in another mood."""

    at_s: float
    name: str
    mood: Mood


class Settings(BaseModel):
    ghosts: list[Ghost]
    changes: list[Change] = []
    database_url: str
    certificate: Path
    key: Path
    authority: Path
    counts: Path
    """Where it leaves how many each has drawn."""
    jitter: float = 0.2
    """A picture takes so much more or less than ``draw_s``: its share, at most."""


@dataclass
class _State:
    ghost: Ghost
    mood: Mood = "serves"
    waiting: int = 0
    running: int = 0
    drawn: int = 0
    turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))

    @property
    def wait_s(self) -> float:
        """What a newcomer would wait."""
        ahead = self.waiting + self.running - self.ghost.workers + 1
        return max(0.0, ahead) * self.ghost.draw_s / self.ghost.workers

    @property
    def is_full(self) -> bool:
        return self.mood == "full" or self.waiting >= self.ghost.max_queued


class Ghosts:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._by_address = {ghost.address: _State(ghost) for ghost in settings.ghosts}
        for state in self._by_address.values():
            state.turns = asyncio.Semaphore(state.ghost.workers)

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/readyz", self._readyz),
                Route("/v1/images/generations", self._draw, methods=["POST"]),
            ],
            lifespan=self._lifespan,
        )

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        """Counts are left here: uvicorn raises the signal that ended it once more, and nothing
        comes after that."""
        tasks = [
            asyncio.create_task(work()) for work in (self.enter_for_ever, self.change_for_ever)
        ]
        yield
        for task in tasks:
            task.cancel()
        self._settings.counts.write_text(json.dumps(self.drawn()), encoding="utf-8")

    def drawn(self) -> dict[str, int]:
        """Pictures so far, by name."""
        return {state.ghost.name: state.drawn for state in self._by_address.values()}

    async def change_for_ever(self) -> None:
        """Each change at its time."""
        started = time.monotonic()
        by_name = {state.ghost.name: state for state in self._by_address.values()}
        for change in sorted(self._settings.changes, key=lambda change: change.at_s):
            await asyncio.sleep(max(0.0, started + change.at_s - time.monotonic()))
            by_name[change.name].mood = change.mood

    async def enter_for_ever(self) -> None:
        """The row of each, as often as a real host enters its own. A silent one enters none."""
        database = Database(self._settings.database_url)
        while True:
            states = self._by_address.values()
            reports = [_report(state) for state in states if state.mood != "silent"]
            with suppress(StoreAway):
                await database.run(partial(_enter, reports=reports))
            await asyncio.sleep(_ROW_S)

    async def _readyz(self, request: Request) -> Response:
        state = await self._asked(request)
        content = {"ready": not state.is_full, "predicted_wait_s": round(state.wait_s, 3)}
        if state.is_full:
            return JSONResponse({**content, "reason": "full"}, 503)
        return JSONResponse(content)

    async def _draw(self, request: Request) -> Response:
        state = await self._asked(request)
        await request.body()
        if state.is_full:
            wait = str(max(1, round(state.wait_s)))
            error = {"message": "full", "code": "queue_full"}
            return JSONResponse({"error": error}, 503, {"Retry-After": wait})
        state.waiting += 1
        try:
            await state.turns.acquire()
        finally:
            state.waiting -= 1
        state.running += 1
        try:
            spread = random.uniform(-1, 1) * self._settings.jitter
            await asyncio.sleep(state.ghost.draw_s * (1 + spread))
        finally:
            state.running -= 1
            state.turns.release()
        state.drawn += 1
        await self._asked(request)  # one that fell silent meanwhile does not answer
        return JSONResponse({"data": []}, headers={"X-Worker": state.ghost.name})

    async def _asked(self, request: Request) -> _State:
        """Whose address was asked; one that is silent keeps its client waiting."""
        state = self._by_address[request.scope["server"][0]]
        if state.mood == "silent":
            await asyncio.sleep(_FOR_EVER_S)
        return state


def _enter(connection: sa.Connection, reports: Sequence[HostReport]) -> None:
    for report in reports:
        write(connection, report, time.time())


def _report(state: _State) -> HostReport:
    ghost = state.ghost
    return HostReport(
        id=ghost.name,
        address=f"{ghost.address}:{PORT}",
        role="host",
        version="0",
        models=(),
        workers=ghost.workers,
        ready=ghost.workers,
        queued=state.waiting,
        running=state.running,
        wait_s=state.wait_s,
        skew_s=0.0,
        state="busy" if state.running else "ready",
        facts={},
    )


async def serve(settings: Settings) -> None:
    """Until SIGTERM."""
    ghosts = Ghosts(settings)
    config = uvicorn.Config(
        ghosts.app(),
        log_level="critical",  # those whose client leaves at the end are none of our errors
        ssl_certfile=settings.certificate,
        ssl_keyfile=settings.key,
        ssl_ca_certs=str(settings.authority),
        ssl_cert_reqs=ssl.CERT_REQUIRED,
        timeout_graceful_shutdown=1,
    )
    sockets = [_listening(ghost.address) for ghost in settings.ghosts]
    await uvicorn.Server(config).serve(sockets)


def _listening(address: str) -> socket.socket:
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((address, PORT))
    return made


def main() -> None:
    asyncio.run(serve(Settings.model_validate(json.loads(Path(sys.argv[1]).read_text("utf-8")))))


if __name__ == "__main__":
    main()
