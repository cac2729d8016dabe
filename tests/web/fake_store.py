"""What a fake cell keeps: pictures, jobs, a key, its usage. The test plays the workers of jobs."""

import asyncio
import datetime
import json
import re
import time
import zipfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.web.landscapes import encoded, landscape
from worker.errors import InvalidRequest
from worker.jobs.template import Bounds, expand

MODEL = "Tongyi-MAI/Z-Image-Turbo"
COOKIE = "zimage_session"
BOUNDS = Bounds(prompts=10_000, prompt_chars=4000, total_chars=8 << 20)


@dataclass
class FakeJob:
    """``revision`` rises with each change; ``changed`` has the one of each item."""

    id: str
    body: dict[str, Any]
    items: list[dict[str, Any]]
    state: str = "running"
    held: str | None = None
    created_at: float = field(default_factory=time.time)
    finished_at: float | None = None
    revision: int = 0
    changed: dict[int, int] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)

    def described(self) -> dict[str, Any]:
        states = ("waiting", "running", "done", "failed", "cancelled")
        counts = {s: sum(item["state"] == s for item in self.items) for s in states}
        left = counts["waiting"] + counts["running"]
        return {
            "id": self.id,
            "object": "job",
            "name": self.body.get("name", ""),
            "state": self.state,
            "held": self.held,
            "created_at": self.created_at,
            "finished_at": self.finished_at,
            "total": len(self.items),
            "counts": counts,
            "predicted_finish_at": time.time() + 4 * left
            if self.state == "running" and not self.held
            else None,
            "priority": "batch",
            "revision": self.revision,
            "parameters": {"size": self.body.get("size", "256x256"), "steps": 4, **self.drawn_from},
        }

    @property
    def drawn_from(self) -> dict[str, Any]:
        names = ("image", "mask", "strength", "fit", "position")
        said = {name: self.body[name] for name in names if name in self.body}
        return {"strength": 0.6, "fit": "cover", **said} if said else {}

    def touch(self, *items: dict[str, Any]) -> None:
        self.revision += 1
        for item in items:
            self.changed[item["number"]] = self.revision


