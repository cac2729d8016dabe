"""What a search may ask, how long it may take, and how many of one key go on at a time."""

import asyncio
import threading

import httpx
import pytest
import sqlalchemy as sa

from worker.lifecycle import Lifecycle
from worker.storage import gallery
from worker.storage.gallery import StoredImage, Wanted

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


async def search(client: httpx.AsyncClient, query: str, address: str = "10.0.0.7") -> int:
    headers = {"X-Real-IP": address}
    return (await client.get("/v1/images", params={"q": query}, headers=headers)).status_code


async def test_too_many_words_are_refused_with_the_number(client: httpx.AsyncClient) -> None:
    words = [f"w{k}" for k in range(17)]
    assert await search(client, " ".join(words[:16] * 2)) == 200  # said twice is said once
    answer = await client.get("/v1/images", params={"q": " ".join(words)})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "q")
    assert "17 words; at most 16" in answer.json()["error"]["message"]


async def test_a_search_that_takes_too_long_says_what_to_do(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.storage.database._SEARCH_S", 0.05)

    def endless(connection: sa.Connection, _: Wanted) -> list[StoredImage]:
        numbers = "WITH RECURSIVE n(k) AS (SELECT 1 UNION ALL SELECT k + 1 FROM n)"
        connection.exec_driver_sql(f"{numbers} SELECT count(*) FROM n")
        return []

    monkeypatch.setattr(gallery, "page", endless)
    answer = await client.get("/v1/images", params={"q": "fox"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("q: takes too long: search for more of")


async def test_a_report_of_too_many_days_says_what_to_do(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.storage.database._SEARCH_S", -1.0)
    monkeypatch.setattr("worker.storage.database._STEPS", 1)
    answer = await client.get("/v1/usage")
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "since: takes too long: ask for fewer days."


async def test_searches_of_one_leave_room_for_others_and_for_all_else(
    cell: tuple[Lifecycle, httpx.AsyncClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    service, client = cell
    go, page = threading.Event(), gallery.page

    def slow(connection: sa.Connection, wanted: Wanted) -> list[StoredImage]:
        if wanted.words:
            go.wait(30)
        return page(connection, wanted)

    monkeypatch.setattr(gallery, "page", slow)
    mine = [asyncio.create_task(search(client, "fox")) for _ in range(12)]
    theirs = asyncio.create_task(search(client, "fox", "10.0.0.8"))
    async with asyncio.timeout(20):
        while service.components.searches._held.total() < 5:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert (await client.get("/v1/images")).status_code == 200
        go.set()
        assert sorted(await asyncio.gather(*mine)) == [200] * 4 + [429] * 8
        assert await theirs == 200
