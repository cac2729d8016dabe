"""A cell moves from its file into PostgreSQL: old keys draw, old pictures are shown, jobs go on."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.cluster.conftest import RunningCell, edit, started
from tests.cluster.test_keys import bearer, known_after_s, make
from tests.deploy.processes import wait_until
from tests.postgres import Server

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300), pytest.mark.long]


@pytest.fixture
def cell() -> Iterator[RunningCell]:
    with started(auth="keys", workers=2, more="[gallery]\n") as running:
        yield running


def drawn(client: httpx.Client, prompt: str) -> int:
    body = {"prompt": prompt, "size": "64x64"}
    return client.post("/v1/images/generations", json=body).status_code


def pictures(client: httpx.Client) -> dict[str, bytes]:
    """Those of the gallery, by their prompts."""
    found = client.get("/v1/images").json()["data"]
    return {picture["prompt"]: client.get(picture["url"]).content for picture in found}


def used(client: httpx.Client) -> int:
    return sum(row["images"] for row in client.get("/v1/usage").json()["data"])


def job_of(client: httpx.Client, id: str) -> dict[str, Any]:
    found: dict[str, Any] = client.get(f"/v1/jobs/{id}").json()
    return found


def test_nothing_of_a_cell_is_lost_on_the_way_into_postgresql(
    cell: RunningCell, postgres: Server
) -> None:
    token = make(cell, "ada", "--images-per-day", "5")
    known_after_s(cell, token, 200)
    with (
        httpx.Client(base_url=cell.url, headers=bearer(token), timeout=60) as ada,
        postgres.database("zimage_cell") as url,
    ):
        assert drawn(ada, "a fox") == 200
        done = ada.post("/v1/jobs", json={"prompts": ["b", "c"], "size": "64x64"}).json()
        wait_until(lambda: job_of(ada, done["id"])["state"] == "completed", "drawn")
        wait_until(lambda: used(ada) == 3, "counted")
        wait_until(lambda: len(pictures(ada)) == 3, "kept")
        before, used_before = pictures(ada), ada.get("/v1/usage").json()
        refused = cell.zimage("database", "move", url)
        assert refused.returncode == 1
        assert "the cell runs: end it first with zimage down" in refused.stderr
        cell.down()
        moved = cell.zimage("database", "move", url)
        assert moved.returncode == 0, moved.stderr
        [line] = [line for line in moved.stdout.splitlines() if line.startswith("url = ")]
        edit(cell, "[gallery]", f"[database]\n{line}\n[gallery]")
        cell.layout.database.unlink()
        cell.up()
        assert pictures(ada) == before
        assert ada.get("/v1/usage").json() == used_before
        assert job_of(ada, done["id"])["state"] == "completed"
        assert [drawn(ada, f"fox {k}") for k in range(3)] == [200, 200, 429]  # five a day
        wait_until(lambda: used(ada) == 5, "counted")
        cell.down()
