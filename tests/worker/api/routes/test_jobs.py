import asyncio
import io
import json
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.worker.conftest import migrated, ready, serving, settings_in
from tests.worker.databases import locked
from worker.api.routes import job_objects, jobs
from worker.api.routes.images import default_seed
from worker.api.schemas import job_wire
from worker.lifecycle import Lifecycle
from worker.models.synthetic import text_of
from worker.storage.jobs import JobSpec

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60), pytest.mark.usefixtures("url")]
ID = "0123456789abcdef0123456789abcdef"
BODY = {"prompts": ["a", "b", "c"], "size": "128x64", "steps": 2, "seed": 7, "name": "three"}


@pytest.fixture
async def slow(home: Path) -> AsyncIterator[httpx.AsyncClient]:
    settings = migrated(settings_in(home, model="synthetic:step_ms=100", max_batch=1))
    async with serving(settings) as (service, client):
        await ready(service)
        yield client


async def make(client: httpx.AsyncClient, **changes: Any) -> dict[str, Any]:
    answer = await client.post("/v1/jobs", json={**BODY, **changes})
    assert answer.status_code == 202, answer.text
    job: dict[str, Any] = answer.json()
    return job


async def finished(client: httpx.AsyncClient, job: dict[str, Any]) -> dict[str, Any]:
    async with asyncio.timeout(30):
        while True:
            found: dict[str, Any] = (await client.get(f"/v1/jobs/{job['id']}")).json()
            if found["finished_at"]:
                return found
            await asyncio.sleep(0.02)


async def events(client: httpx.AsyncClient, job: dict[str, Any], **headers: str) -> list[Any]:
    """(id, type, data) of each event of the stream, which ends with the job."""
    answer = await client.get(f"/v1/jobs/{job['id']}/events", headers=headers)
    assert answer.headers["content-type"].startswith("text/event-stream")
    found = []
    for frame in answer.text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in frame.splitlines() if line)
        if "event" in lines:
            number = int(lines["id"]) if "id" in lines else None
            found.append((number, lines["event"], json.loads(lines["data"])))
    return found


async def test_job_is_accepted_drawn_and_shown(client: httpx.AsyncClient) -> None:
    job = await make(client)
    assert job["id"].startswith("job_")
    assert (job["object"], job["name"], job["state"], job["total"]) == (
        "job",
        "three",
        "running",
        3,
    )
    assert sum(job["counts"].values()) == 3
    if job["predicted_finish_at"] is None:  # drawn before that was looked up
        assert (await finished(client, job))["state"] == "completed"
    else:
        assert job["predicted_finish_at"] >= job["created_at"] - 1
    assert job["parameters"]["size"] == "128x64"
    done = await finished(client, job)
    assert (done["state"], done["counts"]["done"], done["predicted_finish_at"]) == (
        "completed",
        3,
        None,
    )
    answer = (await client.get(f"/v1/jobs/{job['id']}/items")).json()
    assert [i["number"] for i in answer["data"]] == [1, 2, 3]
    second = answer["data"][1]
    assert (second["state"], second["step"], second["steps"], second["error"]) == (
        "done",
        2,
        2,
        None,
    )
    image = second["image"]
    assert (image["prompt"], image["seed"], image["job"]) == (
        "b",
        8,
        {"id": job["id"], "number": 2},
    )


async def test_replayed_post_and_repeated_key_make_one_job(client: httpx.AsyncClient) -> None:
    head = {"X-Request-ID": ID}
    first = await client.post("/v1/jobs", json=BODY, headers=head)
    again = await client.post("/v1/jobs", json=BODY, headers=head)
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json()["id"] == again.json()["id"]
    one = await make(client, idempotency_key="monday")
    two = await make(client, idempotency_key="monday")
    assert one["id"] == two["id"] != first.json()["id"]
    other = await client.post("/v1/jobs", json={**BODY, "seed": 8, "idempotency_key": "monday"})
    assert other.status_code == 422
    assert other.json()["error"]["code"] == "idempotency_key_reused"


async def test_seeds_come_from_the_request_where_none_is_named(client: httpx.AsyncClient) -> None:
    body = {**BODY, "seed": None}
    job = (await client.post("/v1/jobs", json=body, headers={"X-Request-ID": ID})).json()
    items = (await client.get(f"/v1/jobs/{job['id']}/items")).json()["data"]
    assert [i["seed"] for i in items] == [(default_seed(ID) + k) % 2**32 for k in range(3)]


