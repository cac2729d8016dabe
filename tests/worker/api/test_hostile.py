"""Whatever stands in a header, a query, a path or a field: an answer, and never a 500.

What a route reads is tried with all values. Of the names that it does not read, each is tried with
each value on one route of four, and each route with each of them: ``ZIMAGE_HOSTILE_ROUTES=all``,
which ``scripts/fuzz`` sets, tries all on all routes.
"""

import itertools
import json
import os
import re
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio
import httpx
import pytest
from starlette.routing import Route

from tests.worker.conftest import migrated, ready, serving, settings_in
from worker.accounts import tokens
from worker.api.cookies import COOKIE
from worker.app import ROUTES
from worker.storage import keys
from worker.storage.secret import shared_secret

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120), pytest.mark.long]

DRAW = {"prompt": "a", "size": "64x64"}
JOB = {"prompts": ["a"], "size": "64x64", "steps": 2}
TEMPLATE = {"template": "a {x}", "variables": {"x": ["b"]}, "size": "64x64", "steps": 2}

TEXTS = (
    *("", "\x00", "²", "１２", "-1", "1e999", "nan", "0x10", "1_0", "9" * 25, "9" * 5000),
    *("http://[", "http://a:b", "%zz", "é", "a" * 70_000, "../..", "'", '"', "\\", "٣"),
)
BYTES = (*(text.encode() for text in TEXTS), b"\xff\xfe", b"\xed\xa0\x80", b"\xb2", b"\xb3\xb9")
HEADERS = (
    *(
        "Last-Event-ID",
        "Authorization",
        "api-key",
        "Content-Type",
        "Content-Length",
        "Host",
        "Origin",
    ),
    *("X-Request-ID", "X-Request-Start", "X-Real-IP", "X-Again", "X-Forwarded-Proto", "User-Agent"),
)
QUERIES = (
    *("after", "limit", "state", "q", "job", "favourite", "download", "by", "since", "until"),
    *("expires", "signature", "finish", "everywhere"),
)
ONE_ROUTE_OF = 1 if os.environ.get("ZIMAGE_HOSTILE_ROUTES") == "all" else 4
ROUTED = [(m, r) for r in ROUTES if isinstance(r, Route) for m in sorted(r.methods or ())]

HALF = '"\\ud800"'
DEEP = "[" * 2000 + "]" * 2000
VALUES = (
    *(HALF, f"[{HALF}]", f'{{"x": [{HALF}]}}', f'{{{HALF}: ["b"]}}', f'{{"x": {{{HALF}: 1}}}}'),
    *('{"": ["b"]}', '{"x": ["\\u0000"]}', '{"x": []}', "[[]]", "[null]", DEEP, '"\\u0000"'),
    *("1" * 25, "-" + "1" * 25, "1" * 5000, "1e400", "-1e400", "NaN", "1e-400", "0.5", "-0"),
    *("true", "[]", "{}", '""', '" "', json.dumps("٣"), json.dumps("²x²"), '"9999999999x1"'),
)


class Cell:
    """A worker with a finished job of one picture, and its client."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client
        self.job = self.image = ""
        self.paths: dict[str, dict[str, Any]] = {}
        """Of the API's document."""

    async def prepare(self) -> "Cell":
        answer = await self.client.post("/v1/jobs", json=JOB)
        self.job = answer.json()["id"]
        # Its events would come a quarter of a second later.
        while (await self.client.get(f"/v1/jobs/{self.job}")).json()["state"] == "running":  # noqa: ASYNC110
            await anyio.sleep(0.005)
        items = (await self.client.get(f"/v1/jobs/{self.job}/items")).json()
        self.image = items["data"][0]["image"]["id"]
        self.paths = (await self.client.get("/openapi.json")).json()["paths"]
        return self

    def queries(self, route: Route) -> set[str]:
        """What a GET of ``route`` reads by the document."""
        ours = re.sub(r"{[^}]*}", "*", route.path)
        read = [item.get("get", {}) for path, item in self.paths.items() if fnmatch(path, ours)]
        return {one["name"] for got in read for one in got.get("parameters", ())}

    def path(self, route: Route) -> str:
        id = self.image if route.path.startswith("/v1/images/") else self.job
        if route.path.startswith("/v1/models"):
            id = "synthetic"
        names = ("{id:path}", "{id:image}", "{id}", "{name:path}")
        path = route.path
        for name in names:
            path = path.replace(name, id)
        return path

    async def send(self, method: str, url: str, **request: Any) -> None:
        """Ask, and see that it was understood or refused."""
        answer = await self.client.request(method, url, **request)
        understood = answer.status_code < 500 or answer.status_code == 503
        if understood and answer.status_code >= 400 and method != "HEAD":
            keys = answer.json()["error"].keys()
            understood = keys == {"message", "type", "param", "code"}
        assert understood, (
            f"{method} {url[:100]} {str(request)[:200]}: {answer.status_code} {answer.text[:300]}"
        )


