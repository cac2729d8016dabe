import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from tests.worker.conftest import load_synthetic, ready, serving, settings_in, until
from worker import exits
from worker.engine import Engine
from worker.models.base import OnInnerStep, Pipeline, Sample
from worker.settings import Settings

pytestmark = pytest.mark.anyio
URL = "/v1/images/generations"


async def test_traffic_is_refused_while_the_model_loads(home: Path) -> None:
    loaded = threading.Event()

    def load(settings: Settings) -> Pipeline:
        assert loaded.wait(30)
        return load_synthetic(settings)

    async with serving(settings_in(home), load) as (service, client):
        answer = await client.get("/readyz")
        assert (answer.status_code, answer.json()["reason"]) == (503, "loading")
        assert answer.json()["phase"] == "load"
        refused = await client.post(URL, json={"prompt": "a"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
        assert 1 <= int(refused.headers["retry-after"]) <= 120
        loaded.set()
        await ready(service)
        assert (await client.post(URL, json={"prompt": "a"})).status_code == 200


async def test_worker_is_ready_only_after_a_picture_was_drawn(home: Path) -> None:
    async with serving(settings_in(home)) as (service, client):
        await ready(service)
        state = (await client.get("/livez")).json()
    assert state["ready"]
    assert state["engine"]["totals"]["pictures_drawn"] == 1


async def test_a_model_that_compiles_warms_up_with_a_few_steps(home: Path) -> None:
    steps = 0

    def load(settings: Settings) -> Pipeline:
        pipeline = load_synthetic(settings)
        pipeline.info = replace(pipeline.info, compiles=True, optimisations=(("kernels", "on"),))
        step = pipeline.step

        def counted(samples: Sequence[Sample], on_inner_step: OnInnerStep) -> None:
            nonlocal steps
            steps += 1
            step(samples, on_inner_step)

        pipeline.step = counted  # type: ignore[method-assign]
        return pipeline

    async with serving(settings_in(home), load) as (service, client):
        await ready(service)
        assert (await client.get("/livez")).json()["levers"] == {"kernels": "on"}
    assert steps == 2


async def test_model_that_does_not_load_ends_the_worker(home: Path) -> None:
    def load(settings: Settings) -> Pipeline:
        raise RuntimeError("no such model")

    async with serving(settings_in(home), load) as (service, client):
        with anyio.fail_after(30):
            assert await service.over == exits.MODEL_FAILED
        assert (await client.get("/readyz")).json()["reason"] == "broken"


async def test_warm_up_that_draws_nothing_ends_the_worker(home: Path) -> None:
    def load(settings: Settings) -> Pipeline:
        pipeline = load_synthetic(settings)
        pipeline.finish = lambda samples: 1 / 0  # type: ignore[method-assign,return-value,assignment]
        return pipeline

    async with serving(settings_in(home), load) as (service, _):
        with anyio.fail_after(30):
            assert await service.over == exits.MODEL_FAILED


async def test_warm_up_that_hangs_ends_the_worker(home: Path) -> None:
    go_on = threading.Event()

    def load(settings: Settings) -> Pipeline:
        pipeline = load_synthetic(settings)
        finish = pipeline.finish
        pipeline.finish = lambda samples: finish(samples) if go_on.wait(30) else []  # type: ignore[method-assign]
        return pipeline

    async with serving(settings_in(home, load_allowance_s=0.5), load) as (service, _):
        with anyio.fail_after(10):
            assert await service.over == exits.MODEL_FAILED
        go_on.set()


async def test_poisoned_device_answers_the_waiting_and_ends_the_worker(
    client: httpx.AsyncClient, settings: Settings
) -> None:
    answer = await client.post(URL, json={"prompt": "fault:poisoned"})
    assert answer.status_code == 503
    readiness = await client.get("/readyz")
    assert (readiness.status_code, readiness.json()["reason"]) == (503, "broken")


async def test_stalled_step_is_reported_as_stuck(home: Path) -> None:
    go_on = threading.Event()

    def load(settings: Settings) -> Pipeline:
        pipeline = load_synthetic(settings)
        step = pipeline.step

        def slow(samples: Any, on_inner_step: Any) -> None:
            if samples[0].spec.prompt == "stall":
                assert go_on.wait(30)
            step(samples, on_inner_step)

        pipeline.step = slow  # type: ignore[method-assign]
        return pipeline

    async with serving(settings_in(home, step_allowance_s=0.1), load) as (service, client):
        await ready(service)
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: client.post(URL, json={"prompt": "stall"}))
            await until(service, "stuck")
            answer = await client.get("/readyz")
            assert (answer.status_code, answer.json()["reason"]) == (503, "stuck")
            assert answer.json()["phase"] == "step"
            go_on.set()
        await ready(service)


async def test_drained_worker_refuses_until_undrained(client: httpx.AsyncClient) -> None:
    assert (await client.post("/admin/drain")).json()["reason"] == "draining"
    refused = await client.post(URL, json={"prompt": "a"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
    assert "x-accel-redirect" not in refused.headers
    again = await client.post(URL, json={"prompt": "a"}, headers={"X-Again": "1"})
    assert (again.status_code, again.headers["x-accel-redirect"]) == (503, "@again1")
    assert (await client.post("/admin/undrain")).json()["ready"]
    assert (await client.post(URL, json={"prompt": "a"})).status_code == 200


async def test_draining_while_loading_holds_after_it(home: Path) -> None:
    async with serving(settings_in(home)) as (service, client):
        await client.post("/admin/drain")
        await until(service, "draining")
        refused = await client.post(URL, json={"prompt": "a"})
    assert refused.status_code == 503


async def test_metrics_count_what_was_drawn(client: httpx.AsyncClient) -> None:
    await client.post(URL, json={"prompt": "a", "n": 2, "size": "64x64", "output_format": "webp"})
    text = (await client.get("/metrics")).text
    assert 'zimage_images_drawn_total{format="webp"} 2.0' in text
    assert "zimage_pixels_drawn_total 8192.0" in text
    assert "zimage_ready 1.0" in text
    assert 'zimage_inference_duration_seconds_count{size="256"} 2.0' in text
    assert "zimage_queue_duration_seconds_count 1.0" in text
    assert 'zimage_engine_requests_total{outcome="done"}' in text
    assert "zimage_build_info{" in text


async def test_unknown_paths_make_no_new_series(client: httpx.AsyncClient) -> None:
    await client.get("/a")
    await client.get("/b")
    text = (await client.get("/metrics")).text
    assert 'zimage_http_requests_total{code="404",route="none"} 2.0' in text


async def test_models_are_listed_with_their_limits(client: httpx.AsyncClient) -> None:
    listed = (await client.get("/v1/models")).json()
    assert [m["id"] for m in listed["data"] if m["alias_of"] is None] == ["synthetic"]
    assert listed["data"][0] == (await client.get("/v1/models/synthetic")).json()
    assert listed["data"][0]["default_size"] == "256x256"
    assert listed["data"][0]["max_prompt_tokens"] is None  # it has none
    assert (listed["data"][0]["edits"], listed["data"][0]["masks"]) == (True, True)
    assert listed["data"][0]["loras"] is True
    unknown = await client.get("/v1/models/gpt-4")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")


async def test_the_guards_question_needs_no_full_state(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked five times a second of each worker, drawing or not."""
    monkeypatch.setattr(Engine, "state", lambda _: 1 // 0)
    answer = await client.get("/readyz")
    assert (answer.status_code, answer.json()["queued"], answer.json()["running"]) == (200, 0, 0)


async def test_a_worker_says_that_it_is_full(home: Path) -> None:
    settings = settings_in(home, model="synthetic:step_ms=100", max_queued_requests=1, max_batch=1)
    async with serving(settings) as (service, client), anyio.create_task_group() as clients:
        await ready(service)
        assert (await client.get("/readyz")).json()["full"] is False
        for backlog in ((0, 1), (1, 1)):
            clients.start_soon(lambda: client.post(URL, json={"prompt": "a"}))
            with anyio.fail_after(30):
                while service.backlog()[:2] != backlog:  # noqa: ASYNC110 — nothing tells it
                    await anyio.sleep(0.005)
        answer = await client.get("/readyz")
        assert (answer.status_code, answer.json()["full"]) == (200, True)
