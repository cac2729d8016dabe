"""What a collector hears, asked with a collector."""

import contextlib
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.worker.conftest import migrated, ready, serving, settings_in
from worker import tables
from worker.lifecycle import Lifecycle
from worker.observability.traces import OFF, Traces, traces_to
from worker.settings import Settings

REQUEST_ID = "ab" * 16
PARENT = "00-" + "cd" * 16 + "-" + "12" * 8 + "-01"


class Collector:
    """Takes OTLP over HTTP, as protobuf, and keeps the spans."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.services: set[str] = set()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.take(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}/v1/traces"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def take(self, told: ExportTraceServiceRequest) -> None:
        for resource in told.resource_spans:
            self.services |= {a.value.string_value for a in resource.resource.attributes}
            for scope in resource.scope_spans:
                self.spans += scope.spans

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]

    def under(self, root: Span) -> list[str]:
        found = [span for span in self.spans if span.parent_span_id == root.span_id]
        assert {span.trace_id for span in found} <= {root.trace_id}
        return sorted(span.name for span in found)


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.server.shutdown()
    made.server.server_close()


def traced(home: Path, endpoint: str) -> Settings:
    return settings_in(home, traces=tables.Traces(endpoint=endpoint))


@contextlib.asynccontextmanager
async def tracing(settings: Settings) -> AsyncIterator[tuple[Lifecycle, httpx.AsyncClient]]:
    """A worker that is ready; all its spans are with the collector after it."""
    async with serving(settings) as (service, client):
        await ready(service)
        yield service, client


def about(span: Span) -> dict[str, Any]:
    return {pair.key: pair.value.string_value or pair.value.int_value for pair in span.attributes}


@pytest.mark.anyio
async def test_a_request_is_a_trace_from_its_arrival_to_its_answer(
    collector: Collector, home: Path
) -> None:
    async with tracing(traced(home, collector.endpoint)) as (service, client):
        arrived = f"{(began := service.started_at):.3f}"
        headers = {"X-Request-ID": REQUEST_ID, "X-Request-Start": arrived}
        body = {"prompt": "a fox", "n": 2, "size": "64x64"}
        answer = await client.post("/v1/images/generations", json=body, headers=headers)
        assert answer.status_code == 200
    [root] = collector.named("request")
    assert root.trace_id.hex() == REQUEST_ID
    assert root.parent_span_id == b""
    assert root.start_time_unix_nano == pytest.approx(began * 1e9, abs=1e7)
    assert about(root)["http.route"] == "/v1/images/generations"
    assert about(root)["http.response.status_code"] == 200
    assert collector.under(root) == sorted(["admit", *["queue", "draw", "encode"] * 2, "record"])
    for span in collector.spans:
        assert root.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= root.end_time_unix_nano
    assert {about(span)["image_index"] for span in collector.named("draw")} == {0, 1}
    assert {"zimage", "w1"} <= collector.services


@pytest.mark.anyio
async def test_a_stream_and_what_is_refused_stand_under_the_senders_span(
    collector: Collector, home: Path
) -> None:
    async with tracing(traced(home, collector.endpoint)) as (_, client):
        headers = {"X-Request-ID": REQUEST_ID, "traceparent": PARENT}
        for body in ({"prompt": "a fox", "stream": True, "size": "64x64"}, {"prompt": 7}):
            await client.post("/v1/images/generations", json=body, headers=headers)
    drawn, refused = collector.named("request")
    for root in (drawn, refused):
        assert root.trace_id.hex() == "cd" * 16
        assert root.parent_span_id.hex() == "12" * 8
    assert collector.under(drawn) == sorted(["admit", "queue", "draw", "encode", "record"])
    assert about(refused)["http.response.status_code"] == 400
    assert collector.under(refused) == []


@pytest.mark.anyio
async def test_a_sender_who_is_not_traced_is_not_traced_here(
    collector: Collector, home: Path
) -> None:
    async with tracing(traced(home, collector.endpoint)) as (_, client):
        headers = {"traceparent": PARENT[:-2] + "00"}
        await client.post("/v1/images/generations", json={"prompt": "a"}, headers=headers)
        await client.get("/readyz")
    assert collector.spans == []


@pytest.mark.anyio
@pytest.mark.parametrize("parent", ["", "nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
async def test_nonsense_above_a_request_is_left(
    collector: Collector, home: Path, parent: str
) -> None:
    async with tracing(traced(home, collector.endpoint)) as (_, client):
        headers = {"X-Request-ID": REQUEST_ID, "traceparent": parent}
        assert (await client.get("/v1/models", headers=headers)).status_code == 200
    [root] = collector.named("request")
    assert root.trace_id.hex() == REQUEST_ID


@pytest.mark.anyio
async def test_the_pictures_of_a_job_stand_under_the_request_that_made_it(
    collector: Collector, home: Path
) -> None:
    settings = migrated(traced(home, collector.endpoint))
    async with tracing(settings) as (_, client):
        body = {"prompts": ["a fox", "a hen"], "size": "64x64"}
        job = (await client.post("/v1/jobs", json=body, headers={"traceparent": PARENT})).json()
        path = f"/v1/jobs/{job['id']}/events"
        async with client.stream("GET", path, timeout=30) as events:
            await events.aread()
    made = next(r for r in collector.named("request") if about(r)["http.route"] == "/v1/jobs")
    assert made.trace_id.hex() == "cd" * 16
    items = collector.named("item")
    assert [item.parent_span_id for item in items] == [made.span_id] * 2
    assert {about(item)["number"] for item in items} == {1, 2}
    for item in items:
        assert collector.under(item) == sorted(["admit", "queue", "draw", "encode", "record"])


@pytest.mark.anyio
async def test_a_collector_that_is_away_holds_up_nobody(home: Path) -> None:
    settings = traced(home, "http://127.0.0.1:9/v1/traces")
    async with tracing(settings) as (_, client):
        answer = await client.post("/v1/images/generations", json={"prompt": "a", "size": "64x64"})
        assert answer.status_code == 200


def test_traces_that_are_off_do_nothing_and_import_nothing() -> None:
    assert type(traces_to("", 1.0, "w1", "1")) is Traces
    assert Traces().begin("request", 0.0, REQUEST_ID, PARENT) is OFF
    script = "import sys, worker.app, worker.jobs.runner; print('opentelemetry' in sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert ran.stdout.strip() == "False"


def test_without_the_extra_traces_are_off_and_the_log_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[dict[str, Any]] = []
    monkeypatch.setattr("worker.log.failure", lambda name, error, **more: said.append(more))
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    assert type(traces_to("http://127.0.0.1:9/v1/traces", 1.0, "w1", "1")) is Traces
    assert "zimage-cluster[otel]" in said[0]["remedy"]
