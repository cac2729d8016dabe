"""Against a real PostgreSQL: in this process, beat by beat, and as the program that it is."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from deploy.cluster.membership import Membership
from deploy.cluster.settings import MembershipSettings
from deploy.cluster.wishes import LEAVING
from tests.deploy.cluster import cells
from tests.deploy.processes import PATIENCE_S, running, wait_until
from tests.postgres import Server
from tests.worker.databases import away
from tests.worker.storage.test_jobs import Store
from worker.coordination.served_models import ServedModel, ServedModelsFile, pool_of
from worker.storage import hosts
from worker.storage.database import Database
from worker.storage.hosts import Host

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def settings(tmp_path: Path, url: str) -> MembershipSettings:
    return cells.settings(tmp_path, database_url=url)


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    opened = Database(url, timeout_s=1.0)
    yield opened
    opened.close()


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    made = Store(url)
    yield made
    made.engine.dispose()


def member(settings: MembershipSettings, database: Database, **changes: Any) -> Membership:
    return Membership(settings.model_copy(update=changes), database, now=lambda: cells.NOW)


def guard_says(settings: MembershipSettings, *workers: dict[str, Any], **more: Any) -> None:
    settings.cell_json.write_text(json.dumps(cells.cell(*workers, **more)))


def listed(settings: MembershipSettings) -> dict[str, dict[str, Any]]:
    return {host["id"]: host for host in json.loads(settings.hosts_json.read_text())["hosts"]}


def row(store: Store, id: str) -> Host:
    return {host.id: host for host in store(hosts.read_all)}[id]


def decide(store: Store, id: str, wanted: hosts.Wanted, reason: str = "") -> None:
    assert store(hosts.want, id, wanted, reason, 1.0)


async def test_hosts_find_each_other_in_their_lists(
    settings: MembershipSettings, database: Database
) -> None:
    guard_says(settings, cells.worker(queued=3, predicted_wait_s=2.0))
    assert await member(settings, database, host="b", address="10.0.0.8:7862").beat()
    assert await member(settings, database).beat()
    told = listed(settings)
    assert list(told) == ["a", "b"]
    assert (told["b"]["address"], told["b"]["queued"], told["b"]["wait_s"]) == (
        "10.0.0.8:7862",
        3,
        2.0,
    )
    assert (told["a"]["wanted"], told["a"]["lost_at"], told["a"]["facts"]) == (
        "in",
        None,
        {"devices": {"H100": 1}, "workers": ["w1"], "writer": told["a"]["facts"]["writer"]},
    )


async def test_what_all_hosts_serve_is_listed_for_the_workers_of_each(
    settings: MembershipSettings, database: Database
) -> None:
    told = settings.var_dir / "cluster-models.json"
    serves = {name: (ServedModel(name, (f"a-{name}",)),) for name in ("turbo", "photo")}
    a = member(settings, database, cluster_models_json=told, serves=serves["turbo"])
    b = member(settings, database, host="b", serves=serves["photo"])
    assert await a.beat()
    assert await b.beat()
    assert await a.beat()
    known = ServedModelsFile(told).read()
    assert known is not None
    assert [model.name for model in known.all] == ["turbo", "photo"]
    assert listed(settings)["b"]["facts"]["pools"] == [pool_of("photo")]


async def test_a_clock_that_is_wrong_shows_and_times_are_the_databases(
    settings: MembershipSettings, database: Database
) -> None:
    assert await member(settings, database).beat()
    told = json.loads(settings.hosts_json.read_text())
    [host] = told["hosts"]
    assert host["at"] == pytest.approx(told["at"], abs=0.01)
    assert host["skew_s"] == pytest.approx(cells.NOW - host["at"], abs=5.0)


async def test_what_is_wanted_of_a_host_reaches_its_workers_and_is_seen_to_be_done(
    settings: MembershipSettings, database: Database, store: Store
) -> None:
    member_a = member(settings, database)
    guard_says(settings, cells.worker(running=1))
    await member_a.beat()
    decide(store, "a", "out", "new cards")
    await member_a.beat()
    assert settings.host_drained_flag.exists()

    async def state(*workers: dict[str, Any]) -> str:
        guard_says(settings, *workers)
        await member_a.beat()
        return row(store, "a").state

    assert await state(cells.worker(running=1)) == "draining"
    # One look at an empty queue is not enough: a request may be on its way.
    assert [await state(cells.worker()) for _ in range(2)] == ["draining", "drained"]
    assert await state(cells.worker(queued=1)) == "draining"
    decide(store, "a", "in")
    await member_a.beat()
    assert not settings.host_drained_flag.exists()
    assert await state(cells.worker()) == "ready"


async def test_a_host_is_not_drained_while_a_front_lets_requests_in(
    settings: MembershipSettings, database: Database, store: Store
) -> None:
    member_a = member(settings, database)
    front = member(settings, database, host="f", role="front", address="", workers=0)

    async def state(*, open: bool) -> str:
        guard_says(settings, hosts=[{"id": "a", "silent_s": 0.1, "open": open}])
        await front.beat()
        guard_says(settings, cells.worker())
        for _ in range(4):
            await member_a.beat()
        return row(store, "a").state

    await member_a.beat()
    decide(store, "a", "out")
    assert await state(open=True) == "draining"
    assert await state(open=False) == "drained"


async def test_fronts_say_together_that_a_host_is_lost(
    settings: MembershipSettings, database: Database, store: Store
) -> None:
    alone = {"role": "front", "address": "", "workers": 0}
    f1 = member(settings, database, host="f1", **alone)
    f2 = member(settings, database, host="f2", **alone)
    for id in ("a", "b"):
        guard_says(settings, cells.worker())
        await member(settings, database, host=id, role="host").beat()

    async def hear(front: Membership, a_s: float, b_s: float) -> None:
        told = [{"id": "a", "silent_s": a_s}, {"id": "b", "silent_s": b_s}]
        guard_says(settings, hosts=told)
        await front.beat()

    await hear(f1, 0.1, 0.1)
    await hear(f2, 9.0, 0.1)
    assert row(store, "a").lost_at is None  # one of them hears it
    await hear(f1, 4.0, 0.1)
    lost_at = row(store, "a").lost_at
    assert lost_at is not None
    await hear(f2, 11.0, 0.1)
    assert row(store, "a").lost_at == lost_at  # and that stays
    await hear(f1, 6.0, 7.0)
    assert row(store, "b").lost_at is None
    await hear(f2, 0.1, 0.1)
    assert row(store, "a").lost_at is None


async def test_a_host_that_starts_without_its_database_does_what_was_wanted_last(
    settings: MembershipSettings, database: Database, store: Store
) -> None:
    guard_says(settings, cells.worker())
    member_a = member(settings, database)
    await member_a.beat()
    decide(store, "a", "out")
    await member_a.beat()
    settings.host_drained_flag.unlink()
    again = member(settings, database)
    again._pass_on()  # before its first beat
    assert settings.host_drained_flag.exists()


async def test_two_machines_of_one_name_are_told_from_one_that_was_restarted(
    settings: MembershipSettings, database: Database, store: Store
) -> None:
    first, second = (member(settings, database) for _ in range(2))
    await first.beat()
    for _ in range(3):
        await second.beat()  # in place of the first
    assert "twin" not in row(store, "a").facts
    for _ in range(3):
        await first.beat()
        await second.beat()
    assert row(store, "a").facts["twin"] is True
    for _ in range(2):
        await second.beat()
    assert "twin" not in row(store, "a").facts  # the other is gone


async def test_a_full_disk_ends_nothing(
    settings: MembershipSettings, database: Database, tmp_path: Path, store: Store
) -> None:
    nowhere = {"hosts_json": tmp_path / "missing" / "hosts.json"}
    assert not await member(settings, database, **nowhere).beat()
    assert row(store, "a").id == "a"


# The program


@pytest.fixture
def program(settings: MembershipSettings, tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    file = tmp_path / "membership.json"
    file.write_text(settings.model_dump_json())
    command = [sys.executable, "-m", "deploy.cluster", str(file)]
    with running(command, tmp_path / "membership.log") as process:
        wait_until(settings.hosts_json.exists, "listed")
        yield process


def logged(tmp_path: Path, what: str) -> Callable[[], bool]:
    return lambda: what in (tmp_path / "membership.log").read_text()


def at(settings: MembershipSettings) -> float:
    return float(json.loads(settings.hosts_json.read_text())["at"])


@pytest.mark.parametrize(("reason", "stays"), [(LEAVING, False), ("new cards", True)])
def test_a_host_that_leaves_is_listed_no_more_with_its_end(
    program: "subprocess.Popen[bytes]", store: Store, reason: str, stays: bool
) -> None:
    decide(store, "a", "out", reason)
    program.terminate()
    assert program.wait(PATIENCE_S) == 0
    assert [host.id for host in store(hosts.read_all)] == ["a"] * stays


def test_it_goes_on_without_its_database_and_with_it_again(
    program: "subprocess.Popen[bytes]", settings: MembershipSettings, tmp_path: Path
) -> None:
    with away(settings.database_url):
        wait_until(logged(tmp_path, "The list of hosts stays as it is"), "told")
        before = settings.hosts_json.read_bytes()
        assert program.poll() is None
        assert settings.hosts_json.read_bytes() == before
    last = at(settings)
    wait_until(lambda: at(settings) > last, "listed again")


@pytest.fixture
def hanging(
    program: "subprocess.Popen[bytes]", settings: MembershipSettings, postgres: Server
) -> Iterator[None]:
    """The server's process that answers the program is stopped."""
    with postgres.connect() as admin:
        pid = wait_until(lambda: _backend(admin), "connected")
        os.kill(pid, signal.SIGSTOP)
        yield
        os.kill(pid, signal.SIGCONT)


def _backend(admin: "psycopg.Connection[Any]") -> int | None:
    asked = "SELECT pid FROM pg_stat_activity WHERE application_name = 'zimage'"
    found = admin.execute(asked).fetchone()
    return found[0] if found else None


@pytest.mark.usefixtures("hanging")
def test_a_database_that_hangs_is_not_waited_for(
    program: "subprocess.Popen[bytes]", tmp_path: Path
) -> None:
    wait_until(logged(tmp_path, "does not answer"), "told")
    assert program.poll() is None
    program.send_signal(signal.SIGTERM)
    assert program.wait(PATIENCE_S) == 0
