"""Each answer is what ``/openapi.json`` says, no more and no less."""

import asyncio
import re
from typing import Any

import httpx
import jsonschema_rs
import pytest

from tests.worker.api.routes.test_gallery import listed

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]
ID = "0123456789abcdef0123456789abcdef"
SMALL = {"size": "64x64", "steps": 1}


class Told:
    """Every answer of ``client`` beside what the document says of it."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client
        self.seen = set[tuple[str, str, int]]()
        self.document: dict[str, Any] = {}

    async def read(self) -> None:
        self.document = exact((await self.client.get("/openapi.json")).json())

    async def __call__(self, method: str, path: str, status: int, **sent: Any) -> httpx.Response:
        answer = await self.client.request(method, path, **sent)
        assert answer.status_code == status, answer.text
        self._check(answer, method.lower(), path.partition("?")[0])
        return answer

    def _check(self, answer: httpx.Response, method: str, path: str) -> None:
        known = self.document["paths"]
        shape = next(
            (each for each in sorted(known, key=_holes) if _pattern(each).fullmatch(path)), None
        )
        assert shape, f"{path} is in no document"
        described = known[shape][method]["responses"][str(answer.status_code)]
        self.seen.add((method, shape, answer.status_code))
        kind = answer.headers.get("content-type", "").partition(";")[0]
        if "content" not in described:
            assert not answer.content, (method, path)
            return
        assert kind in described["content"], (kind, method, path)
        if kind == "application/json":
            schema = described["content"][kind]["schema"]
            whole = {**schema, "components": self.document["components"]}
            jsonschema_rs.validate(whole, answer.json())


def _holes(path: str) -> int:
    return path.count("{")


def _pattern(path: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{[^}]*\\\}", "[^/]+", re.escape(path)))


def exact(schema: Any) -> Any:
    """``schema`` in which objects have what is said and nothing else."""
    if isinstance(schema, list):
        return [exact(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: exact(each) for name, each in schema.items()}
    if isinstance(found.get("properties"), dict) and "type" in found:
        found.setdefault("additionalProperties", False)
    return found


@pytest.fixture
async def told(client: httpx.AsyncClient) -> Told:
    found = Told(client)
    await found.read()
    return found


async def drawn(told: Told, **fields: Any) -> dict[str, Any]:
    """The picture of a request, once it is in the gallery."""
    body = {"prompt": "a fox", **SMALL, **fields}
    await told("POST", "/v1/images/generations", 200, json=body, headers={"X-Request-ID": ID})
    (picture,) = await listed(told.client, 1)
    return picture


async def over(told: Told, job: str) -> dict[str, Any]:
    async with asyncio.timeout(30):
        while True:
            found: dict[str, Any] = (await told("GET", f"/v1/jobs/{job}", 200)).json()
            if found["finished_at"]:
                return found
            await asyncio.sleep(0.02)


async def test_answers_about_pictures(told: Told) -> None:
    picture = await drawn(told)
    about = f"/v1/images/{picture['id']}"
    await told("GET", "/v1/images", 200)
    await told("GET", f"{about}/details", 200)
    await told("PATCH", about, 200, json={"favourite": True})
    await told("DELETE", about, 204)
    await told("GET", f"{about}/details", 404)
    body = {"prompt": "a fox", "response_format": "url", "n": 2, **SMALL}
    await told("POST", "/v1/images/generations", 200, json=body)
    await told("POST", "/v1/images/generations", 400, json={"prompt": ""})


async def test_answers_about_jobs(told: Told) -> None:
    body = {"prompts": ["a", "b"], "negative_prompt": "blurry", **SMALL}
    job = (await told("POST", "/v1/jobs", 202, json=body)).json()["id"]
    await over(told, job)
    await told("GET", "/v1/jobs", 200)
    items = (await told("GET", f"/v1/jobs/{job}/items", 200)).json()["data"]
    assert all(item["image"] for item in items)
    await told("POST", "/v1/jobs/preview", 200, json={"template": "a {red|blue} fox"})
    for verb in ("pause", "resume"):
        await told("POST", f"/v1/jobs/{job}/{verb}", 409)
    for verb in ("cancel", "retry"):
        await told("POST", f"/v1/jobs/{job}/{verb}", 200)
    await told("DELETE", f"/v1/jobs/{job}", 204)
    await told("GET", f"/v1/jobs/{job}", 404)
    await told("POST", "/v1/jobs", 400, json={"prompts": []})


async def test_answers_about_the_cell(told: Told) -> None:
    models = (await told("GET", "/v1/models", 200)).json()["data"]
    await told("GET", f"/v1/models/{models[0]['id']}", 200)
    await told("GET", "/v1/models/none", 404)
    await told("GET", "/v1/usage", 200)
    await told("GET", "/v1/session", 200)
    await told("GET", "/readyz", 200)


async def test_an_undeclared_or_missing_word_is_seen(told: Told) -> None:
    image = {**told.document["components"]["schemas"]["Image"]}
    whole = {**image, "components": told.document["components"]}
    picture = await drawn(told)
    assert jsonschema_rs.is_valid(whole, picture)
    assert not jsonschema_rs.is_valid(whole, {**picture, "colour": "red"})
    del picture["negative_prompt"]
    assert not jsonschema_rs.is_valid(whole, picture)
