"""What one real database bears: 1 to 100 workers that draw nothing, and lease and finish all the
same.

Each takes items as the runner of a worker does, waits as long as pictures take, and writes row and
usage in the transaction that ends the lease.
"""

import itertools
import multiprocessing
import secrets
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil
import sqlalchemy as sa

from deploy import output
from loadtest.cluster.postgres import Server
from worker.storage import gallery, jobs, leases, usage
from worker.storage.database import clock, create_engine
from worker.storage.gallery import StoredImage
from worker.storage.jobs import JobSpec, Share, items
from worker.storage.leases import Leased
from worker.storage.migrations import migrate
from worker.storage.usage import Entry
from worker.types import Parameters

T = TypeVar("T")

CLIENTS = (1, 10, 30, 100)
OWNERS = 10
DRAW_S = 0.7
"""Of one picture, which a card of today takes at 1024 pixels squared."""
A_LEASE = 4
"""Items that a worker takes at once: a batch."""
_RUN_S = 15.0
_PROCESSES = 4
_TIMEOUT_S = 5.0
_LOOK_S = 1.0
_MOST_AGAIN = 100  # of one client
_PARAMETERS = Parameters(1024, 1024, 8)
_SHARE = Share(open_jobs=1000, open_images=10_000_000, stored_bytes=1 << 34)


@dataclass
class Client:
    """What one of them saw: seconds of each transaction, and whose items it finished."""

    take_s: list[float]
    finish_s: list[float]
    owners: Counter[str]
    twice: int
    """Items that were somebody else's when they were finished."""
    again: int
    """Transactions that the server gave up, and that were tried again."""


@dataclass(frozen=True)
class Measured:
    """With ``clients``. ``efficiency``: of what they could draw; ``spread``: most over least of an
    owner; ``cpu_ms``: of the server, an item."""

    clients: int
    draw_s: float
    items: int
    twice: int
    again: int
    per_s: float
    efficiency: float
    take_p50_ms: float
    take_p99_ms: float
    finish_p99_ms: float
    spread: float
    cpu_ms: float


def measure() -> list[Measured]:
    """One after the other on one server; last, as fast as it goes."""
    with _server() as server, ProcessPoolExecutor(_PROCESSES, _context()) as pool:
        rounds = [*((count, DRAW_S) for count in CLIENTS), (CLIENTS[-1], 0.0)]
        found = []
        for number, (count, draw_s) in enumerate(rounds):
            with server.database(f"leases{number}") as url:
                found.append(_one(server, pool, url, count, draw_s))
            output.say(_told(found[-1]))
    return found


def _told(seen: Measured) -> str:
    how = f"{seen.efficiency:.0%} of what they draw" if seen.draw_s else "as fast as it goes"
    return (
        f"{seen.clients:4} workers: {seen.per_s:6.1f} items/s ({how}), {seen.twice} drawn twice, "
        f"{seen.again} tried again, "
        f"take p50 {seen.take_p50_ms:.1f} ms, p99 {seen.take_p99_ms:.1f} ms, finish p99 "
        f"{seen.finish_p99_ms:.1f} ms, most over least {seen.spread:.2f}, "
        f"{seen.cpu_ms:.1f} ms of CPU an item"
    )


def _context() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


@contextmanager
def _server() -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="zi-") as folder, ExitStack() as ending:
        # As it is where pictures matter: whatever it acknowledges is on the disk.
        server = Server(Path(folder), "max_connections=300").create().start()
        ending.callback(server.stop)
        yield server


def _one(
    server: Server, pool: ProcessPoolExecutor, url: str, count: int, draw_s: float
) -> Measured:
    migrate(url)
    _create_jobs(url)
    names = [f"w{n}" for n in range(count)]
    before, began = _cpu_s(server), time.monotonic()
    parts = [names[n::_PROCESSES] for n in range(_PROCESSES)]
    seen = list(itertools.chain(*pool.map(partial(_clients, url, draw_s), filter(None, parts))))
    took_s = time.monotonic() - began
    finished = sum((client.owners for client in seen), Counter[str]())
    total = finished.total()
    takes = [s for client in seen for s in client.take_s]
    ends = [s for client in seen for s in client.finish_s]
    per_s = total / took_s
    return Measured(
        clients=count,
        draw_s=draw_s,
        items=total,
        twice=sum(client.twice for client in seen) + total - _done(url),
        again=sum(client.again for client in seen),
        per_s=per_s,
        efficiency=per_s * draw_s / count,
        take_p50_ms=_ms(takes, 50),
        take_p99_ms=_ms(takes, 99),
        finish_p99_ms=_ms(ends, 99),
        spread=max(finished.values()) / max(1, min(finished.values())),
        cpu_ms=(_cpu_s(server) - before) / max(1, total) * 1e3,
    )


