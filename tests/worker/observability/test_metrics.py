from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from worker.coordination.heartbeat import Phase
from worker.engine.state import Counters, EngineState
from worker.observability.metrics import Metrics, Reading, size_class

STATE = EngineState(
    started=True,
    draining=False,
    broken=None,
    stuck=False,
    phase=Phase.STEP,
    phase_age_s=0.1,
    queued=3,
    running=2,
    batch=2,
    predicted_wait_s=1.5,
    steps_done=10,
    totals=vars(Counters(out_of_memory=1, requests_done=4, busy_s=2.5, device_s=2.0)),
    batches={1: 6, 2: 3, 40: 1},
    step_ms={},
    refused_sizes=(),
    caption_lookups=(7, 2),
)


def samples(metrics: Metrics) -> dict[str, float]:
    return dict(_samples(metrics))


def _samples(metrics: Metrics) -> Iterator[tuple[str, float]]:
    for family in text_string_to_metric_families(metrics.render().decode()):
        assert family.documentation
        for sample in family.samples:
            labels = ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))
            yield f"{sample.name}{{{labels}}}" if labels else sample.name, sample.value


def reading(engine: EngineState | None = STATE) -> Reading:
    memory = {"allocated": 5, "reserved": 6, "limit": 9}
    return Reading(True, 1, {"version": "1"}, None, engine, memory, database_failures=4)


def test_engine_is_read_when_asked() -> None:
    found = samples(Metrics(reading))
    assert found["zimage_queued_requests"] == 3
    assert found["zimage_database_failures_total"] == 4
    assert found["zimage_out_of_memory_total"] == 1
    assert found["zimage_device_seconds_total"] == 2.0
    assert found["zimage_engine_requests_total{outcome=done}"] == 4
    assert found["zimage_device_memory_reserved_bytes"] == 6
    assert found["zimage_caption_lookups_total{result=hit}"] == 7


def test_batches_are_a_histogram_of_pictures_a_step() -> None:
    found = samples(Metrics(reading))
    assert found["zimage_batch_pictures_bucket{le=1.0}"] == 6
    assert found["zimage_batch_pictures_bucket{le=32.0}"] == 9
    assert found["zimage_batch_pictures_count"] == 10
    assert found["zimage_batch_pictures_sum"] == 6 + 3 * 2 + 40


def test_worker_that_still_loads_has_metrics() -> None:
    found = samples(Metrics(lambda: Reading(False, 0, {"version": "1"})))
    assert found["zimage_ready"] == 0
    assert "zimage_queued_requests" not in found


@pytest.mark.parametrize(
    ("pixels", "size"),
    [
        (64 * 64, "256"),
        (256 * 256, "256"),
        (1280 * 720, "1024"),
        (2048 * 2048, "2048"),
        (4096 * 4096, "larger"),
    ],
)
def test_sizes_have_few_classes(pixels: int, size: str) -> None:
    assert size_class(pixels) == size


def test_what_happened_is_counted_where_it_belongs() -> None:
    metrics = Metrics(reading)
    for status in (200, 200, 503):
        metrics.answered("/v1/images/generations", status, 0.2)
    metrics.drew(512 * 512, 0.7, "png", 0.01)
    found = samples(metrics)
    assert found["zimage_http_requests_total{code=200,route=/v1/images/generations}"] == 2
    assert found["zimage_http_request_duration_seconds_count{route=/v1/images/generations}"] == 3
    assert found["zimage_inference_duration_seconds_sum{size=512}"] == 0.7
    assert found["zimage_pixels_drawn_total"] == 512 * 512


def test_a_first_strike_is_an_increase() -> None:
    assert samples(Metrics(reading))["zimage_strikes_total{action=refused}"] == 0


def test_a_duration_counts_where_it_is_not_longer_than_the_bound() -> None:
    metrics = Metrics(reading)
    for seconds in (0.05, 0.06, 400.0):
        metrics.queued(seconds)
    found = samples(metrics)
    assert found["zimage_queue_duration_seconds_bucket{le=0.05}"] == 1
    assert found["zimage_queue_duration_seconds_bucket{le=300.0}"] == 2
    assert found["zimage_queue_duration_seconds_bucket{le=+Inf}"] == 3
    assert found["zimage_queue_duration_seconds_count"] == 3
    assert found["zimage_queue_duration_seconds_sum"] == pytest.approx(400.11)
