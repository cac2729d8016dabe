import base64
import io
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import numpy as np
import pytest
from PIL import Image

from tests.worker.conftest import ready, serving, settings_in
from worker.api.routes.images import default_seed
from worker.coordination.heartbeat import HeartbeatFile, Phase, Running, digest
from worker.generation.imaging import Encoders, Picture
from worker.generation.recording import Recording, Timings
from worker.lifecycle import Lifecycle
from worker.models.synthetic import text_of

pytestmark = pytest.mark.anyio
URL = "/v1/images/generations"
ID = "0123456789abcdef0123456789abcdef"


def pixels_of(item: dict[str, Any]) -> Any:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(item["b64_json"]))))


async def running(service: Lifecycle) -> None:
    """Wait until a request is being drawn."""
    deadline = time.monotonic() + 30
    while not service.model.engine.state().running:
        assert time.monotonic() < deadline
        await anyio.sleep(0.005)


def events_of(text: str) -> list[dict[str, Any]]:
    frames = [frame.split("\n") for frame in text.split("\n\n") if frame.startswith("event:")]
    events = [json.loads(data.removeprefix("data: ")) for _, data in frames]
    assert [e["type"] for e in events] == [kind.removeprefix("event: ") for kind, _ in frames]
    return events


async def test_picture_is_the_one_that_was_asked_for(client: httpx.AsyncClient) -> None:
    body = {"prompt": "a fox", "size": "128x64", "seed": 7, "steps": 3}
    answer = await client.post(URL, json=body)
    item = answer.json()["data"][0]
    assert text_of(pixels_of(item)) == "a fox|7|3"
    assert pixels_of(item).shape == (64, 128, 3)
    assert item["seed"] == 7


async def test_pictures_come_prompt_by_prompt_with_rising_seeds(client: httpx.AsyncClient) -> None:
    body = {"prompt": ["a", "b"], "n": 2, "seed": 2**32 - 2, "steps": 1}
    data = (await client.post(URL, json=body)).json()["data"]
    texts = [text_of(pixels_of(item)) for item in data]
    assert texts == ["a|4294967294|1", "a|4294967295|1", "b|0|1", "b|1|1"]
    assert [item["seed"] for item in data] == [2**32 - 2, 2**32 - 1, 0, 1]


async def test_replay_without_a_seed_draws_the_same(client: httpx.AsyncClient) -> None:
    first = await client.post(URL, json={"prompt": "a"}, headers={"X-Request-ID": ID})
    second = await client.post(URL, json={"prompt": "a"}, headers={"X-Request-ID": ID})
    assert first.json()["data"] == second.json()["data"]
    assert first.json()["data"][0]["seed"] == default_seed(ID)


async def test_answer_carries_id_worker_and_times(client: httpx.AsyncClient) -> None:
    answer = await client.post(URL, json={"prompt": "a", "n": 3}, headers={"X-Request-ID": ID})
    assert answer.headers["x-request-id"] == ID
    assert answer.headers["x-worker"] == "w1"
    assert answer.headers["x-batch-size"] == "3"
    assert int(answer.headers["x-inference-ms"]) >= 8 > int(answer.headers["x-queue-ms"]) - 1000
    assert int(answer.headers["content-length"]) == len(answer.content)


@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp"])
async def test_format_is_the_one_that_was_asked_for(
    client: httpx.AsyncClient, image_format: str
) -> None:
    answer = await client.post(URL, json={"prompt": "a", "output_format": image_format})
    data = base64.b64decode(answer.json()["data"][0]["b64_json"])
    assert Image.open(io.BytesIO(data)).format == image_format.upper()
    assert answer.json()["output_format"] == image_format


async def test_lower_quality_makes_a_smaller_jpeg(home: Path) -> None:
    sizes = []
    async with serving(settings_in(home, model="synthetic:step_ms=1,noise=1")) as (service, client):
        await ready(service)
        for quality in (20, 90):
            body = {"prompt": "a", "output_format": "jpeg", "output_compression": quality}
            sizes.append(len((await client.post(URL, json=body)).content))
    assert sizes[0] * 2 < sizes[1]


async def test_failed_drawing_is_a_500_without_a_trace(client: httpx.AsyncClient) -> None:
    answer = await client.post(URL, json={"prompt": "fault:error"})
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    assert "Traceback" not in answer.text


