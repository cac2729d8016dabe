"""A cell in one thread: the page's files and the HTTP contract, with faults on demand."""

import asyncio
import base64
import functools
import io
import itertools
import json
import math
import mimetypes
import re
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import uvicorn
from PIL import Image, ImageOps
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from tests.web.fake_store import MODEL, FakeStore
from tests.web.landscapes import encoded, landscape, preview

WEB = Path(__file__).parents[2] / "web"
CSP = (
    "default-src 'self'; img-src 'self' blob: data:; style-src 'self'; script-src 'self'; "
    "base-uri 'none'; frame-ancestors 'none'; form-action 'self'"
)
FIRST_SEED = 4_100_000_000


@dataclass(frozen=True)
class Refuse:
    """Answer one request with this error instead of a stream."""

    status: int
    message: str
    param: str | None = None
    retry_after_s: int | None = None
    code: str = "refused"
    details: dict[str, Any] | None = None
    should_retry: bool | None = None


NEEDS_KEY = Refuse(401, "This needs a key.", code="invalid_api_key")


def _already() -> threading.Event:
    event = threading.Event()
    event.set()
    return event


@dataclass(frozen=True)
class Cut:
    """Break one stream after so many events, as a worker that is killed does, once ``when`` is set.

    What a browser has received but not yet read goes down with the connection.
    """

    after_events: int
    when: threading.Event = field(default_factory=_already)


class WorkerKilled(Exception):
    """Ends the connection in the middle of the chunked body."""


