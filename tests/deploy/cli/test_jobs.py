import io

import httpx
import pytest
from rich.console import Console

from deploy.cell import CellError
from deploy.cli import job_client, jobs

IDS = [f"job_{n:02x}{'0' * 21}{n % 2}" for n in range(250)]


@pytest.fixture
def client() -> httpx.Client:
    """Of a cell with 250 jobs, newest first, a hundred on a page."""

    def answer(request: httpx.Request) -> httpx.Response:
        start = IDS.index(request.url.params["after"]) + 1 if "after" in request.url.params else 0
        limit = int(request.url.params["limit"])
        data = [{"id": job_id} for job_id in IDS[start : start + limit]]
        return httpx.Response(200, json={"data": data, "has_more": start + limit < len(IDS)})

    return httpx.Client(base_url="http://cell/v1/", transport=httpx.MockTransport(answer))


@pytest.mark.parametrize("given", ["f9", "job_f9", "f900", IDS[-1]])
def test_the_beginning_of_an_id_names_its_job_on_whatever_page(
    client: httpx.Client, given: str
) -> None:
    assert job_client.whole_id(client, given) == IDS[-1]


def test_a_beginning_of_several_or_of_none_is_refused(client: httpx.Client) -> None:
    with pytest.raises(CellError, match=r"several jobs begin with f .*job_f0"):
        job_client.whole_id(client, "f")
    for none in ("fff", "", "job_", "../keys"):
        with pytest.raises(CellError, match=r"no job .*; see zimage jobs list"):
            job_client.whole_id(client, none)


def test_short_ids_are_as_long_as_it_takes_to_tell_them_apart() -> None:
    assert jobs._short_ids(["job_0123456789", "job_1123456789"]) == ["01234567", "11234567"]
    assert jobs._short_ids(["job_0123456789", "job_0123456788"]) == ["0123456789", "0123456788"]
    assert jobs._short_ids(["job_a", "job_a"]) == ["a", "a"]


def test_names_stay_whole_in_80_columns() -> None:
    job = {
        "id": "job_5adf9f4592da3cd7eb59c316", "name": "Posters, round 2", "state": "running",
        "held": "key_disabled", "total": 10_000, "created_at": 1.0, "predicted_finish_at": 2e9,
        "counts": {"done": 10_000, "failed": 100},
    }  # fmt: skip
    shown = io.StringIO()
    Console(file=shown, width=80).print(jobs._table([job]))
    lines = shown.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[1].startswith("5adf9f45  Posters, round 2  key disabled  10000 of 10000     100")
