"""GET /v1/usage: what a key used, or for role ops what all of them did."""

from typing import Any, cast

from starlette.requests import Request
from starlette.responses import Response

from worker.api import searches
from worker.api.answers import Json
from worker.api.caller import EVERYONE, Caller, caller_of
from worker.api.schemas.openapi import Part, operation, parameter
from worker.api.serving import lifecycle_of
from worker.components import Components
from worker.errors import InvalidRequest
from worker.lifecycle import Lifecycle
from worker.storage import usage

_BY = ("key", "day", "model")
_QUERIES = ("by", "since", "until")


async def get_usage(request: Request) -> Response:
    """Sums by key, day or model, from day ``since`` to day ``until``, both included."""
    components = lifecycle_of(request).components
    for name in request.query_params:
        if name not in _QUERIES:
            _refuse(name[:40], f"unknown; known are {', '.join(_QUERIES)}")
    by = request.query_params.get("by", "day")
    if by not in _BY:
        _refuse("by", f"{by[:40]!r} is not one of {', '.join(_BY)}")
    since, until = (_day(request, name) for name in ("since", "until"))
    caller = caller_of(request)
    owner = None if caller.role == "ops" else caller.owner
    found = await searches.search(
        components,
        caller,
        lambda connection: usage.report(connection, cast(usage.By, by), since, until, owner),
        param="since",
        remedy="ask for fewer days",
    )
    if by == "key":
        found = [_with_name(row, components, caller) for row in found]
    content = {"object": "list", "by": by, "data": found}
    return Json(content, headers={"Cache-Control": "no-store"})


def _with_name(row: dict[str, Any], components: Components, caller: Caller) -> dict[str, Any]:
    """``key`` is its name, as long as it is there; ``key_id`` never changes."""
    id = row["key"]
    key = components.keys.known(id)
    name = EVERYONE if id == EVERYONE else id if key is None else key.name
    return {**row, "key": caller.name if id == caller.owner else name, "key_id": id}


def _day(request: Request, name: str) -> str:
    text = request.query_params.get(name, "")
    if text and not usage.is_day(text):
        _refuse(name, f"{text[:40]!r} is no day: write it as 2027-01-31")
    return text


def _refuse(param: str, message: str) -> None:
    raise InvalidRequest(f"{param}: {message}.", param=param)


def openapi(_: Lifecycle) -> Part:
    row = {"type": "object", "required": list(usage.COLUMNS)}
    found = {
        "type": "object",
        "required": ["object", "by", "data"],
        "properties": {
            "object": {"const": "list"},
            "by": {"enum": list(_BY)},
            "data": {"type": "array", "items": row},
        },
    }
    day = {"anyOf": [{"type": "string", "format": "date"}, {"const": ""}]}
    asked = [
        parameter("query", "by", {"enum": list(_BY)}),
        parameter("query", "since", day, "The first day, UTC."),
        parameter("query", "until", day, "The last day, included."),
    ]
    got = operation("What a key used; for role ops, what all did.", {200: found}, parameters=asked)
    return Part({"/v1/usage": {"get": got}})
