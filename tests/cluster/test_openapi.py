"""schemathesis on a real cell: thousands of odd requests, no 5xx, no undocumented answer."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.cluster.conftest import RunningCell, started

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "missing_required_header",
    "unsupported_method",
)
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


def test_nothing_that_is_sent_makes_a_5xx_or_an_undocumented_answer(
    cell: RunningCell, tmp_path: Path
) -> None:
    # A folder of its own: it keeps examples there.
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{cell.url}/openapi.json"),
            *("--checks", ",".join(CHECKS)),
            *("--max-examples", os.environ.get("ZIMAGE_SCHEMATHESIS_EXAMPLES", "40")),
            # The events of a paused job have no end.
            *("--exclude-path-regex", "/events$"),
            *("--request-timeout", "60", "--seed", "1", "--no-color", "--continue-on-failure"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    tried = re.search(r"(\d+) generated, \1 passed", done.stdout)
    assert tried, done.stdout[-3000:]
    assert int(tried[1]) > 300
    assert httpx.get(f"{cell.url}/readyz").status_code == 200