@pytest.fixture
async def cell(home: Path) -> AsyncIterator[Cell]:
    async with serving(migrated(settings_in(home))) as (service, client):
        await ready(service)
        yield await Cell(client).prepare()


@pytest.fixture
async def keyed(home: Path) -> AsyncIterator[Cell]:
    """The same, and signed in as a browser is."""
    settings = migrated(settings_in(home, auth="keys", wrong_keys_per_minute=100_000))
    secret = shared_secret(home / "key-secret")
    async with serving(settings) as (service, client):
        await ready(service)
        key, token = keys.new_key(secret, "ada", role="ops")
        await service.components.database.run(lambda c: keys.insert(c, key, secret))
        await service.components.keys.refresh()
        client.headers["Authorization"] = f"Bearer {token}"
        prepared = await Cell(client).prepare()
        del client.headers["Authorization"]
        session = tokens.Session(key.id, key.version, 2**40, "a", 2**40)
        client.headers["Cookie"] = f"{COOKIE}={tokens.session_text(secret, session)}"
        client.headers["Origin"] = "http://cell"
        yield prepared


def harmless(method: str, route: Route) -> bool:
    """Not what would end the job, the picture or the worker that all others are tried on; HEAD is
    a GET."""
    return not route.path.startswith("/admin/") and method not in ("DELETE", "HEAD")


TRIED = [(method, route) for method, route in ROUTED if harmless(method, route)]
IDS = [f"{method} {route.path}" for method, route in TRIED]


def body_of(route: Route) -> Any:
    return {
        "/v1/images/generations": DRAW,
        "/v1/jobs": JOB,
        "/v1/jobs/preview": TEMPLATE,
        "/v1/session": {"key": "a"},
    }.get(route.path, {"favourite": True})


def pairs(
    nth: int, names: Sequence[str], read: Collection[str] = ()
) -> Iterator[tuple[str, bytes]]:
    """What to try on the ``nth`` route, which reads the names in ``read``."""
    for (k, name), (j, value) in itertools.product(enumerate(names), enumerate(BYTES)):
        if name in read or (nth + k + j) % ONE_ROUTE_OF == 0:
            yield name, value


@pytest.mark.parametrize(("method", "route"), TRIED, ids=IDS)
async def test_no_header_fails_a_route(cell: Cell, method: str, route: Route) -> None:
    has_body = method in ("POST", "PATCH")
    body = {"json": body_of(route)} if has_body else {}
    # All others are read before it is known which route it is.
    read = ["Content-Type", "Content-Length"] if has_body else []
    read += ["Last-Event-ID"] if route.path.endswith("/events") else []
    for name, value in pairs(TRIED.index((method, route)), HEADERS, read):
        await cell.send(method, cell.path(route), headers=[(name.encode(), value)], **body)


@pytest.mark.parametrize("name", ["Cookie", "Authorization", "Origin", "Host", "X-Forwarded-Proto"])
async def test_no_proof_fails_a_worker_that_asks_for_keys(keyed: Cell, name: str) -> None:
    signed = keyed.client.headers["Cookie"].encode()
    values = [*BYTES, signed + b"; a=b", signed[:-1], b"Bearer ", b"Bearer \xff", b"Bearer a.b.c"]
    values += [b"%b=%b" % (COOKIE.encode(), value) for value in (*BYTES, b"." * 9, b"a.b.c.d.e.f")]
    values += [b"Bearer zimage-operator." + value for value in BYTES]
    for value in values:
        for method, path in (("GET", "/v1/models"), ("POST", "/v1/jobs"), ("GET", "/v1/session")):
            body = {"json": {**JOB, "idempotency_key": "drawn once"}} if method == "POST" else {}
            await keyed.send(method, path, headers=[(name.encode(), value)], **body)


