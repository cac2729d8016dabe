"""Durable jobs: make, watch, steer, and fetch what was drawn. Somebody else's job answers 404."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from urllib.parse import quote

import numpy as np
import sqlalchemy as sa
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from worker.api import model_routing, oversight, sse
from worker.api.address import root_of
from worker.api.answers import Json
from worker.api.caller import Caller, caller_of
from worker.api.client import ClientGone, read_json_body
from worker.api.middleware.request_context import CLIENT_GONE, context_of
from worker.api.routes import job_events
from worker.api.routes.images import default_seed
from worker.api.routes.job_objects import (
    MAX_ITEMS,
    describe,
    describe_item,
    few,
    missing,
    object_of,
    pictures_of,
    schemas,
)
from worker.api.schemas import job_wire
from worker.api.schemas.fields import bad, digits_of
from worker.api.schemas.openapi import Part, Schema, operation, parameter, ref
from worker.api.serving import components_of, lifecycle_of
from worker.bounds import MAX_JOB_BODY_BYTES
from worker.components import Components
from worker.coordination import quota
from worker.errors import Conflict, Overloaded
from worker.generation.request import priority_of
from worker.jobs.archive import archive
from worker.lifecycle import Lifecycle
from worker.models.base import ModelInfo
from worker.storage import job_changes, job_items, jobs
from worker.storage.database import clock
from worker.storage.gallery import StoredImage
from worker.storage.job_items import Item
from worker.storage.jobs import ITEM_STATES, JOB_STATES, Job, JobSpec, Share
from worker.types import DrawSpec, SourceImage

MAX_JOBS = 100
PREVIEWED = 100
TURN_S = 30.0
"""How long a new job waits for those before it to be read and stored."""


async def create(request: Request) -> Response:
    """Accept a job: once this has answered, it will be drawn whatever happens."""
    model, components = lifecycle_of(request).require_ready(), components_of(request)
    caller, context = caller_of(request), context_of(request)
    try:
        async with _wish_of(request, components, model.info, default_seed(context.id)) as wish:
            wish = await _drawn_from(components, model.info, caller, wish)
            quota.require_size(caller.key, wish.parameters)
            quota.require_loras(caller.key, wish.parameters)
            wish = replace(
                wish,
                priority=priority_of(caller.key, wish.priority),
                traceparent=context.trace.traceparent,
            )
            model.engine.check([_first(wish)])
            job = await _created(components, wish, caller, context.id)
    except ClientGone:
        return Response(status_code=CLIENT_GONE)
    context.notes |= {"job": job.id, "items": job.total}
    components.jobs.notify()
    return Json(await _described(components, job), 202)


@asynccontextmanager
async def _wish_of(
    request: Request, components: Components, info: ModelInfo, seed: int
) -> AsyncIterator[JobSpec]:
    """What ``request`` asks for. One at a time has its body and what it says in memory: the values
    of 8 MiB of JSON may take twenty times as much. Raises ``ClientGone`` or ``Overloaded``."""
    try:
        async with asyncio.timeout(TURN_S):
            await components.reading_job.acquire()
    except TimeoutError:
        raise Overloaded("Many jobs are being made: try again.", retry_after_s=5.0) from None
    try:
        body = await read_json_body(request, MAX_JOB_BODY_BYTES)
        check = partial(model_routing.require_own, request, components)
        wish = await asyncio.to_thread(job_wire.parse, body, components.settings, info, seed, check)
        yield replace(wish, model=components.models.of_job())
    finally:
        components.reading_job.release()


async def _drawn_from(
    components: Components, info: ModelInfo, caller: Caller, wish: JobSpec
) -> JobSpec:
    """``wish`` with what its pictures decide, which are the caller's."""
    if wish.image is None:
        return wish
    find = components.named.find
    image = await find(caller.owner, wish.image, "image")
    mask = await find(caller.owner, wish.mask, "mask") if wish.mask else None
    return job_wire.drawn_from(wish, image, mask, components.settings, info)