@dataclass
class FakeStore:
    """``key`` None: no key is needed. ``calls`` has method and path of what changed something."""

    pictures: dict[str, dict[str, Any]] = field(default_factory=dict)
    jobs: dict[str, FakeJob] = field(default_factory=dict)
    key: str | None = None
    usage: bool = True
    calls: list[tuple[str, str]] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    uploads: dict[str, bytes] = field(default_factory=dict)
    sessions: int = 0
    signed_out: list[str] = field(default_factory=list)
    away: bool = False

    # Played by the test

    def keep(self, id: str, body: dict[str, Any], seed: int, steps: int, **more: Any) -> None:
        """Put a drawn picture into the gallery."""
        width, height = map(int, re.findall(r"\d+", body["size"]))
        url = f"/v1/images/{id}"
        self.pictures[id] = {
            "id": id,
            "object": "image",
            "created_at": time.time(),
            "prompt": body["prompt"],
            "negative_prompt": body.get("negative_prompt", ""),
            "seed": seed,
            "width": width,
            "height": height,
            "steps": steps,
            "guidance_scale": body.get("guidance_scale", 0.0),
            "strength": 1.0,
            "lora": [{"sha256": "0" * 64, **lora} for lora in body.get("lora", [])],
            "model": body.get("model", MODEL),
            "format": body.get("output_format", "png"),
            "bytes": 1,
            "image_sha256": None,
            "mask_sha256": None,
            "drawn_from": None,
            "favourite": False,
            "job": None,
            "url": url,
            "thumbnail_url": f"{url}/thumbnail",
            **more,
        }

    def step(self, job: FakeJob, number: int, step: int) -> None:
        item = job.items[number - 1]
        item.update(state="running", step=step)
        job.steps.append({"type": "job.step", "number": number, "step": step, "steps": 4})
        job.touch(item)

    def finish(self, job: FakeJob, *numbers: int) -> None:
        for number in numbers:
            item = job.items[number - 1]
            id = f"img_{job.id}-{number}"
            body = {**job.body, "prompt": item["prompt"], "size": job.body.get("size", "256x256")}
            digest = "5" * 64 if "image" in job.body else None
            of = {"job": {"id": job.id, "number": number}, "image_sha256": digest}
            self.keep(id, body, item["seed"], 4, **of)
            item.update(state="done", step=4, image=self.pictures[id])
            job.touch(item)
        self._settle(job)

    def fail(self, job: FakeJob, number: int, message: str) -> None:
        item = job.items[number - 1]
        item.update(state="failed", error={"code": "drawing_failed", "message": message})
        job.touch(item)
        self._settle(job)

    def _settle(self, job: FakeJob) -> None:
        states = {item["state"] for item in job.items}
        if not states & {"waiting", "running"}:
            job.state = "failed" if "failed" in states else "completed"
            job.finished_at = time.time()
            job.touch()

    # Answered to the page

    def lets_in(self, request: Request) -> bool:
        return self.key is None or request.cookies.get(COOKIE) == "signed-in"

    @property
    def routes(self) -> list[Route]:
        """To be put before the page's files."""
        table: list[tuple[str, str, Callable[[Request], Any]]] = [
            ("GET", "/v1/images", self._list),
            ("GET", "/v1/images/{id}", self._file),
            ("GET", "/v1/images/{id}/thumbnail", self._thumbnail),
            ("PATCH", "/v1/images/{id}", self._mark),
            ("DELETE", "/v1/images/{id}", self._delete),
            ("POST", "/v1/uploads", self._upload),
            ("GET", "/v1/uploads/{id}/content", self._uploaded),
            ("POST", "/v1/jobs", self._create),
            ("POST", "/v1/jobs/preview", self._preview),
            ("GET", "/v1/jobs", self._list_jobs),
            ("GET", "/v1/jobs/{id}", self._job),
            ("DELETE", "/v1/jobs/{id}", self._forget),
            ("GET", "/v1/jobs/{id}/items", self._items),
            ("GET", "/v1/jobs/{id}/events", self._events),
            ("GET", "/v1/jobs/{id}/results.zip", self._zip),
            ("POST", "/v1/jobs/{id}/{verb}", self._steer),
            ("GET", "/v1/usage", self._usage),
        ]
        session = Route("/v1/session", self._session, methods=["GET", "POST", "DELETE"])
        return [session, *(self._route(*row) for row in table)]

    def _route(self, method: str, path: str, answer: Callable[[Request], Any]) -> Route:
        async def endpoint(request: Request) -> Response:
            if not self.lets_in(request):
                return _refused(401, "This needs a key.")
            if method != "GET" and not path.endswith("/preview"):
                self.calls.append((method, request.url.path))
            found = answer(request)
            response: Response = await found if asyncio.iscoroutine(found) else found
            return response

        return Route(path, endpoint, methods=[method])

    async def _session(self, request: Request) -> Response:
        self.sessions += 1
        if request.method == "DELETE":
            if self.away:
                return _refused(503, "It is away.")
            self.signed_out.append(request.url.query)
            answer = Response(status_code=204)
            answer.delete_cookie(COOKIE)
            return answer
        if request.method == "POST":
            if (await request.json())["key"] != self.key:
                return _refused(401, "This key is not known.")
            answer = Response(status_code=204)
            answer.set_cookie(COOKIE, "signed-in", httponly=True, samesite="strict")
            return answer
        if self.key is None:
            return JSONResponse({"auth": "none", "signed_in": False, "key": None})
        signed_in = self.lets_in(request)
        key = {"id": "key_1", "name": "Design team", "role": "user", "images_per_day": 500}
        shown = {**key, "images_today": 42} if signed_in else None
        return JSONResponse({"auth": "keys", "signed_in": signed_in, "key": shown})

    def _list(self, request: Request) -> Response:
        asked = request.query_params
        words = asked.get("q", "").casefold().split()
        found = sorted(self.pictures.values(), key=lambda p: (-p["created_at"], p["id"]))
        found = [p for p in found if all(word in p["prompt"].casefold() for word in words)]
        if asked.get("favourite") == "true":
            found = [p for p in found if p["favourite"]]
        ids = [p["id"] for p in found]
        begin = ids.index(asked["after"]) + 1 if "after" in asked else 0
        end = begin + int(asked.get("limit", 50))
        page = {"object": "list", "data": found[begin:end], "has_more": end < len(found)}
        return JSONResponse(page)

    def _file(self, request: Request) -> Response:
        return self._sent(request, 1)

    def _thumbnail(self, request: Request) -> Response:
        return self._sent(request, 2)

    def _sent(self, request: Request, shrink: int) -> Response:
        picture = self.pictures.get(request.path_params["id"])
        if picture is None:
            return _refused(404, "There is no such picture.")
        size = picture["width"], picture["height"]
        image = landscape(picture["prompt"], picture["seed"], *size)
        kind = "webp" if shrink > 1 else picture["format"]
        if shrink > 1:
            image.thumbnail((384, 384))
        return Response(encoded(image, kind), media_type=f"image/{kind}")

    async def _upload(self, request: Request) -> Response:
        id = f"upload_{len(self.uploads):032x}"
        self.uploads[id] = await request.body()
        return JSONResponse({"id": id, "expires_at": time.time() + 86400}, 201)

    def _uploaded(self, request: Request) -> Response:
        file = self.uploads.get(request.path_params["id"])
        return _refused(404, "It is gone.") if file is None else Response(file)

    async def _mark(self, request: Request) -> Response:
        picture = self.pictures[request.path_params["id"]]
        picture["favourite"] = (await request.json())["favourite"]
        return JSONResponse(picture)

    def _delete(self, request: Request) -> Response:
        self.pictures.pop(request.path_params["id"])
        return Response(status_code=204)

    async def _prompts(self, request: Request) -> tuple[dict[str, Any], list[str]]:
        body = await request.json()
        prompts = body.get("prompts") or expand(body["template"], body.get("variables", {}), BOUNDS)
        return body, [p for p in prompts for _ in range(body.get("variants", 1))]

    async def _preview(self, request: Request) -> Response:
        try:
            _, prompts = await self._prompts(request)
        except InvalidRequest as error:
            return _refused(400, error.message, error.param, error.details)
        tokens = max(len(prompt.split()) for prompt in prompts)
        return JSONResponse({"count": len(prompts), "prompts": prompts[:100], "tokens": tokens})

    async def _create(self, request: Request) -> Response:
        try:
            body, prompts = await self._prompts(request)
        except InvalidRequest as error:
            return _refused(400, error.message, error.param)
        self.bodies.append(body)
        base = {"step": 0, "steps": 4, "error": None, "image": None, "state": "waiting"}
        first = body.get("seed", 1000)
        items = [
            {"number": k + 1, "prompt": prompt, "seed": first + k, **base}
            for k, prompt in enumerate(prompts)
        ]
        job = FakeJob(f"job_{len(self.jobs) + 1}", body, items)
        self.jobs[job.id] = job
        return JSONResponse(job.described(), 202)

    def _list_jobs(self, _: Request) -> Response:
        data = [job.described() for job in reversed(self.jobs.values())]
        return JSONResponse({"object": "list", "data": data, "has_more": False})

    def _job(self, request: Request) -> Response:
        job = self.jobs.get(request.path_params["id"])
        return JSONResponse(job.described()) if job else _refused(404, "There is no such job.")

    def _forget(self, request: Request) -> Response:
        self.jobs.pop(request.path_params["id"])
        return Response(status_code=204)

    def _items(self, request: Request) -> Response:
        items = self.jobs[request.path_params["id"]].items
        begin = int(request.query_params.get("after", 0))
        end = begin + int(request.query_params.get("limit", 100))
        page = {"object": "list", "data": items[begin:end], "has_more": end < len(items)}
        return JSONResponse(page)

    def _events(self, request: Request) -> Response:
        job = self.jobs[request.path_params["id"]]
        after = request.headers.get("last-event-id") or request.query_params.get("after", "0")
        if job.finished_at and int(after) >= job.revision:
            return Response(status_code=204)
        return StreamingResponse(self._told(job, int(after)), media_type="text/event-stream")

    async def _told(self, job: FakeJob, after: int) -> AsyncIterator[str]:
        told = len(job.steps)
        for _ in range(600):
            if job.revision > after:
                fresh = [n for n, revision in list(job.changed.items()) if revision > after]
                after = job.revision
                for number in fresh:
                    yield _event("job.item", after, item=job.items[number - 1])
                yield _event("job.updated", after, job=job.described())
            for event in job.steps[told:]:
                yield f"event: job.step\ndata: {json.dumps(event)}\n\n"
            told = len(job.steps)
            if job.finished_at:
                return
            await asyncio.sleep(0.05)

    def _zip(self, request: Request) -> Response:
        file = BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for item in self.jobs[request.path_params["id"]].items:
                if item["image"]:
                    archive.writestr(f"{item['number']:04}.png", item["prompt"])
        headers = {"Content-Disposition": "attachment; filename=job.zip"}
        return Response(file.getvalue(), media_type="application/zip", headers=headers)

    def _steer(self, request: Request) -> Response:
        job = self.jobs[request.path_params["id"]]
        verb = request.path_params["verb"]
        job.state = {"pause": "paused", "cancel": "cancelled"}.get(verb, "running")
        if request.query_params.get("paused") == "true":
            job.state = "paused"
        wrong = {"failed", "cancelled"}
        for item in job.items:
            if verb == "cancel" and item["state"] in ("waiting", "running"):
                item["state"] = "cancelled"
                job.touch(item)
            if verb == "retry" and item["state"] in wrong:
                item.update(state="waiting", error=None)
                job.touch(item)
        job.finished_at = time.time() if verb == "cancel" else None
        job.touch()
        return JSONResponse(job.described())

    def _usage(self, request: Request) -> Response:
        if not self.usage:
            return _refused(404, "There is no usage here.")
        by = request.query_params["by"]
        today = datetime.datetime.now(datetime.UTC).date()
        days = [str(today - datetime.timedelta(days=k)) for k in range(12)]
        names = {"day": days, "key": ["Design team", "API"], "model": ["z-image-turbo"]}[by]
        data = [
            {
                by: name,
                "requests": 20 + 7 * k % 50,
                "images": 30 + 37 * k % 90,
                "megapixel_steps": 812.4 + k,
                "gpu_seconds": 61.2 * (k + 1),
                "queue_seconds": 4.5 * k,
                "refusals": k % 3,
                "failures": k % 2,
            }
            for k, name in enumerate(names)
        ]
        return JSONResponse({"object": "list", "by": by, "data": data})


def _event(kind: str, id: int, **fields: Any) -> str:
    return f"id: {id}\nevent: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n"


def _refused(
    status: int, message: str, param: str | None = None, details: object = None
) -> Response:
    error = {"message": message, "type": "error", "param": param, "code": "refused"}
    return JSONResponse({"error": error | ({"details": details} if details else {})}, status)