async def test_worker_draws_on_after_a_failed_drawing(client: httpx.AsyncClient) -> None:
    await client.post(URL, json={"prompt": "fault:error"})
    assert (await client.post(URL, json={"prompt": "a"})).status_code == 200


async def test_a_request_over_its_own_time_limit_is_a_408(home: Path) -> None:
    async with serving(settings_in(home, model="synthetic:step_ms=100")) as (service, client):
        await ready(service)
        answer = await client.post(URL, json={"prompt": "a", "steps": 50, "timeout_s": 0.3})
        assert (answer.status_code, answer.json()["error"]["code"]) == (408, "deadline_passed")
        assert service.model.engine.state().running == 0


async def test_batch_work_lets_interactive_requests_pass(home: Path) -> None:
    done: list[str] = []

    async def draw(client: httpx.AsyncClient, priority: str, steps: int) -> None:
        body = {"prompt": "a", "steps": steps, "priority": priority}
        assert (await client.post(URL, json=body)).status_code == 200
        done.append(priority)

    settings = settings_in(home, model="synthetic:step_ms=50", max_batch=1)
    async with serving(settings) as (service, client):
        await ready(service)
        async with anyio.create_task_group() as group:
            group.start_soon(draw, client, "batch", 20)
            await running(service)
            group.start_soon(draw, client, "interactive", 5)
    assert done == ["interactive", "batch"]


async def test_full_queue_is_a_503_with_retry_after(home: Path) -> None:
    settings = settings_in(home, model="synthetic:step_ms=100", max_queued_requests=1, max_batch=1)
    statuses: list[tuple[int, str | None]] = []

    async def draw(client: httpx.AsyncClient) -> None:
        answer = await client.post(URL, json={"prompt": "a"})
        statuses.append((answer.status_code, answer.headers.get("retry-after")))

    async with serving(settings) as (service, client):
        await ready(service)
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(draw, client)
    refused = [after for status, after in statuses if status == 503]
    assert 1 <= len(refused) < 5
    assert all(after is not None and 1 <= int(after) <= 120 for after in refused)


async def test_stream_tells_place_steps_pictures_and_its_end(client: httpx.AsyncClient) -> None:
    body = {"prompt": "a", "seed": 5, "n": 2, "steps": 2, "stream": True}
    answer = await client.post(URL, json=body, headers={"X-Request-ID": ID})
    events = events_of(answer.text)
    assert events[0]["type"] == "image_generation.queued"
    assert (events[0]["request_id"], events[0]["seeds"]) == (ID, [5, 6])
    assert (events[0]["position"], events[0]["wait_s"] < 10) == (0, True)
    completed = [e for e in events if e["type"] == "image_generation.completed"]
    assert [text_of(pixels_of(e)) for e in completed] == ["a|5|2", "a|6|2"]
    assert events[-1]["type"] == "image_generation.done"
    assert (events[-1]["images"], events[-1]["seeds"]) == (2, [5, 6])