def _ms(seconds: Sequence[float], percent: int) -> float:
    return float(np.percentile(seconds, percent)) * 1e3


def _cpu_s(server: Server) -> float:
    """Of its processes; those that have ended are in their parent's."""
    main = psutil.Process(server.pid)
    own = main.cpu_times()
    total = float(own.children_user + own.children_system)
    for process in (main, *main.children(recursive=True)):
        times = process.cpu_times()
        total += times.user + times.system
    return total


def _create_jobs(url: str) -> None:
    engine = create_engine(url, _TIMEOUT_S)
    spec = JobSpec("scale", ("a",) * 5000, 1, _PARAMETERS, "jpeg", None, 1, None, "d")
    for number in range(OWNERS):
        owner = f"key{number}"
        with engine.begin() as connection:
            jobs.create(
                connection, spec, owner, owner, secrets.token_hex(8), clock(connection), _SHARE
            )
    with engine.begin() as connection:
        connection.execute(sa.text("ANALYZE"))  # autovacuum does it within a minute
    engine.dispose()


def _done(url: str) -> int:
    engine = create_engine(url, _TIMEOUT_S)
    with engine.connect() as connection:
        found = connection.scalar(
            sa.select(sa.func.count()).select_from(items).where(items.c.state == "done")
        )
    engine.dispose()
    return int(found or 0)


# In a process of its own


def _clients(url: str, draw_s: float, names: Sequence[str]) -> list[Client]:
    until = time.monotonic() + _RUN_S
    with ThreadPoolExecutor(len(names)) as threads:
        return list(threads.map(lambda name: _work(url, draw_s, name, until), names))


def _work(url: str, draw_s: float, name: str, until: float) -> Client:
    engine = create_engine(url, _TIMEOUT_S)
    me, seen = f"boot.of.{name}/1/1.0/{name}@{name}", Client([], [], Counter(), 0, 0)
    time.sleep(secrets.randbelow(1000) / 1000 * draw_s)  # they do not begin at once
    while time.monotonic() < until:
        began = time.monotonic()
        taken = _surely(engine, partial(_take, me=me), seen)
        seen.take_s.append(time.monotonic() - began)
        if not taken:
            time.sleep(min(_LOOK_S, draw_s))
        time.sleep(draw_s * len(taken))
        for item in taken:
            began = time.monotonic()
            if _surely(engine, partial(_finish, item=item), seen):
                seen.owners[item.owner] += 1
            else:
                seen.twice += 1
            seen.finish_s.append(time.monotonic() - began)
    engine.dispose()
    return seen


def _surely(engine: sa.Engine, work: Callable[[sa.Connection], T], seen: Client) -> T:
    """As the runner does: a transaction that took too long is tried again."""
    while True:
        try:
            with engine.begin() as connection:
                return work(connection)
        except sa.exc.OperationalError:
            seen.again += 1
            if seen.again > _MOST_AGAIN:
                raise
            time.sleep(0.1)


def _take(connection: sa.Connection, me: str) -> list[Leased]:
    now = clock(connection)
    leases.held_by(connection, me)
    if leases.snapshot(connection, now).offer is None:
        return []
    return leases.take(connection, me, lambda: secrets.token_hex(16), lambda _: A_LEASE, now)


def _finish(connection: sa.Connection, item: Leased) -> bool:
    now = clock(connection)
    if not leases.finish(connection, item, f"img_{item.lease}", now):
        return False
    gallery.insert(
        connection,
        StoredImage(
            f"img_{item.lease}", item.owner, now, item.prompt, item.seed, item.parameters, "scale",
            item.output_format, 200_000, job_id=item.job_id, job_number=item.number,
        ),
    )  # fmt: skip
    drawn = Entry(item.job_id, item.number, "image", now, item.owner, "scale", 1024, 1024, 0.1, 0.7)
    usage.apply(connection, [drawn])
    return True
