"""schemathesis on a real cell: thousands of odd requests, no 5xx, no undocumented answer.

Of callers without a key; those with one ask a worker alone, in tests/worker/api/test_odd_requests.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.cluster.conftest import RunningCell, started
from tests.odd_requests import try_all

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900), pytest.mark.long]

# Small pictures: what is tried are the requests.
LIMITS = "max_pixels = 16_384\nmax_images = 2\nmax_steps = 4\n"


@pytest.fixture(scope="module")
def cell() -> Iterator[RunningCell]:
    with started(model="synthetic:step_ms=0", workers=2, limits=LIMITS) as running:
        body = {"prompt": "a fox", "size": "64x64"}
        for _ in range(3):
            done = httpx.post(f"{running.url}/v1/images/generations", json=body, timeout=60)
            assert done.status_code == 200
        yield running


def test_document_comes_through_nginx(cell: RunningCell) -> None:
    document = httpx.get(f"{cell.url}/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    assert "/v1/images/generations" in document["paths"]
    assert not document["security"]


def test_nothing_that_is_sent_makes_a_5xx_or_an_undocumented_answer(
    cell: RunningCell, tmp_path: Path
) -> None:
    try_all(cell.url, {}, tmp_path)
    assert httpx.get(f"{cell.url}/readyz").status_code == 200
    said = answers_of(cell)
    assert sum(count for status, count in said.items() if status < 300) > 100, said


def answers_of(cell: RunningCell) -> Counter[int]:
    """How often each status stands in the access log."""
    lines = cell.layout.access_log.read_text().splitlines()
    return Counter(json.loads(line)["status"] for line in lines)
