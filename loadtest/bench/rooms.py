"""How often does one request change rooms? A room is a package of ``worker/``.

Draws in this process with the synthetic pipeline, so nothing but Python is needed, and profiles one
request, as an answer and as a stream, on the event loop and in the encoder's thread. A *stay* is a
run of calls of functions of one room; a *return* is a stay in a room that was left before. Whoever
follows the request through the code turns as many pages. Modules beside the rooms (errors, log,
settings, lifecycle …) count as none. What the thread that draws does is the engine's own business.

Not counted: coroutines that go on where they waited (the reader is on that page still), and what
the event loop calls back, which only wakes them.

``carrying``: in those rooms alone that decide what happens next to a request. The others answer
what they are asked and call nobody back, so their caller can be read without them: storage,
coordination and models, and the log and metrics that are written beside the way.
"""

import argparse
import asyncio
import dis
import functools
import inspect
import itertools
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import httpx

import worker
from worker.app import create_app
from worker.models.synthetic import SyntheticPipeline
from worker.settings import Settings
from worker.storage.database import sqlite_url
from worker.storage.migrations import migrate

URL = "/v1/images/generations"
BODY = {"prompt": "a red circle", "size": "80x64", "steps": 2}
ENCODERS = "encoder-"
"""How the names of the encoders' threads begin."""
CARRYING = frozenset({"api", "engine", "generation", "jobs"})
_ROOT = Path(worker.__file__).parent
_BOOT_TIMEOUT_S = 60.0

Call = tuple[str, str]
"""A room and ``module:function``."""

_requested: ContextVar[bool] = ContextVar("requested", default=False)
"""Whether this is done for the profiled request: its tasks inherit it, others have it not."""


class Profile:
    """The calls into rooms, by thread, while it is ``on``. ``sys.setprofile`` calls it."""

    def __init__(self) -> None:
        self.on = False
        self.calls: dict[str, list[Call]] = {}

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        if not self.on or event != "call":
            return
        code, thread = frame.f_code, threading.current_thread().name
        room = room_of(code.co_filename)
        if room is None or frame.f_lasti > _begins_at(code) or _is_callback(frame):
            return
        if _requested.get() or thread.startswith(ENCODERS):
            name = f"{Path(code.co_filename).stem}:{code.co_qualname}"
            self.calls.setdefault(thread, []).append((room, name))


@functools.cache
def room_of(filename: str) -> str | None:
    """The package of ``worker/`` that ``filename`` lies in, if any."""
    path = Path(filename)
    if not path.is_relative_to(_ROOT):
        return None
    folder, *rest = path.relative_to(_ROOT).parts
    return folder if rest else None


@functools.cache
def _begins_at(code: CodeType) -> int:
    """Where a function begins; a coroutine that goes on behind that is not called once more."""
    return next(s.offset for s in dis.get_instructions(code) if s.opname == "RESUME")


def _is_callback(frame: FrameType) -> bool:
    """Whether the event loop itself calls this function, and no task of its."""
    caller = frame.f_back
    called_back = caller is not None and caller.f_code is asyncio.Handle._run.__code__
    return called_back and not frame.f_code.co_flags & inspect.CO_COROUTINE


def stays(calls: Iterable[Call]) -> list[tuple[str, list[str]]]:
    """Runs of ``calls`` in one room: the room, and what was called there."""
    runs = itertools.groupby(calls, key=lambda call: call[0])
    return [(room, [name for _, name in run]) for room, run in runs]


def count(profile: Profile, rooms: Collection[str] | None = None) -> str:
    """Stays and returns of one request, in all threads; in ``rooms`` alone, if given."""
    found = [
        room
        for calls in profile.calls.values()
        for room, _ in stays(call for call in calls if rooms is None or call[0] in rooms)
    ]
    return f"{len(found)} stays, {len(found) - len(set(found))} of them returns"


def by_room(profile: Profile) -> str:
    """Stays in each room."""
    found = Counter(room for calls in profile.calls.values() for room, _ in stays(calls))
    return ", ".join(f"{room} {times}" for room, times in sorted(found.items()))


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a worker in this process that is ready."""
    settings = Settings(run_dir=folder / "run", var_dir=folder, model="synthetic:step_ms=0")
    migrate(sqlite_url(folder / "zimage.db"))
    app = create_app(settings, lambda s: SyntheticPipeline(s.model))
    deadline = time.monotonic() + _BOOT_TIMEOUT_S
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://cell") as client,
    ):
        while app.state.lifecycle.not_ready():
            if time.monotonic() > deadline:
                raise TimeoutError(app.state.lifecycle.not_ready())
            await asyncio.sleep(0.01)
        yield client


async def profiled(client: httpx.AsyncClient, profile: Profile, *, stream: bool) -> Profile:
    """``profile`` of one request, after others that imported and cached what they needed."""
    for on in (False, False, True):
        await asyncio.sleep(0.5)  # what is written behind the last one is over
        _requested.set(on)
        profile.on = on
        answer = await client.post(URL, json={**BODY, "stream": stream})
        profile.on = False
        answer.raise_for_status()
    return profile


async def measure(*, stream: bool) -> Profile:
    profile = Profile()
    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        with tempfile.TemporaryDirectory(prefix="zr-") as folder:
            async with serving(Path(folder)) as client:
                return await profiled(client, profile, stream=stream)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def main() -> None:
    parser = argparse.ArgumentParser(prog="loadtest/rooms", description=__doc__)
    parser.add_argument("--calls", action="store_true", help="print each stay and its calls")
    args = parser.parse_args()
    for kind in ("answer", "stream"):
        profile = asyncio.run(measure(stream=kind == "stream"))
        print(f"{kind}: {count(profile)} ({by_room(profile)})")
        print(f"  carrying: {count(profile, CARRYING)}")
        for thread, calls in profile.calls.items() if args.calls else ():
            print(f"  {thread}")
            for room, names in stays(calls):
                print(f"    {room:<14} {', '.join(dict.fromkeys(names))}")


if __name__ == "__main__":
    main()