def _first(wish: JobSpec) -> DrawSpec:
    """Enough of its first item to be checked: its picture is read when it is drawn."""
    source = None
    if wish.image is not None:
        masked = wish.mask is not None or wish.fit == "extend"
        source = SourceImage("", None, np.zeros((0, 0), np.uint8) if masked else None)
    return DrawSpec(wish.prompts[0], wish.first_seed, wish.parameters, source)


async def _created(components: Components, wish: JobSpec, caller: Caller, request_id: str) -> Job:
    share = _share(components)

    def work(connection: sa.Connection) -> Job:
        now = clock(connection)
        return jobs.create(connection, wish, caller.owner, caller.turn, request_id, now, share)

    return await components.database.run(work)


def _share(components: Components) -> Share:
    settings = components.settings
    return Share(
        open_jobs=settings.max_open_jobs,
        open_images=settings.max_open_job_images,
        stored_bytes=settings.max_job_mib << 20,
    )


async def preview(request: Request) -> Response:
    """What a job would draw."""
    model, components = lifecycle_of(request).require_ready(), components_of(request)
    try:
        async with _wish_of(request, components, model.info, 0) as wish:
            shown = {"count": len(wish.prompts), "prompts": wish.prompts[:PREVIEWED]}
            limit, longest = model.info.prompt_limit, max(wish.prompts, key=len)
            tokens = await asyncio.to_thread(limit.tokens, longest) if limit else None
            return Json({**shown, "tokens": tokens})
    except ClientGone:
        return Response(status_code=CLIENT_GONE)


async def list_jobs(request: Request) -> Response:
    """Jobs of the caller, newest first."""
    components, caller = components_of(request), caller_of(request)
    query = _Query(request.query_params, ("state", "limit", "after"))
    states, limit = query.states(JOB_STATES), query.limit(20, MAX_JOBS)
    owner = None if caller.role == "ops" else caller.owner
    after = query.values.get("after")
    found = await components.database.read(lambda c: jobs.page(c, owner, states, limit + 1, after))
    ends = await components.job_eta.finish_times()
    data = [describe(job, ends, components.models) for job in found[:limit]]
    return Json({"object": "list", "data": data, "has_more": len(found) > limit})


async def get_job(request: Request) -> Response:
    components = components_of(request)
    return Json(await _described(components, await _asked(request)))


async def list_items(request: Request) -> Response:
    """Items of a job by number, with their pictures."""
    components, job = components_of(request), await _asked(request)
    query = _Query(request.query_params, ("state", "limit", "after"))
    states, limit = query.states(ITEM_STATES), query.limit(100, MAX_ITEMS)
    after = query.whole("after", 0)

    def work(connection: sa.Connection) -> tuple[list[Item], bool, dict[str, StoredImage]]:
        found, more = few(job_items.items_of(connection, job.id, states, limit + 1, after), limit)
        return found, more, pictures_of(connection, found)

    found, more, images = await components.database.read(work)
    steps = await components.steps.read()
    root = root_of(request)
    data = [describe_item(item, job, images, steps, root) for item in found]
    return Json({"object": "list", "data": data, "has_more": more})


async def delete(request: Request) -> Response:
    """Forget a job; what it has drawn stays in the gallery."""
    components, job = components_of(request), await _asked(request)
    await components.database.run(lambda c: job_changes.delete(c, job.id))
    components.jobs.notify()
    return Response(status_code=204)


async def results(request: Request) -> Response:
    """All pictures that are done, as a ZIP file."""
    components, job = components_of(request), await _asked(request)
    if not job.counts["done"]:
        raise Conflict(f"{job.id} has no picture yet: wait until the first one is done.")
    name = quote(f"{job.name or job.id}.zip", safe="")
    saved = f"attachment; filename*=UTF-8''{name}"
    return StreamingResponse(
        archive(components.database, components.images, job),
        media_type="application/zip",
        headers={"Cache-Control": "no-store", "Content-Disposition": saved},
    )


Change = Callable[[sa.Connection, Job], None]


def _steering(change: Change) -> Callable[[Request], Awaitable[Response]]:
    async def steer(request: Request) -> Response:
        return await _steered(request, change)

    return steer


