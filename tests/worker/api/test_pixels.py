"""Pixels live until they are a file, and no longer: nobody waits for the garbage collector."""

import gc
import time
import weakref
from collections.abc import Iterator, Sequence

import anyio
import httpx
import pytest

from tests.worker.conftest import migrated, ready, serving
from worker.models.base import Sample
from worker.models.synthetic import SyntheticPipeline
from worker.settings import Settings
from worker.types import Pixels

pytestmark = pytest.mark.anyio
DRAW = "/v1/images/generations"
LARGE = "1024x1024"


class Counting(SyntheticPipeline):
    """Knows which of the pictures and previews that it drew are still held by somebody."""

    def __init__(self, source: str) -> None:
        super().__init__(source)
        self.drawn: list[weakref.ref[Pixels]] = []

    @property
    def alive(self) -> int:
        return sum(reference() is not None for reference in self.drawn)

    def finish(self, samples: Sequence[Sample]) -> list[Pixels]:
        return [self._counted(pixels) for pixels in super().finish(samples)]

    def preview(self, sample: Sample) -> Pixels | None:
        pixels = super().preview(sample)
        assert pixels is not None
        return self._counted(pixels.copy())

    def _counted(self, pixels: Pixels) -> Pixels:
        self.drawn.append(weakref.ref(pixels))
        return pixels


@pytest.fixture
def pipeline(settings: Settings) -> Counting:
    return Counting(settings.model)


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def alive_at_last(pipeline: Counting) -> int:
    """Those that nobody lets go: an encoder's thread may still be about to."""
    deadline = time.monotonic() + 10
    while pipeline.alive and time.monotonic() < deadline:
        time.sleep(0.005)
    return pipeline.alive


async def freed(pipeline: Counting) -> None:
    held = await anyio.to_thread.run_sync(alive_at_last, pipeline)
    assert not held, f"{held} of {len(pipeline.drawn)} are held"


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "a", "size": LARGE, "output_format": "jpeg"},
        {"prompt": "a", "size": LARGE, "n": 3},
        {"prompt": "a", "size": LARGE, "n": 2, "stream": True, "partial_images": 2},
    ],
)
async def test_answered_requests_keep_no_pixels(
    settings: Settings, pipeline: Counting, no_collector: None, body: dict[str, object]
) -> None:
    async with serving(settings, lambda _: pipeline) as (service, client):
        await ready(service)
        for _ in range(3):
            answer = await client.post(DRAW, json=body)
            assert answer.status_code == 200
        assert len(pipeline.drawn) > 3
        await freed(pipeline)


async def test_pixels_go_once_they_are_a_file_though_nobody_reads_it(
    settings: Settings, pipeline: Counting, no_collector: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(settings, lambda _: pipeline) as (service, client):
        await ready(service)
        save = service.components.images.save
        held: list[int] = []

        def look(name: str, data: bytes) -> None:
            held.append(alive_at_last(pipeline))
            save(name, data)

        monkeypatch.setattr(service.components.images, "save", look)
        body = {"prompt": "a", "size": LARGE, "response_format": "url", "store": False}
        assert (await client.post(DRAW, json=body)).status_code == 200
    assert held == [0], "while the file is being stored"


async def test_a_client_that_leaves_keeps_no_pixels(
    settings: Settings, pipeline: Counting, no_collector: None
) -> None:
    async with serving(settings, lambda _: pipeline) as (service, client):
        await ready(service)
        body = {"prompt": "a", "size": LARGE, "n": 4}
        with anyio.move_on_after(0.05):
            await client.post(DRAW, json=body)
        await service.model.engine.drained()
        await freed(pipeline)


async def test_items_of_jobs_keep_no_pixels(
    settings: Settings, pipeline: Counting, no_collector: None
) -> None:
    async with serving(migrated(settings), lambda _: pipeline) as (service, client):
        await ready(service)
        job = await _job(client)
        deadline = time.monotonic() + 30
        while (await client.get(f"/v1/jobs/{job}")).json()["state"] == "running":
            assert time.monotonic() < deadline
            await anyio.sleep(0.02)
        assert len(pipeline.drawn) >= 3
        await freed(pipeline)


async def _job(client: httpx.AsyncClient) -> str:
    body = {"prompts": ["a", "b", "c"], "size": LARGE}
    answer = await client.post("/v1/jobs", json=body)
    assert answer.status_code < 300, answer.text
    return str(answer.json()["id"])