async def test_stream_that_hardly_waited_ends_with_done_too(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    timings = Timings(queue_ms=0, inference_ms=1, batch_size=1)
    monkeypatch.setattr(Recording, "account", lambda self: timings)
    answer = await client.post(URL, json={"prompt": "a", "steps": 1, "stream": True})
    end = events_of(answer.text)[-1]
    assert (end["type"], end["queue_ms"]) == ("image_generation.done", 0)


async def test_stream_steps_count_up_to_the_last(home: Path) -> None:
    async with serving(settings_in(home, model="synthetic:step_ms=20")) as (service, client):
        await ready(service)
        answer = await client.post(URL, json={"prompt": "a", "steps": 4, "stream": True})
    steps = [e for e in events_of(answer.text) if e["type"] == "image_generation.step"]
    assert [e["step"] for e in steps][-1] == 4
    assert {e["steps"] for e in steps} == {4}


async def test_stream_is_neither_buffered_nor_cached(client: httpx.AsyncClient) -> None:
    answer = await client.post(URL, json={"prompt": "a", "stream": True})
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.headers["cache-control"] == "no-store"
    assert "content-length" not in answer.headers


async def test_previews_are_pictures_too(home: Path) -> None:
    async with serving(settings_in(home, model="synthetic:step_ms=20")) as (service, client):
        await ready(service)
        body = {"prompt": "a", "stream": True, "partial_images": 2}
        answer = await client.post(URL, json=body)
    previews = [e for e in events_of(answer.text) if e["type"].endswith("partial_image")]
    assert [e["partial_image_index"] for e in previews] == [0, 1]
    assert pixels_of(previews[0]).shape == (64, 64, 3)


async def test_failed_stream_ends_with_an_error_and_not_with_done(
    client: httpx.AsyncClient,
) -> None:
    answer = await client.post(URL, json={"prompt": "fault:error", "stream": True})
    events = events_of(answer.text)
    assert answer.status_code == 200
    assert events[-1]["type"] == "error"
    assert events[-1]["error"]["type"] == "server_error"


async def test_refused_stream_is_a_plain_json_error(home: Path) -> None:
    async with serving(settings_in(home)) as (service, client):
        await ready(service)
        service.drain()
        answer = await client.post(URL, json={"prompt": "a", "stream": True})
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "draining"


async def test_url_leads_to_the_file_of_the_picture(client: httpx.AsyncClient, home: Path) -> None:
    body = {"prompt": "a", "seed": 3, "steps": 1, "response_format": "url"}
    headers = {"X-Request-ID": ID, "X-Forwarded-Proto": "https", "Host": "draw.example:7860"}
    answer = await client.post(URL, json=body, headers=headers)
    url = httpx.URL(answer.json()["data"][0]["url"])
    assert (url.scheme, url.netloc) == ("https", b"draw.example:7860")
    sent = await client.get(url.raw_path.decode())
    assert sent.headers["content-type"] == "image/png"
    path = home / sent.headers["x-accel-redirect"].removeprefix("/internal/")
    assert text_of(np.asarray(Image.open(path))) == "a|3|1"


async def test_full_disk_refuses_links_and_nothing_else(
    client: httpx.AsyncClient, home: Path
) -> None:
    (home / "images").write_text("a file where the folder should be")
    with_url = await client.post(URL, json={"prompt": "a", "response_format": "url"})
    assert with_url.status_code == 507
    assert with_url.json()["error"]["code"] == "storage_failed"
    assert (await client.post(URL, json={"prompt": "a"})).status_code == 200


async def test_malformed_request_id_and_start_are_replaced(client: httpx.AsyncClient) -> None:
    headers = {"X-Request-ID": "../../etc", "X-Request-Start": "yesterday"}
    answer = await client.post(URL, json={"prompt": "a"}, headers=headers)
    assert answer.status_code == 200
    assert len(answer.headers["x-request-id"]) == 32


async def test_client_that_sends_no_body_is_given_up(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never() -> AsyncIterator[bytes]:
        await anyio.sleep(60)
        yield b""

    monkeypatch.setattr("worker.api.client.BODY_TIMEOUT_S", 0.05)
    began = time.monotonic()
    headers = {"Content-Type": "application/json"}
    answer = await client.post(URL, content=never(), headers=headers)
    assert answer.status_code == 408
    assert time.monotonic() - began < 30


async def test_strikes_that_cannot_be_read_do_not_stop_the_drawing(
    client: httpx.AsyncClient, home: Path
) -> None:
    (home / "strikes").write_text("a file where the folder should be")
    died = HeartbeatFile(home / "run" / "w9.beat")
    died.enter(Phase.STEP, -1.0, [Running(digest(ID), digest("f"))])
    answer = await client.post(URL, json={"prompt": "a"}, headers={"X-Request-ID": ID})
    assert answer.status_code == 200


async def test_name_of_a_megabyte_is_refused_at_once(client: httpx.AsyncClient) -> None:
    answer = await client.post(URL, json={"prompt": "a", "x" * 1_000_000: 1})
    assert answer.status_code == 400
    assert len(answer.content) < 1000


@pytest.mark.parametrize("stream", [False, True])
async def test_picture_that_cannot_be_encoded_is_an_error_and_no_hang(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    def broken(*_: object) -> Picture:
        raise MemoryError

    monkeypatch.setattr(Encoders, "encoded", broken)
    answer = await client.post(URL, json={"prompt": "a", "n": 2, "stream": stream})
    assert '"code":"drawing_failed"' in answer.text
    assert (answer.status_code == 500) != stream
    monkeypatch.undo()
    assert (await client.post(URL, json={"prompt": "a"})).status_code == 200