async def retry(request: Request) -> Response:
    """Draw failed and cancelled items, if the owner may have one more open job."""
    share = _share(components_of(request))
    paused = _Query(request.query_params, ("paused",)).flag("paused")
    return await _steered(request, lambda c, job: job_changes.retry(c, job, share, paused=paused))


async def _steered(request: Request, change: Change) -> Response:
    components, caller = components_of(request), caller_of(request)
    job_id = request.path_params["id"]

    def work(connection: sa.Connection) -> Job:
        jobs.lock_rows(connection, jobs.jobs.c.id == job_id)
        change(connection, _visible(connection, caller, job_id))
        return jobs.require(connection, job_id)

    job = await components.database.run(work)
    components.jobs.notify()
    return Json(await _described(components, job))


async def events(request: Request) -> Response:
    """What happens to a job from a revision on, as server-sent events."""
    components, job = components_of(request), await _asked(request)
    query = _Query(request.query_params, ("after",))
    last = request.headers.get("last-event-id")
    after = query.whole("after", 0) if not last else whole("Last-Event-ID", last)
    if job.over and after >= job.revision:
        return Response(status_code=204)  # tells an EventSource not to come back
    ended = components.job_streams.take(caller_of(request).turn)
    told = job_events.events(components, job.id, after, root_of(request))
    return sse.EventStream(told, ended, context_of(request).id, until=lifecycle_of(request).ending)


async def _described(components: Components, job: Job) -> dict[str, Any]:
    return describe(job, await components.job_eta.finish_times(), components.models)


# Who may, and what is asked


async def _asked(request: Request) -> Job:
    """The job that the path names, if it is the caller's."""
    components, caller = components_of(request), caller_of(request)
    job_id = request.path_params["id"]
    job = await components.database.read(lambda c: _visible(c, caller, job_id))
    oversight.note(components, request, [job.owner], job=job.id)
    return job


def _visible(connection: sa.Connection, caller: Caller, job_id: str) -> Job:
    job = jobs.get(connection, job_id)
    if job is None or not caller.may_see(job.owner):
        raise missing(job_id)
    return job


def whole(name: str, text: str) -> int:
    """``text`` as a number that the database can hold."""
    number = digits_of(text)
    if number is None:
        bad(name, f"{text[:40]!r} is not a whole number")
    return number


class _Query:
    """Typed access to what stands behind the question mark."""

    def __init__(self, values: QueryParams, known: tuple[str, ...]) -> None:
        self.values = values
        for name in values:
            if name not in known:
                bad(name[:40], f"unknown here: use {', '.join(known)}", "unknown_parameter")

    def states(self, known: tuple[str, ...]) -> tuple[str, ...]:
        asked = tuple(filter(None, self.values.get("state", "").split(",")))
        for state in asked:
            if state not in known:
                bad("state", f"{state[:40]!r} is not one of {', '.join(known)}")
        return asked

    def limit(self, default: int, most: int) -> int:
        limit = self.whole("limit", default)
        if not 1 <= limit <= most:
            bad("limit", f"{limit} is out of range: 1 to {most}")
        return limit

    def flag(self, name: str) -> bool:
        text = self.values.get(name, "false")
        if text not in ("true", "false"):
            bad(name, f"{text[:40]!r} is neither true nor false")
        return text == "true"

    def whole(self, name: str, default: int) -> int:
        return whole(name, self.values.get(name, str(default)))


_JOB = "/v1/jobs/{id}"

ROUTES = [
    Route("/v1/jobs", create, methods=["POST"]),
    Route("/v1/jobs", list_jobs, methods=["GET"]),
    Route("/v1/jobs/preview", preview, methods=["POST"]),
    Route(_JOB, get_job, methods=["GET"]),
    Route(_JOB, delete, methods=["DELETE"]),
    Route(_JOB + "/items", list_items, methods=["GET"]),
    Route(_JOB + "/events", events, methods=["GET"]),
    Route(_JOB + "/results.zip", results, methods=["GET"]),
    Route(_JOB + "/pause", _steering(job_changes.pause), methods=["POST"]),
    Route(_JOB + "/resume", _steering(job_changes.resume), methods=["POST"]),
    Route(
        _JOB + "/cancel",
        _steering(lambda c, job: job_changes.cancel(c, job, clock(c))),
        methods=["POST"],
    ),
    Route(_JOB + "/retry", retry, methods=["POST"]),
]


