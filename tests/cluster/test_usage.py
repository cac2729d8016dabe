"""The ledger on a real cell: one entry a picture, whatever is killed; limits over all workers."""

import asyncio
import contextlib
import json
import os
import sqlite3
from collections import Counter
from typing import Any

import httpx
import pytest

from loadtest import faults
from loadtest.faults.catalogue import FAULTS
from loadtest.waiting import until_async as until
from tests.cluster.conftest import RunningCell
from tests.cluster.test_keys import bearer, known_after_s, make

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300), pytest.mark.xdist_group("keyed")]


def used(cell: RunningCell, name: str) -> dict[str, Any]:
    """What the ledger says of the key called ``name``, by the command line."""
    done = cell.zimage("usage", "--by", "key", "--json")
    assert done.returncode == 0, done.stderr
    found = [row for row in json.loads(done.stdout) if row["key"] == name]
    return dict(found[0]) if found else {}


async def settled(cell: RunningCell, name: str, requests: int) -> dict[str, Any]:
    """The ledger once it has as many requests of ``name`` as were sent."""
    told = f"{requests} counted"
    await until(lambda: (used_or_nothing(cell, name) or 0) >= requests, 60, told)
    await asyncio.sleep(2)  # what would count twice would come now
    return used(cell, name)


async def draw(
    http: httpx.AsyncClient, cell: RunningCell, token: str, **fields: Any
) -> httpx.Response:
    body = {"prompt": os.urandom(4).hex(), "size": "64x64", **fields}
    return await http.post(f"{cell.url}/v1/images/generations", json=body, headers=bearer(token))


def test_ledger_and_access_log_agree_after_kills(keyed: RunningCell) -> None:
    token = make(keyed, "busy")
    known_after_s(keyed, token, 200)
    earlier = len(keyed.layout.access_log.read_text().splitlines())

    async def client(http: httpx.AsyncClient, over: asyncio.Event, seen: Counter[str]) -> None:
        turn = 0
        while not over.is_set():
            turn += 1
            answer = await draw(http, keyed, token, n=1 + turn % 3)
            assert answer.status_code == 200, answer.text
            seen["requests"] += 1
            seen["images"] += len(answer.json()["data"])

    async def scenario() -> Counter[str]:
        seen: Counter[str] = Counter()
        over = asyncio.Event()
        async with httpx.AsyncClient(timeout=120) as http:
            clients = [asyncio.create_task(client(http, over, seen)) for _ in range(8)]
            for worker in ("w1", "w2", "w3"):
                await until(lambda: seen["requests"] > 5, 60, "traffic")
                await keyed.all_open()
                faults.kill(keyed, worker)
                await keyed.closed(worker)
            await keyed.all_open()
            over.set()
            await asyncio.gather(*clients)
        return seen

    seen = asyncio.run(scenario())
    row = asyncio.run(settled(keyed, "busy", seen["requests"]))
    log = keyed.layout.access_log.read_text().splitlines()[earlier:]
    lines = [json.loads(line) for line in log]
    drawn = [
        line for line in lines if line["path"] == "/v1/images/generations" and line["status"] == 200
    ]
    replayed = [line for line in drawn if "," in line["upstream_addr"]]
    assert replayed, "no request was sent on: the kills hit nothing"
    assert len(drawn) == seen["requests"]
    assert (row["requests"], row["images"]) == (seen["requests"], seen["images"])
    assert (row["refusals"], row["failures"]) == (0, 0)
    assert row["gpu_seconds"] > 0
    assert used(keyed, "operator")["images"] == 1  # the first picture of `up`


def test_the_day_of_a_key_holds_over_workers_and_kills(keyed: RunningCell) -> None:
    token = make(keyed, "few", "--images-per-day", "20")
    known_after_s(keyed, token, 200)

    async def scenario() -> list[int]:
        async with httpx.AsyncClient(timeout=120) as http:
            wanted = [asyncio.create_task(draw(http, keyed, token, steps=20)) for _ in range(40)]
            await asyncio.sleep(0.3)
            faults.kill(keyed, "w2")
            found = [answer.status_code for answer in await asyncio.gather(*wanted)]
            await keyed.all_open()
            return found

    codes = Counter(asyncio.run(scenario()))
    assert codes == {200: 20, 429: 20}
    row = asyncio.run(settled(keyed, "few", 40))
    assert (row["images"], row["refusals"]) == (20, 20)


