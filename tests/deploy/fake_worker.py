"""A worker without a model: real socket, real heartbeat, and faults on command.

``python fake_worker.py`` with ZIMAGE_NAME and ZIMAGE_RUN_DIR, as supervisor starts the real one.
What it draws says what it was given. A prompt may be a fault; ``POST /fake/ready?no`` and ``?yes``
change what it says of itself; ``?no=3`` also in how many seconds to come again.
"""

import asyncio
import json
import os
import signal
import sys
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from worker.coordination.heartbeat import HeartbeatFile, Phase

NAME, RUN_DIR = os.environ["ZIMAGE_NAME"], Path(os.environ["ZIMAGE_RUN_DIR"])
REPLIES = RUN_DIR.parent / "tmp" / "replies"
STEP_S = float(os.environ.get("FAKE_STEP_S", "1"))
heartbeat = HeartbeatFile(RUN_DIR / f"{NAME}.beat")
state = {"ready": True, "draining": False, "running": 0}
again = {"Retry-After": "7"}
hung = asyncio.Event()
keys_asked: list[dict[str, object]] = []


def enter(phase: Phase, allowance_s: float) -> None:
    """As one engine would: nothing goes on beside a step that hangs."""
    if not hung.is_set():
        heartbeat.enter(phase, allowance_s)


def not_ready() -> JSONResponse | None:
    reason = "draining" if state["draining"] else None if state["ready"] else "stuck"
    body = {"reason": reason, "error": {"message": "not ready", "type": "server_error"}, **state}
    return JSONResponse(body, 503, again) if reason else None


async def draw(request: Request) -> Response:
    body = await request.body()
    asked = json.loads(body) if body[:1] == b"{" else {"direct": True, "body": len(body)}
    if refusal := not_ready():
        return refusal
    if NAME in str(asked.get("lacks", "")).split(","):
        return elsewhere(request, str(asked["model_of"]))
    pool = str(asked.get("pool", ""))
    if pool and not request.headers.get("x-pool"):
        told = {"X-Accel-Redirect": f"@pool_{pool}", "X-Worker": NAME, "X-Queue-Ms": "99"}
        return PlainTextResponse("another one's", 421, told)
    state["running"] += 1
    enter(Phase.STEP, STEP_S)
    try:
        return await _draw(request, asked)
    finally:
        state["running"] -= 1
        enter(Phase.IDLE, float("inf"))


def elsewhere(request: Request, pool: str) -> Response:
    """As a worker whose host has not the model, which others have."""
    handed = request.headers.get("x-front-pool")
    known = request.headers.get("x-front-pools", "").split(",")
    if not handed and pool[:1] != "/" and "any" in known:
        told = {"X-Hand-Over": pool if pool in known else "any", "X-Worker": NAME}
        return PlainTextResponse("another host's", 421, told)
    if handed == "any":
        return PlainTextResponse("not here", 403)
    if pool.startswith("/"):  # as no worker of ours
        return PlainTextResponse("forged", 421, {"X-Hand-Over": pool})
    return PlainTextResponse("not here", 503, {"Retry-After": "7"})


async def _draw(request: Request, asked: dict[str, object]) -> Response:
    fault = asked.get("prompt")
    if fault == f"hang {NAME}":
        hung.set()
    if hung.is_set():
        await asyncio.Event().wait()
    if fault == f"block {NAME}":
        time.sleep(600)  # noqa: ASYNC251  (the event loop is to be blocked)
    if fault == f"die {NAME}":
        os._exit(1)
    await asyncio.sleep(float(str(asked.get("seconds", 0))))
    if fault == "hand back" and (turn := request.headers.get("x-again")):
        headers = {"X-Accel-Redirect": f"@again{turn}", "Retry-After": "7", "X-Queue-Ms": "1"}
        return PlainTextResponse("another one takes it", 503, headers)
    if fault in (f"fail {NAME}", "fail any"):
        headers = {"X-Request-ID": request.headers["x-request-id"]}
        return PlainTextResponse("broken", int(str(asked["status"])), headers)
    if asked.get("stream"):
        return StreamingResponse(_events(), headers={"X-Accel-Buffering": "no"})
    body = {"worker": NAME, "asked": asked, "headers": dict(request.headers)}
    body["filler"] = "x" * int(str(asked.get("bytes", 0)))
    headers = {"X-Worker": NAME, "X-Queue-Ms": "12"}
    return JSONResponse(body, headers=headers) if asked.get("direct") else _file(body, headers)


