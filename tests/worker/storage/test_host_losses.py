"""Hosts that draw items of jobs are lost, one after the other, while they hold leases: killed, or
cut off for a time and back."""

import itertools
import multiprocessing
import os
import random
import secrets
import signal
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy import exc

from tests.worker.coordination.test_shared_quota import a_row
from tests.worker.storage.conftest import picture
from tests.worker.storage.test_jobs import Store
from tests.worker.storage.test_races import PICTURE
from worker.coordination.lease_holder import gone, host_of
from worker.storage import gallery, jobs, leases, lost_hosts, usage
from worker.storage.database import clock
from worker.storage.hosts import hosts
from worker.storage.jobs import items
from worker.storage.leases import Leased

HOSTS, EACH = 5, 10
LOSSES = int(os.environ.get("ZIMAGE_HOST_LOSSES", "25"))  # scripts/fuzz: 100
DEADLINE_S = 200.0
# Whoever is stopped inside a transaction holds up the others for so long.
IMPATIENT = (
    "&options=-c%20idle_in_transaction_session_timeout%3D300%20-c%20statement_timeout%3D3000"
)


def draw_for_ever(url: str, host: str, folder: Path) -> None:
    """What a worker of ``host`` does, with an object for each picture."""
    # No process that anybody here could look for.
    me, store = f"boot.of.{host}/{os.getpid()}/1.0/w1@{host}", Store(url)
    while True:
        try:
            draw_some(store, me, folder)
        except exc.DBAPIError:
            time.sleep(0.01)


def draw_some(store: Store, me: str, folder: Path) -> None:
    def look(connection: sa.Connection) -> tuple[list[str], bool, float, frozenset[str]]:
        now = clock(connection)
        seen = leases.snapshot(connection, now)
        lost, _ = lost_hosts.others(host_of(me))(connection, now)
        mine = leases.held_by(connection, me)
        return gone(seen.holders, lost), seen.offer is not None, now, mine

    dead, more, now, mine = store(look)
    if mine:  # taken without its having been heard of
        store(leases.release, mine)
    elif dead:
        store(leases.end, dead, now)
    elif not more:
        time.sleep(0.005)
    else:
        for item in store(leases.take, me, lambda: secrets.token_hex(16), lambda _: 5, now):
            time.sleep(0.004)
            keep(store, item, folder)


def keep(store: Store, item: Leased, folder: Path) -> None:
    """Put, then row; without its lease, neither."""

    def finish(connection: sa.Connection) -> bool:
        if not leases.finish(connection, item, f"img_{item.lease}", clock(connection)):
            return False
        row = picture(item.lease, job_id=item.job_id, job_number=item.number)
        gallery.insert(connection, row)
        number = int(item.prompt)
        usage.apply(connection, [replace(PICTURE, request_id=item.job_id, image_index=number)])
        return True

    (folder / item.lease).touch()
    while True:
        try:
            found = store(finish)
        except exc.DBAPIError:
            time.sleep(0.01)
            continue
        if not found:
            (folder / item.lease).unlink()
        return


class Cluster:
    def __init__(self, url: str, folder: Path) -> None:
        self.store, self.url, self.folder = Store(url), url, folder
        self.names = (f"h{k}" for k in itertools.count())
        self.running: dict[str, BaseProcess] = {}
        self.killed = 0
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload([__name__])
        for _ in range(HOSTS):
            self.start()

    def start(self) -> None:
        name = next(self.names)
        self.store(lambda c: c.execute(hosts.insert().values(a_row(name, clock(c), None))))
        process = self.context.Process(
            target=draw_for_ever, args=(self.url + IMPATIENT, name, self.folder), daemon=True
        )
        process.start()
        self.running[name] = process

    def say(self, name: str, *, lost: bool) -> None:
        """As fronts and the host itself do."""

        def work(connection: sa.Connection) -> None:
            at = clock(connection) - (lost_hosts.LOST_S + 1 if lost else 0.0)
            change = hosts.update().where(hosts.c.id == name)
            connection.execute(change.values(at=at, lost_at=at if lost else None))

        self.store(work)

    def held(self, name: str) -> int:
        query = sa.select(sa.func.count()).where(
            items.c.lease.is_not(None), items.c.holder.like(f"%@{name}")
        )
        return int(self.store(lambda c: c.scalar(query)) or 0)

    def left(self) -> int:
        query = sa.select(sa.func.count()).where(items.c.state.in_(("waiting", "running")))
        return int(self.store(lambda c: c.scalar(query)) or 0)

    def lose_one(self, how: random.Random) -> None:
        """One that holds something is gone, for ever or until others have what it held."""
        end = time.monotonic() + DEADLINE_S
        while True:
            assert time.monotonic() < end
            name, process = how.choice(list(self.running.items()))
            assert process.pid is not None
            os.kill(process.pid, signal.SIGSTOP)
            if self.held(name):
                break
            os.kill(process.pid, signal.SIGCONT)
            time.sleep(0.005)
        if how.random() < 0.5:
            process.kill()
            process.join()
            del self.running[name]
            self.killed += 1
            self.say(name, lost=True)
            self.start()
            return
        self.say(name, lost=True)
        while self.held(name):
            assert time.monotonic() < end
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGCONT)
        self.say(name, lost=False)

    def close(self) -> None:
        for process in self.running.values():
            process.kill()
            process.join()
        self.store.engine.dispose()