def openapi(lifecycle: Lifecycle) -> Part:
    asked = job_wire.schema(lifecycle.settings, lifecycle.model.info)
    return Part(_paths(), {**schemas(), "JobSpec": asked})


def _paths() -> dict[str, dict[str, Any]]:
    text, whole = {"type": "string"}, {"type": "integer"}
    one = parameter("path", "id", {**text, "minLength": 1})
    about: dict[str, Any] = {"errors": (404,), "parameters": (one,)}
    targets = [("get", path) for path in (_JOB, f"{_JOB}/items", f"{_JOB}/results.zip")]
    change: dict[str, Any] = {"errors": (404, 409), "parameters": (one,)}
    made: dict[str, Any] = {"errors": (404, 409, 422), "body": ref("JobSpec")}
    seen = operation("How it stands.", {200: ref("Job")}, **about)
    forget = operation(
        "Forget it; its pictures stay.", {204: {}}, errors=(404, 409), parameters=(one,)
    )
    items = operation(
        "Its pictures by number.",
        {200: _page("Item")},
        errors=(404,),
        parameters=(one, *_paging(ITEM_STATES, MAX_ITEMS, {**whole, "minimum": 0})),
    )
    archived = {"application/zip": {**text, "format": "binary"}}
    paused = parameter("query", "paused", {"type": "boolean"}, "a job that was over: not yet")
    steering = {
        f"{_JOB}/{verb}": {
            "post": operation(says, {200: ref("Job")}, errors=(404, 409), parameters=(one, *more))
        }
        for verb, says, more in (
            ("pause", "Draw no more for now.", ()),
            ("resume", "Go on.", ()),
            ("cancel", "Draw no more at all.", ()),
            ("retry", "Draw again what has failed.", (paused,)),
        )
    }
    return {
        "/v1/jobs": {
            "post": operation("Draw all of this, whatever happens.", {202: ref("Job")}, **made),
            "get": operation(
                "Your jobs, newest first.",
                {200: _page("Job")},
                errors=(404,),
                parameters=_paging(JOB_STATES, MAX_JOBS, text),
                leads_to={"/data/0/id": targets},
            ),
        },
        "/v1/jobs/preview": {
            "post": operation(
                "What a job would draw.",
                {200: _PREVIEW},
                **made,
            )
        },
        _JOB: {"get": seen, "delete": forget},
        f"{_JOB}/items": {"get": items},
        f"{_JOB}/events": {
            "get": operation(
                "What happens to it, as server-sent events; 204 once it is over.",
                {200: {"text/event-stream": ref("Event")}, 204: {}},
                errors=(404,),
                parameters=(one, parameter("query", "after", {**whole, "minimum": 0})),
            )
        },
        f"{_JOB}/results.zip": {"get": operation("What is done.", {200: archived}, **change)},
        **steering,
    }


_PREVIEW = object_of(
    count={"type": "integer"},
    prompts={"type": "array", "items": {"type": "string"}, "maxItems": PREVIEWED},
    tokens={"type": ["integer", "null"], "description": "Of the longest prompt."},
)


def _page(of: str) -> dict[str, Any]:
    many = {"type": "array", "items": ref(of)}
    return object_of(object={"const": "list"}, data=many, has_more={"type": "boolean"})


def _paging(states: tuple[str, ...], most: int, after: Schema) -> tuple[dict[str, Any], ...]:
    words = "|".join(states)
    return (
        parameter("query", "state", {"type": "string", "pattern": f"^(({words})(,({words}))*)?$"}),
        parameter("query", "limit", {"type": "integer", "minimum": 1, "maximum": most}),
        parameter("query", "after", after),
    )
