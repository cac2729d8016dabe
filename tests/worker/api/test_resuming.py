"""A stream that was cut, sent again: in its place in the queue, and in nobody else's."""

import functools
import time
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from tests.worker.api.routes.test_images import URL, events_of, running
from tests.worker.conftest import ready, serving, settings_in
from worker.lifecycle import Lifecycle

pytestmark = pytest.mark.anyio
BODY = {"prompt": "cut", "seed": 7, "steps": 2, "stream": True}


async def place_of(
    client: httpx.AsyncClient, *, age_s: float = 60, address: str = "local", **body: Any
) -> str:
    """The place of a stream that arrived ``age_s`` ago."""
    headers = {"X-Request-Start": f"{time.time() - age_s:.3f}", "X-Real-IP": address}
    answer = await client.post(URL, json={**BODY, **body}, headers=headers)
    return str(events_of(answer.text)[0]["resume"])


async def queued(service: Lifecycle, count: int) -> None:
    deadline = time.monotonic() + 30
    while service.model.engine.state().queued < count:
        assert time.monotonic() < deadline
        await anyio.sleep(0.005)


def noted(caplog: pytest.LogCaptureFixture) -> dict[str, Any]:
    """What the log says of the last request."""
    lines = [r.fields for r in caplog.records if r.message == "request"]  # type: ignore[attr-defined]
    return dict(lines[-1])


async def order_of(service: Lifecycle, client: httpx.AsyncClient, place: str) -> list[str]:
    """In which order two others and, sent last with ``place``, the cut stream are drawn."""
    done: list[str] = []

    async def draw(**body: Any) -> None:
        answer = await client.post(URL, json=body)
        assert answer.status_code == 200, answer.text
        done.append(body["prompt"])

    async with anyio.create_task_group() as group:
        group.start_soon(functools.partial(draw, prompt="drawing", steps=20))
        await running(service)
        for count, name in enumerate(["earlier", "later"], 1):
            group.start_soon(functools.partial(draw, prompt=name, steps=2))
            await queued(service, count)
        group.start_soon(functools.partial(draw, **BODY, resume=place))
    return [name for name in done if name != "drawing"]


@pytest.fixture
def slow(home: Path) -> Any:
    return serving(settings_in(home, model="synthetic:step_ms=20", max_batch=1))


async def test_a_cut_stream_goes_on_before_all_who_came_after_it(slow: Any) -> None:
    async with slow as (service, client):
        await ready(service)
        place = await place_of(client)
        assert await order_of(service, client, place) == ["cut", "earlier", "later"]


@pytest.mark.parametrize(
    "given",
    [{"age_s": 901}, {"address": "10.0.0.2"}, {"seed": 8}, {"prompt": "another"}, {"steps": 1}],
    ids=["expired", "foreign", "of another seed", "of another prompt", "of less work"],
)
async def test_a_place_that_is_no_good_is_ignored(slow: Any, given: Any) -> None:
    async with slow as (service, client):
        await ready(service)
        place = await place_of(client, **given)
        assert await order_of(service, client, place) == ["earlier", "later", "cut"]


async def test_a_forged_place_is_ignored_and_noted(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    told_ms, signature = (await place_of(client)).split(".")
    forged = f"{int(told_ms) - 1000}.{signature}"  # a second earlier
    with caplog.at_level("INFO"):
        answer = await client.post(URL, json={**BODY, "resume": forged})
    assert events_of(answer.text)[-1]["type"] == "image_generation.done"
    assert noted(caplog)["resume"] == "ignored"


async def test_a_place_survives_every_cut(client: httpx.AsyncClient) -> None:
    place = await place_of(client)
    for _ in range(3):
        answer = await client.post(URL, json={**BODY, "resume": place})
        assert {e.get("resume", place) for e in events_of(answer.text)} == {place}


async def test_what_is_left_of_a_stream_keeps_the_place(client: httpx.AsyncClient) -> None:
    place = await place_of(client, n=3)
    answer = await client.post(URL, json={**BODY, "n": 2, "seed": 8, "resume": place})
    told, _, *signatures = place.split(".")
    assert events_of(answer.text)[0]["resume"] == ".".join([told, *signatures])


async def test_a_resumed_stream_may_use_the_reserve(home: Path) -> None:
    settings = settings_in(home, model="synthetic:step_ms=50", max_queued_requests=1, max_batch=1)
    async with serving(settings) as (service, client):
        await ready(service)
        place = await place_of(client)
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: client.post(URL, json={"prompt": "drawing"}))
            await running(service)
            group.start_soon(lambda: client.post(URL, json={"prompt": "waiting"}))
            await queued(service, 1)
            assert (await client.post(URL, json={**BODY, "prompt": "new"})).status_code == 503
            resumed = await client.post(URL, json={**BODY, "resume": place})
            assert resumed.status_code == 200


async def test_a_time_limit_counts_from_the_first_stream(client: httpx.AsyncClient) -> None:
    place = await place_of(client, age_s=60)
    body = {**BODY, "resume": place}
    assert (await client.post(URL, json={**body, "timeout_s": 50})).status_code == 408
    answer = await client.post(URL, json={**body, "timeout_s": 90})
    assert events_of(answer.text)[0]["resume"] == place, "the refused one has freed it"


async def test_a_resumed_stream_has_waited_here_only_as_long_as_it_did(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    place = await place_of(client, age_s=60)
    with caplog.at_level("INFO"):
        answer = await client.post(URL, json={**BODY, "resume": place})
    assert events_of(answer.text)[-1]["queue_ms"] < 10_000
    assert noted(caplog)["queue_ms"] < 10_000
    assert noted(caplog)["resumed_after_s"] >= 60