async def test_what_is_no_number_is_refused_by_its_name(cell: Cell) -> None:
    for value in ("9" * 25, "9" * 5000, "²", "-1", "x"):
        events = f"/v1/jobs/{cell.job}/events"
        header = [(b"Last-Event-ID", value.encode("latin-1"))]
        answer = await cell.client.get(events, headers=header)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Last-Event-ID")
        answer = await cell.client.get(events, params={"after": value})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "after")


async def test_half_of_a_surrogate_pair_is_refused_wherever_it_stands(cell: Cell) -> None:
    for variables, param in (
        (f'{{"x": [{HALF}]}}', "variables.x[0]"),
        (f'{{{HALF}: ["b"]}}', "variables.\\ud800"),
    ):
        body = f'{{"template": "a {{x}}", "variables": {variables}}}'
        for path in ("/v1/jobs", "/v1/jobs/preview"):
            headers = {"Content-Type": "application/json"}
            answer = await cell.client.post(path, content=body, headers=headers)
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_no_query_fails_a_route(cell: Cell) -> None:
    read = [route for method, route in TRIED if method == "GET"]
    assert set(QUERIES) <= {"everywhere", "finish"}.union(*map(cell.queries, read))
    for nth, route in enumerate(read):
        for name, value in pairs(nth, QUERIES, cell.queries(route)):
            await cell.send("GET", f"{cell.path(route)}?{name}={quote(value[:20_000])}")


PATHS = (
    *("/v1/jobs/{}", "/v1/jobs/{}/items", "/v1/jobs/{}/events", "/v1/jobs/{}/results.zip"),
    *("/v1/images/{}", "/v1/images/{}/thumbnail", "/v1/images/files/{}", "/v1/models/{}"),
    "/{}",
)


async def test_no_path_fails_a_route(cell: Cell) -> None:
    for path, value in itertools.product(PATHS, BYTES):
        await cell.send("GET", path.format(quote(value[:20_000], safe="")))


FIELDS = {
    "/v1/images/generations": (
        *("prompt", "n", "size", "response_format", "output_format", "output_compression"),
        *("stream", "partial_images", "user", "seed", "steps", "guidance_scale", "model"),
        *("negative_prompt", "priority", "timeout_s", "idempotency_key", "place", "quality"),
        "background",
        "lora",
    ),
    "/v1/jobs": (
        *("prompts", "variables", "variants", "name", "seed", "size", "steps", "guidance_scale"),
        *("model", "negative_prompt", "output_format", "output_compression", "priority"),
        *("idempotency_key", "template"),
    ),
    "/v1/jobs/preview": ("template", "variables", "variants", "prompts"),
    "/v1/session": ("key",),
}


@pytest.mark.parametrize("path", FIELDS)
async def test_no_value_of_a_field_fails_a_route(cell: Cell, path: str) -> None:
    bases: dict[str, list[dict[str, Any]]] = {
        "/v1/images/generations": [DRAW],
        "/v1/session": [{"key": "a"}],
    }
    tried = itertools.product(FIELDS[path], bases.get(path, [JOB, TEMPLATE]), VALUES)
    for field, base, value in tried:
        fields = {name: json.dumps(old) for name, old in base.items()} | {field: value}
        body = ", ".join(f"{json.dumps(name)}: {value}" for name, value in fields.items())
        content = ("{" + body + "}").encode()
        headers = {"Content-Type": "application/json"}
        await cell.send("POST", path, content=content, headers=headers)


@pytest.mark.parametrize("path", [*FIELDS, "/v1/images/{id}"])
async def test_no_body_fails_a_route(cell: Cell, path: str) -> None:
    method = "PATCH" if "{id}" in path else "POST"
    url = path.replace("{id}", cell.image)
    bodies = [value.encode() for value in VALUES]
    bodies += [b"{%b: 1}" % HALF.encode(), b'{"\\u0000": 1}', b"\xff", b"\xef\xbb\xbf{}", b""]
    bodies += [b'{"a": ' * 2000, b'{"prompt": "\xed\xa0\x80"}', b'{"prompt": "\xff"}', b"{" * 9]
    for body in bodies:
        headers = {"Content-Type": "application/json"}
        await cell.send(method, url, content=body, headers=headers)