def test_slots_of_a_key_hold_over_workers_and_kills(keyed: RunningCell) -> None:
    token = make(keyed, "narrow", "--concurrency", "3")
    known_after_s(keyed, token, 200)

    async def scenario() -> None:
        async with httpx.AsyncClient(timeout=120) as http:
            first = [asyncio.create_task(draw(http, keyed, token, steps=50)) for _ in range(3)]
            await asyncio.sleep(0.3)
            refused = await draw(http, keyed, token)
            assert (refused.status_code, refused.headers["Retry-After"]) == (429, "2")
            for worker in ("w1", "w2", "w3"):
                if not all(task.done() for task in first):
                    faults.kill(keyed, worker)
                    await keyed.closed(worker)
                    break
            assert [one.status_code for one in await asyncio.gather(*first)] == [200] * 3
            again = await asyncio.gather(*(draw(http, keyed, token) for _ in range(3)))
            assert [one.status_code for one in again] == [200] * 3
            await keyed.all_open()

    asyncio.run(scenario())


@pytest.mark.parametrize("fault", ["database-locked", "database-missing", "database-full"])
def test_drawing_goes_on_without_the_database_and_is_counted_later(
    keyed: RunningCell, fault: str
) -> None:
    name = f"during {fault}"
    token = make(keyed, name)
    known_after_s(keyed, token, 200)

    async def scenario() -> None:
        async with httpx.AsyncClient(timeout=120) as http:
            with FAULTS[fault].inject(keyed, ""):
                for _ in range(8):
                    assert (await draw(http, keyed, token)).status_code == 200
                    await asyncio.sleep(0.2)
                assert used_or_nothing(keyed, name) in (0, None)
            assert (await draw(http, keyed, token)).status_code == 200

    asyncio.run(scenario())
    row = asyncio.run(settled(keyed, name, 9))
    assert (row["requests"], row["images"]) == (9, 9)


def used_or_nothing(cell: RunningCell, name: str) -> int | None:
    """Requests of ``name`` in the ledger; None where it cannot be read."""
    with contextlib.suppress(sqlite3.Error):
        uri = f"file:{cell.layout.database}?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as raw:
            wanted = "SELECT sum(requests) FROM usage_days JOIN keys ON owner = id WHERE name = ?"
            return int(raw.execute(wanted, (name,)).fetchone()[0] or 0)
    return None


def test_what_a_killed_worker_had_not_entered_is_entered_by_another(keyed: RunningCell) -> None:
    token = make(keyed, "patient")
    known_after_s(keyed, token, 200)

    async def scenario() -> None:
        async with httpx.AsyncClient(timeout=120) as http:
            with FAULTS["database-missing"].inject(keyed, ""):
                for _ in range(6):
                    assert (await draw(http, keyed, token)).status_code == 200
                faults.kill(keyed, "w1")  # its journal stays, for whoever finds it
                await keyed.closed("w1")
                assert (await draw(http, keyed, token)).status_code == 200
            await keyed.all_open()

    asyncio.run(scenario())
    row = asyncio.run(settled(keyed, "patient", 7))
    assert (row["requests"], row["images"]) == (7, 7)


def test_usage_is_shown_as_table_csv_and_json(keyed: RunningCell) -> None:
    token = make(keyed, "=cmd()")
    known_after_s(keyed, token, 200)

    async def scenario() -> None:
        async with httpx.AsyncClient(timeout=60) as http:
            assert (await draw(http, keyed, token)).status_code == 200

    asyncio.run(scenario())
    asyncio.run(settled(keyed, "=cmd()", 1))
    table = keyed.zimage("usage", "--by", "day").stdout
    assert "megapixel" not in table
    assert "GPU s" in table
    lines = keyed.zimage("usage", "--csv").stdout.splitlines()
    assert lines[0].startswith("key,requests,images,megapixel_steps")
    assert any(line.startswith("'=cmd(),1,1,") for line in lines)  # no formula for a spreadsheet
    assert keyed.zimage("usage", "--since", "soon").returncode == 2
    assert keyed.zimage("usage", "--since", "2099-01-01").stdout == "nothing was used\n"
