"""schemathesis on a real cell: thousands of odd requests, no 5xx, no undocumented answer."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.cluster.conftest import RunningCell, started
from tests.cluster.test_keys import bearer, known_after_s, make

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


@dataclass(frozen=True)
class Asked:
    """A cell, and who asks it: the headers that say so, and the checks that fit."""

    cell: RunningCell
    headers: dict[str, str]
    checks: tuple[str, ...] = CHECKS


@pytest.fixture(scope="module", params=["anybody", "a key", "a key of role ops"])
def asked(request: pytest.FixtureRequest) -> Iterator[Asked]:
    with started(
        model="synthetic:step_ms=0",
        workers=2,
        limits=LIMITS,
        auth="loopback" if request.param == "anybody" else "keys",
        # They are tried in test_keys.py; here their refusals would stand before all others.
        more="[auth]\nwrong_keys_per_minute = 100_000\n",
    ) as cell:
        asked = Asked(cell, {})
        if request.param != "anybody":
            role = "ops" if "ops" in request.param else "user"
            token = make(cell, "tester", "--role", role)
            known_after_s(cell, token, 200)
            asked = Asked(cell, bearer(token), (*CHECKS, "ignored_auth"))
        body = {"prompt": "a fox", "size": "64x64"}
        for _ in range(3):
            url = f"{cell.url}/v1/images/generations"
            done = httpx.post(url, json=body, headers=asked.headers, timeout=60)
            assert done.status_code == 200
        yield asked


def test_document_comes_through_nginx(asked: Asked) -> None:
    document = httpx.get(f"{asked.cell.url}/openapi.json", headers=asked.headers).json()
    assert document["openapi"] == "3.1.0"
    assert "/v1/images/generations" in document["paths"]
    assert bool(document["security"]) == bool(asked.headers)


def test_nothing_that_is_sent_makes_a_5xx_or_an_undocumented_answer(
    asked: Asked, tmp_path: Path
) -> None:
    # A folder of its own: it keeps examples there.
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{asked.cell.url}/openapi.json"),
            *("--checks", ",".join(asked.checks)),
            *("--max-examples", os.environ.get("ZIMAGE_SCHEMATHESIS_EXAMPLES", "40")),
            # The events of a paused job have no end.
            *("--exclude-path-regex", "/events$"),
            *("--request-timeout", "60", "--seed", "1", "--no-color", "--continue-on-failure"),
            *(f"--header={name}: {value}" for name, value in asked.headers.items()),
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
    assert httpx.get(f"{asked.cell.url}/readyz").status_code == 200
    said = answers_of(asked.cell)
    assert sum(count for status, count in said.items() if status < 300) > 100, said


def answers_of(cell: RunningCell) -> Counter[int]:
    """How often each status stands in the access log."""
    lines = cell.layout.access_log.read_text().splitlines()
    return Counter(json.loads(line)["status"] for line in lines)