async def test_preview_tells_what_a_template_makes(client: httpx.AsyncClient) -> None:
    body = {"template": "a {red|blue} poster of {p}", "variables": {"p": ["tea"]}, "variants": 60}
    answer = (await client.post("/v1/jobs/preview", json=body)).json()
    assert answer["count"] == 120
    assert len(answer["prompts"]) == 100
    assert answer["prompts"][0] == "a red poster of tea"
    bad = await client.post("/v1/jobs/preview", json={"template": "{a"})
    assert (bad.status_code, bad.json()["error"]["param"]) == (400, "template")
    assert bad.json()["error"]["details"] == {"reason": "brace_open", "at": 1}
    assert (await client.get("/v1/jobs")).json()["data"] == []


async def test_preview_counts_the_tokens_of_the_longest_prompt(home: Path) -> None:
    settings = migrated(settings_in(home, model="synthetic:max_tokens=3"))
    async with serving(settings) as (service, client):
        await ready(service)
        answer = await client.post("/v1/jobs/preview", json={"prompts": ["a", "red hill"]})
        assert answer.json()["tokens"] == 2


async def test_bodies_are_read_one_at_a_time(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    parse, reading, most = job_wire.parse, [0], [0]

    def counted(*arguments: Any) -> JobSpec:
        reading[0] += 1
        most[0] = max(most[0], reading[0])
        try:
            return parse(*arguments)
        finally:
            reading[0] -= 1

    monkeypatch.setattr(job_wire, "parse", counted)
    body = {"prompts": ["a"] * 10_000}
    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(client.post("/v1/jobs/preview", json=body))
    assert most == [1]


async def test_who_waits_long_for_other_jobs_goes_to_another_worker(
    cell: tuple[Lifecycle, httpx.AsyncClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    service, client = cell
    monkeypatch.setattr(jobs, "TURN_S", 0.01)
    async with service.components.reading_job:
        for path in ("/v1/jobs", "/v1/jobs/preview"):
            answer = await client.post(path, json=BODY)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "overloaded")
    await make(client)


async def test_list_filters_and_pages(client: httpx.AsyncClient) -> None:
    ids = [(await make(client))["id"] for _ in range(3)]
    first = (await client.get("/v1/jobs?limit=2")).json()
    assert [j["id"] for j in first["data"]] == ids[:0:-1]
    assert first["has_more"] is True
    rest = (await client.get(f"/v1/jobs?after={first['data'][-1]['id']}")).json()
    assert ([j["id"] for j in rest["data"]], rest["has_more"]) == (ids[:1], False)
    assert (await client.get("/v1/jobs?state=paused,cancelled")).json()["data"] == []
    items = (await client.get(f"/v1/jobs/{ids[0]}/items?limit=1&after=1")).json()
    assert ([i["number"] for i in items["data"]], items["has_more"]) == ([2], True)


async def test_long_prompts_make_pages_and_looks_shorter(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_objects, "MAX_CHARS", 500)
    job = await make(client, prompts=["x" * 300, "y" * 300, "z" * 100, "w" * 1000])
    await finished(client, job)
    told, after, page = [], 0, {"has_more": True}
    while page["has_more"]:
        page = (await client.get(f"/v1/jobs/{job['id']}/items?after={after}")).json()
        told.append([item["number"] for item in page["data"]])
        after = told[-1][-1]
    assert told == [[1], [2, 3], [4]]
    seen = await events(client, job)
    assert {d["item"]["number"] for _, kind, d in seen if kind == "job.item"} == {1, 2, 3, 4}
    assert seen[-1][2]["job"]["state"] == "completed"


@pytest.mark.parametrize(
    ("path", "param"),
    [
        ("/v1/jobs?limit=0", "limit"),
        ("/v1/jobs?limit=x", "limit"),
        ("/v1/jobs?state=gone", "state"),
        ("/v1/jobs?page=2", "page"),
    ],
)
async def test_a_wrong_query_is_named(client: httpx.AsyncClient, path: str, param: str) -> None:
    answer = await client.get(path)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_a_last_event_id_that_no_event_had_is_named(client: httpx.AsyncClient) -> None:
    job = await make(client)
    answer = await client.get(f"/v1/jobs/{job['id']}/events", headers={"Last-Event-ID": "9" * 5000})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Last-Event-ID")


@pytest.mark.parametrize("path", ["", "/items", "/events", "/results.zip"])
async def test_unknown_jobs_are_not_found(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.get(f"/v1/jobs/job_x{path}")).status_code == 404
    assert (await client.post("/v1/jobs/job_x/cancel")).status_code == 404
    assert (await client.delete("/v1/jobs/job_x")).status_code == 404


async def test_steering(slow: httpx.AsyncClient) -> None:
    job = await make(slow, steps=40)
    url = f"/v1/jobs/{job['id']}"
    for verb, state in (("pause", "paused"), ("pause", "paused"), ("resume", "running")):
        answer = await slow.post(f"{url}/{verb}")
        assert (answer.status_code, answer.json()["state"]) == (200, state)
    cancelled = (await slow.post(f"{url}/cancel")).json()
    assert (cancelled["state"], cancelled["counts"]["cancelled"]) == ("cancelled", 3)
    conflict = await slow.post(f"{url}/resume")
    assert (conflict.status_code, conflict.json()["error"]["code"]) == (409, "wrong_state")
    assert (await slow.delete(url)).status_code == 204
    assert (await slow.get(url)).status_code == 404


async def test_failed_items_can_be_tried_again(client: httpx.AsyncClient) -> None:
    job = await make(client, prompts=["fine", "fault:error"])
    failed = await finished(client, job)
    assert (failed["state"], failed["counts"]["failed"]) == ("failed", 1)
    url = f"/v1/jobs/{job['id']}"
    bad = (await client.get(f"{url}/items?state=failed")).json()["data"]
    assert bad[0]["error"]["code"] == "drawing_failed"
    again = (await client.post(f"{url}/retry")).json()
    assert (again["state"], again["counts"]["failed"], again["finished_at"]) == ("running", 0, None)


async def test_events_tell_everything_once(slow: httpx.AsyncClient) -> None:
    job = await make(slow, steps=4)
    seen = await events(slow, job)
    ids = [number for number, _, _ in seen if number is not None]
    assert ids == sorted(set(ids))
    last = {d["item"]["number"]: d["item"] for _, kind, d in seen if kind == "job.item"}
    assert {i["state"] for i in last.values()} == {"done"}
    assert all(i["image"]["url"] for i in last.values())
    assert {d["number"] for _, kind, d in seen if kind == "job.step"} <= {1, 2, 3}
    assert any(kind == "job.step" and d["steps"] == 4 for _, kind, d in seen)
    assert seen[-1][1] == "job.updated"
    assert seen[-1][2]["job"]["state"] == "completed"


async def test_events_go_on_where_they_were_left(client: httpx.AsyncClient) -> None:
    job = await make(client)
    await finished(client, job)
    everything = await events(client, job)
    assert [kind for _, kind, _ in everything] == ["job.item"] * 3 + ["job.updated"]
    last = everything[-1][0]
    rest = await events(client, job, **{"Last-Event-ID": str(last - 1)})
    assert rest[-1] == everything[-1]
    assert len(rest) < len(everything)
    end = await client.get(f"/v1/jobs/{job['id']}/events", headers={"Last-Event-ID": str(last)})
    assert end.status_code == 204


async def test_a_stream_cut_before_its_last_event_tells_it_later(client: httpx.AsyncClient) -> None:
    job = await make(client)
    await finished(client, job)
    *items, over = await events(client, job)
    # What carries no id leaves an EventSource where it was.
    assert {number for number, _, _ in items} == {None}
    assert over[2]["job"]["state"] == "completed"


async def test_results_are_a_zip_of_named_pictures(
    cell: tuple[Lifecycle, httpx.AsyncClient],
) -> None:
    service, client = cell
    job = await make(client, prompts=["a red/blue hill", "山 {x}", "c"])
    await finished(client, job)
    items = (await client.get(f"/v1/jobs/{job['id']}/items")).json()["data"]
    lost = next(service.settings.var_dir.glob(f"images/*/{items[2]['image']['id']}.png"))
    lost.unlink()
    answer = await client.get(f"/v1/jobs/{job['id']}/results.zip")
    assert answer.headers["content-type"] == "application/zip"
    assert "three.zip" in answer.headers["content-disposition"]
    with zipfile.ZipFile(io.BytesIO(answer.content)) as zipped:
        assert zipped.testzip() is None
        assert zipped.namelist() == ["0001-a-red-blue-hill.png", "0002-山-x.png", "missing.txt"]
        pixels = np.asarray(Image.open(io.BytesIO(zipped.read("0002-山-x.png"))))
        assert text_of(pixels) == "山 {x}|8|2"
        assert zipped.read("missing.txt") == b"Deleted meanwhile:\n3: c\n"


async def test_without_a_picture_there_are_no_results(slow: httpx.AsyncClient) -> None:
    job = await make(slow, steps=40)
    answer = await slow.get(f"/v1/jobs/{job['id']}/results.zip")
    assert answer.status_code == 409


async def test_without_its_database_a_job_is_not_accepted(
    cell: tuple[Lifecycle, httpx.AsyncClient], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, client = cell
    monkeypatch.setattr(service.components.database, "_timeout_s", 0.1)
    with locked(url):
        answer = await client.post("/v1/jobs", json=BODY)
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "store_unavailable"
        drawn = await client.post("/v1/images/generations", json={"prompt": "a"})
        assert drawn.status_code == 200
    await make(client)
