"""The short way must be the long way in all that a client or an operator can see."""

import httpx
import pytest
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.worker.conftest import load_synthetic, ready
from worker.api.middleware.direct import Direct
from worker.app import DIRECT, create_app
from worker.settings import Settings

pytestmark = pytest.mark.anyio
URL = "/v1/images/generations"
CALLS = [
    ({"prompt": "a"}, {}, 200),
    ({"prompt": ""}, {}, 400),
    ({"prompt": "a", "model": "another"}, {}, 404),
    ({"prompt": "a"}, {"content-type": "text/plain"}, 415),
]


class Observation:
    """Middleware that notes which paths pass it."""

    def __init__(self, app: ASGIApp, paths: list[str]) -> None:
        self._app, self._paths = app, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self._paths.append(scope["path"])
        await self._app(scope, receive, send)


async def answers(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, *, direct: bool
) -> tuple[list[tuple[int, dict[str, str], dict[str, object]]], list[str], str]:
    """Status, headers and body of each of ``CALLS``; the paths that middleware saw; metrics."""
    monkeypatch.setattr("worker.app.DIRECT", DIRECT if direct else [])
    app, paths, found = create_app(settings, load_synthetic), list[str](), []
    app.user_middleware.append(Middleware(Observation, paths=paths))
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://cell") as client,
    ):
        await ready(app.state.lifecycle)
        for json, headers, _ in CALLS:
            named = {"x-request-id": "7" * 32, **headers}
            answer = await client.post(URL, json=json, headers=named)
            body = {k: v for k, v in answer.json().items() if k != "created"}
            timed = ("x-queue-ms", "x-inference-ms")
            headers = {k: v for k, v in answer.headers.items() if k not in timed}
            found.append((answer.status_code, headers, body))
        metrics = (await client.get("/metrics")).text
    counted = [line for line in metrics.splitlines() if line.startswith("zimage_http_requests_to")]
    return found, paths, "\n".join(sorted(counted))


async def test_direct_routes_answer_as_starlettes_do(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = await answers(settings, monkeypatch, direct=False)
    short = await answers(settings, monkeypatch, direct=True)
    assert [status for status, _, _ in short[0]] == [status for *_, status in CALLS]
    assert short == long
    assert f'route="{URL}"' in short[2]


async def test_middleware_sees_direct_routes(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, paths, _ = await answers(settings, monkeypatch, direct=True)
    assert paths.count(URL) == len(CALLS)


async def test_other_methods_go_the_long_way(client: httpx.AsyncClient) -> None:
    answer = await client.get(URL)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


async def test_half_an_answer_is_cut(settings: Settings) -> None:
    """What fails after its header was sent must raise, so that the server cuts the connection."""
    app = create_app(settings, load_synthetic)

    async def half(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("half")

    app.user_middleware.append(Middleware(lambda _: half))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://cell") as client:
        with pytest.raises(RuntimeError, match="half"):
            await client.get("/readyz")


def test_direct_routes_have_fixed_paths() -> None:
    assert [route.path for route in DIRECT if route.param_convertors] == []
    assert Direct(lambda *_: None, DIRECT)  # type: ignore[arg-type]