def _file(body: Mapping[str, object], headers: dict[str, str]) -> Response:
    """A reply whose body outlives this process."""
    name = f"{uuid.uuid4().hex}.json"
    REPLIES.mkdir(exist_ok=True)
    (REPLIES / name).write_text(json.dumps(body))
    headers["X-Accel-Redirect"] = f"/internal/replies/{name}"
    return Response(media_type="application/json", headers=headers)


async def _events() -> AsyncIterator[str]:
    yield "event: one\n\n"
    await asyncio.Event().wait()


async def readyz(_: Request) -> Response:
    return not_ready() or JSONResponse({"ready": True, "queued": 0, **state})


async def change(request: Request) -> Response:
    word, _, wait_s = request.url.query.partition("=")
    state["ready"], again["Retry-After"] = word == "yes", wait_s or "7"
    return Response()


async def anew(_: Request) -> Response:
    """It is as when it began; 409: it cannot be."""
    state.update(ready=True, draining=False)
    again["Retry-After"] = "7"
    return Response(status_code=409 if state["running"] or hung.is_set() else 200)


async def lose_a_stop(_: Request) -> Response:
    """The next SIGTERM changes nothing, as one that arrives between fork and exec."""
    handler = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, handler) and None)
    return Response()


async def drain(request: Request) -> Response:
    state["draining"] = request.url.path == "/admin/drain"
    return Response()


async def file(request: Request) -> Response:
    """A picture of the folder, or with ``X-At`` of wherever the test says."""
    at = request.headers.get("x-at")
    if at is None:
        at, more = f"/internal/images/{request.path_params['name']}", {}
    else:
        more = {"Cache-Control": "private, max-age=60", "Content-Disposition": "inline"}
    return Response(media_type="image/png", headers={"X-Accel-Redirect": at, **more})


async def key(request: Request) -> Response:
    """Whether the key is good; what came with the question is for the test to look at."""
    keys_asked.append({"method": request.method, "bytes": len(await request.body())})
    if refusal := not_ready():
        return refusal
    token = request.headers.get("authorization", "").removeprefix("Bearer ")
    return Response(status_code={"good": 204, "many": 429}.get(token, 401))


async def asked(_: Request) -> Response:
    """Questions for keys since the last time."""
    told = JSONResponse(keys_asked)
    keys_asked.clear()
    return told


async def echo(request: Request) -> Response:
    return not_ready() or PlainTextResponse(f"{NAME} {request.url.path}")


def main() -> int:
    if (RUN_DIR / f"{NAME}.crash").exists():
        return 70
    app = Starlette(
        routes=[
            Route("/v1/images/generations", draw, methods=["POST"]),
            Route("/v1/images/edits", draw, methods=["POST"]),
            Route("/v1/images/variations", draw, methods=["POST"]),
            Route("/v1/images/upscale", draw, methods=["POST"]),
            Route("/v1/images/files/{name}", file),
            Route("/v1/models", echo),
            Route("/admin/key", key),
            Route("/fake/asked", asked),
            Route("/v1/jobs", draw, methods=["POST"]),
            Route("/v1/uploads", draw, methods=["POST"]),
            Route("/metrics", echo),
            Route("/readyz", readyz),
            Route("/fake/anew", anew, methods=["POST"]),
            Route("/fake/ready", change, methods=["POST"]),
            Route("/fake/lose-a-stop", lose_a_stop, methods=["POST"]),
            Route("/admin/drain", drain, methods=["POST"]),
            Route("/admin/undrain", drain, methods=["POST"]),
        ]
    )
    heartbeat.enter(Phase.IDLE, float("inf"))
    uvicorn.run(app, uds=str(RUN_DIR / f"{NAME}.sock"), log_level="error", access_log=False)
    heartbeat.end()
    return 0


if __name__ == "__main__":
    sys.exit(main())