@dataclass
class FakeCell:
    """``faults`` are used up one a request; ``hold_before_step`` stops every stream there, of the
    picture ``hold_at_picture``.

    ``requests`` has the bodies in order of arrival, ``paths`` where they were sent to,
    ``files`` those of the last form; ``left`` counts clients that hung up. ``loras``: SHA-256 of
    adapters by name. ``other_models``: what they have that differs from the first.
    """

    steps: int = 4
    step_s: float = 0.0
    default_size: str = "256x256"
    max_pixels: int = 1024 * 1024
    faults: deque[Refuse | Cut] = field(default_factory=deque)
    requests: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    edits: bool = True
    masks: bool = True
    takes_loras: bool = True
    loras: dict[str, str] = field(default_factory=dict)
    other_models: list[dict[str, Any]] = field(default_factory=list)
    cell_polls: int = 0
    open_streams: int = 0
    most_open_streams: int = 0
    left: int = 0
    hold_before_step: int | None = None
    hold_at_picture: int = 0
    max_prompt_tokens: int | None = None
    picture_s: float = 2.0
    position: int = 0
    wait_s: float = 3.0
    open_workers: int = 3
    store: FakeStore = field(default_factory=FakeStore)

    def __enter__(self) -> Self:
        routes = [
            *(
                Route(f"/v1/images/{kind}", self._generate, methods=["POST"])
                for kind in ("generations", "edits", "variations", "upscale")
            ),
            Route("/v1/models", self._models),
            Route("/v1/loras", self._loras),
            Route("/cell.json", self._cell),
            *self.store.routes,
            Route("/{path:path}", _file),
        ]
        app = _WithPolicy(Starlette(routes=routes))
        config = uvicorn.Config(
            app,
            port=0,
            log_level="critical",
            ws="none",
            lifespan="off",
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            self._thread.join(0.01)
            assert self._thread.is_alive(), "the fake cell did not start"
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self.hold_before_step = None
        self._thread.join(10)

    def release(self) -> None:
        self.hold_before_step = None

    def await_idle(self, timeout_s: float = 10) -> None:
        """Until no stream is open: hanging up reaches the server a moment after the page."""
        deadline = time.monotonic() + timeout_s
        while self.open_streams:
            assert time.monotonic() < deadline, "streams are still open"
            time.sleep(0.01)

    async def _models(self, request: Request) -> Response:
        if not self.store.lets_in(request):
            return _refusal(NEEDS_KEY)
        entry = {
            "id": MODEL,
            "object": "model",
            "alias_of": None,
            "default_size": self.default_size,
            "default_steps": self.steps,
            "side_multiple": 16,
            "min_side": 64,
            "max_pixels": self.max_pixels,
            "max_steps": 50,
            "max_images": 10,
            "max_prompt_chars": 4000,
            "max_prompt_tokens": self.max_prompt_tokens,
            "edits": self.edits,
            "masks": self.masks,
            "loras": self.takes_loras,
        }
        others = [{**entry, **other} for other in self.other_models]
        alias = {**entry, "id": "dall-e-3", "alias_of": MODEL}
        return JSONResponse({"object": "list", "data": [entry, *others, alias]})

    async def _loras(self, request: Request) -> Response:
        if not self.store.lets_in(request):
            return _refusal(NEEDS_KEY)
        data = [
            {"name": name, "object": "lora", "sha256": digest, "rank": 4}
            for name, digest in self.loras.items()
        ]
        most = 4 if self.takes_loras else 0
        return JSONResponse({"object": "list", "max_loras": most, "max_scale": 4.0, "data": data})

    async def _cell(self, _: Request) -> Response:
        self.cell_polls += 1
        states = ["ready" if k < self.open_workers else "loading" for k in range(3)]
        workers = [
            {"name": f"w{k + 1}", "state": state, "device": f"cuda:{k}"}
            for k, state in enumerate(states)
        ]
        pool = {"open": self.open_workers, "of": 3}
        return JSONResponse({"at": 0, "ready": True, "pool": pool, "workers": workers})

    async def _generate(self, request: Request) -> Response:
        body, files = await _body_of(request)
        if not self.store.lets_in(request):
            return _refusal(NEEDS_KEY)
        self.requests.append(body)
        self.paths.append(request.url.path)
        self.files = files
        first_seed = body.get("seed", FIRST_SEED + 100 * len(self.requests))
        fault = self.faults.popleft() if self.faults else None
        if isinstance(fault, Refuse):
            return _refusal(fault)
        request_id = f"{len(self.requests):032x}"
        source = None if request.url.path.endswith("generations") else self._source(body, files)
        kind = "image_edit" if source else "image_generation"
        if source and request.url.path.endswith("upscale"):
            body = {"strength": 0.25, "prompt": "", "size": _twice(source), **body}
        events = self._counted(self._events(body, first_seed, request_id, source, kind), fault)
        headers = {"X-Accel-Buffering": "no", "Cache-Control": "no-store"}
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)

    async def _counted(self, events: AsyncIterator[str], cut: Cut | None) -> AsyncIterator[str]:
        self.open_streams += 1
        self.most_open_streams = max(self.most_open_streams, self.open_streams)
        finished = False
        try:
            for sent in itertools.count():
                # Before the next event is made: a picture that nobody was told of is not kept.
                if cut and sent == cut.after_events:
                    await asyncio.to_thread(cut.when.wait, 60)
                    finished = True
                    raise WorkerKilled
                try:
                    event = await anext(events)
                except StopAsyncIteration:
                    break
                yield event
            finished = True
        finally:
            self.open_streams -= 1
            self.left += not finished

    async def _events(
        self,
        body: dict[str, Any],
        seed: int,
        request_id: str,
        source: Image.Image | None,
        kind: str,
    ) -> AsyncIterator[str]:
        _event = functools.partial(_event_of, kind)
        n = body.get("n", 1)
        seeds = [(seed + k) % 2**32 for k in range(n)]
        steps = body.get("steps", self.steps)
        for position in range(self.position, -1, -1):
            wait_s = self.wait_s * (position + 1)
            fields: dict[str, Any] = {
                "request_id": request_id,
                "seeds": seeds,
                "resume": f"place {position}",
            }
            fields["picture_s"] = self.picture_s
            yield _event("queued", position=position, wait_s=wait_s, **fields)
            await self._pace(0)
        pictures = [self._picture(body, one, source) for one in seeds]
        asked, steps = steps, steps if source is None else math.ceil(steps * _strength_of(body))
        for step in range(1, steps + 1):
            for index in range(n):
                if index == self.hold_at_picture:
                    await self._pace(step)
                left_s = (steps - step) * max(self.step_s, 0.5)
                yield _event("step", image_index=index, step=step, steps=steps, remaining_s=left_s)
                if step < steps and step in (steps // 3, 2 * steps // 3):
                    part = 0 if step == steps // 3 else 1
                    yield _event(
                        "partial_image",
                        **_b64(preview(pictures[index], part, 2), body),
                        image_index=index,
                        partial_image_index=part,
                    )
        for index, picture in enumerate(pictures):
            self.store.keep(f"{request_id}-{index}", body, seeds[index], asked)
            yield _event("completed", **_b64(picture, body), image_index=index, seed=seeds[index])
        yield _event("done", created=0, images=n, seeds=seeds, queue_ms=1, inference_ms=2)

    async def _pace(self, step: int) -> None:
        await asyncio.sleep(self.step_s)
        while self.hold_before_step is not None and step >= self.hold_before_step:  # noqa: ASYNC110
            await asyncio.sleep(0.01)  # a test in another thread releases it

    def _source(self, body: dict[str, Any], files: dict[str, bytes]) -> Image.Image:
        if "image" in files:
            return Image.open(io.BytesIO(files["image"])).convert("RGB")
        stored = self.store.pictures[body["image"]]
        return landscape(stored["prompt"], stored["seed"], stored["width"], stored["height"])

    def _picture(self, body: dict[str, Any], seed: int, source: Image.Image | None) -> Any:
        """From a picture, one that shimmers through as much as strength says, or around a mask."""
        width, height = map(int, re.findall(r"\d+", body["size"]))
        drawn = landscape(body["prompt"], seed, width, height)
        if source is None:
            return drawn
        if body.get("fit") == "extend":
            middle = f"{(width - source.width) // 2},{(height - source.height) // 2}"
            x, y = map(int, body.get("position", middle).split(","))
            drawn.paste(source, (x, y))
            return drawn
        under = ImageOps.fit(source, (width, height))
        if "mask" in self.files:
            mask = Image.open(io.BytesIO(self.files["mask"])).convert("L")
            return Image.composite(drawn, under, mask.resize((width, height)))
        return Image.blend(under, drawn, _strength_of(body))


async def _file(request: Request) -> Response:
    found = _page().get(request.path_params["path"])
    return Response(status_code=404) if found is None else Response(found[0], media_type=found[1])


@functools.cache
def _page() -> dict[str, tuple[bytes, str | None]]:
    """The page's files and their types by path, read once: a page asks for fifty."""
    files = [path for path in WEB.rglob("*") if path.is_file()]
    by_path = {path.relative_to(WEB).as_posix(): path for path in files}
    by_path |= {name.removesuffix("index.html"): path for name, path in by_path.items()}
    return {
        name: (path.read_bytes(), mimetypes.guess_type(path)[0]) for name, path in by_path.items()
    }


class _WithPolicy:
    """The policy that nginx sends with the page: what it forbids shows as a console error."""

    def __init__(self, app: Starlette) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"].append((b"content-security-policy", CSP.encode()))
            await send(message)

        await self.app(scope, receive, with_policy)


async def _body_of(request: Request) -> tuple[dict[str, Any], dict[str, bytes]]:
    """As JSON would have it, and the files of a form."""
    if not request.headers["content-type"].startswith("multipart/"):
        return await request.json(), {}
    async with request.form() as form:
        files = {k: await v.read() for k, v in form.items() if isinstance(v, UploadFile)}
        return _typed({k: v for k, v in form.items() if isinstance(v, str)}), files


def _typed(texts: Mapping[str, str]) -> dict[str, Any]:
    words = {"prompt", "size", "image", "output_format", "negative_prompt", "resume"}
    words |= {"fit", "model", "position"}
    return {k: text if k in words else json.loads(text) for k, text in texts.items()}


def _twice(source: Image.Image) -> str:
    return f"{2 * source.width}x{2 * source.height}"


def _strength_of(body: dict[str, Any]) -> float:
    return float(body.get("strength", 0.6))


def _event_of(kind: str, name: str, **fields: Any) -> str:
    kind = f"{kind}.{name}"
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n"


def _b64(picture: Any, body: dict[str, Any]) -> dict[str, str]:
    output_format = body.get("output_format", "png")
    b64_json = base64.b64encode(encoded(picture, output_format)).decode()
    return {"b64_json": b64_json, "output_format": output_format}


def _refusal(fault: Refuse) -> Response:
    error = {"message": fault.message, "type": "error", "param": fault.param, "code": fault.code}
    details = {} if fault.details is None else {"details": fault.details}
    headers = {} if fault.retry_after_s is None else {"Retry-After": str(fault.retry_after_s)}
    if fault.should_retry is not None:
        headers["X-Should-Retry"] = str(fault.should_retry).lower()
    return JSONResponse({"error": error | details}, fault.status, headers)