@pytest.mark.timeout(400)
def test_losses_of_hosts_double_and_lose_nothing(shared_url: str, tmp_path: Path) -> None:
    how, cluster = random.Random(22), Cluster(shared_url, tmp_path)
    try:
        for k in range(LOSSES):
            prompts = tuple(str(k * EACH + number) for number in range(EACH))
            cluster.store.create(f"{k:032x}", prompts=prompts)
            cluster.lose_one(how)
        end = time.monotonic() + DEADLINE_S
        while cluster.left():
            assert time.monotonic() < end
            time.sleep(0.05)
        done = cluster.store(lambda c: c.execute(sa.select(items)).all())
        assert Counter(row.state for row in done) == {"done": LOSSES * EACH}
        kept = cluster.store(lambda c: c.execute(sa.select(gallery.images)).all())
        assert Counter((row.job_id, row.job_number) for row in kept) == Counter(
            (row.job_id, row.number) for row in done
        ), "each item has one picture"
        assert {row.image_id for row in done} == {row.id for row in kept}
        there = {f"img_{path.name}" for path in tmp_path.iterdir()}
        assert {row.id for row in kept} <= there, "and its object is there"
        # Whoever came back has deleted what it had put without a lease.
        assert len(there) - len(kept) <= cluster.killed < LOSSES
        [row] = cluster.store(usage.report, "key")
        assert row["images"] == LOSSES * EACH
        states = cluster.store(lambda c: set(c.scalars(sa.select(jobs.jobs.c.state))))
        assert states == {"completed"}
    finally:
        cluster.close()


def a_lost_host(store: Store, silent_s: float, lost_s: float | None) -> frozenset[str]:
    """What others think of a host of which has been heard so long ago."""

    def work(connection: sa.Connection) -> frozenset[str]:
        now = clock(connection)
        lost_at = None if lost_s is None else now - lost_s
        connection.execute(hosts.delete())
        connection.execute(hosts.insert().values(a_row("b", now - silent_s, lost_at)))
        connection.execute(hosts.insert().values(a_row("a", now, None) | {"ready": 3}))
        assert lost_hosts.others("b")(connection, now) == (frozenset(), 3)
        return lost_hosts.others("a")(connection, now)[0]

    return store(work)


def test_a_host_is_lost_when_neither_database_nor_front_hears_of_it(shared_url: str) -> None:
    store = Store(shared_url)
    assert a_lost_host(store, 11, 11) == {"b"}
    assert a_lost_host(store, 9, 11) == set(), "it writes still"
    assert a_lost_host(store, 11, None) == set(), "a front hears of it"
    assert a_lost_host(store, 11, 9) == set(), "not for long"
    store(lambda c: c.execute(hosts.delete()))
    store.engine.dispose()


def test_workers_of_hosts_with_another_model_do_not_count(shared_url: str) -> None:
    """Unless nobody knows what they have: those are of an older version."""
    store, one, another = Store(shared_url), "a" * 10, "b" * 10
    facts = {"b": f'{{"pools": ["{one}", "{another}"]}}', "c": '{"pools": []}', "d": "{}"}

    def count(connection: sa.Connection) -> list[int]:
        now = clock(connection)
        connection.execute(hosts.delete())
        for ready, (name, told) in enumerate(facts.items(), start=1):
            row = a_row(name, now, None) | {"ready": 10**ready, "facts": told}
            connection.execute(hosts.insert().values(row))
        looks = [lost_hosts.others("a", partial(str, pool)) for pool in (one, "c" * 10)]
        return [look(connection, now)[1] for look in (lost_hosts.others("a"), *looks)]

    assert store(count) == [1110, 1010, 1000]
    store(lambda c: c.execute(hosts.delete()))
    store.engine.dispose()
