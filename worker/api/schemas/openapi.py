"""``/openapi.json``: what this worker's API takes and answers, as OpenAPI 3.1.

Each module of routes describes its own: ``openapi(lifecycle)`` returns a ``Part``. Limits are those
of this cell, so that a client generated from the document knows them.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from worker.api import cookies
from worker.api.address import root_of
from worker.api.answers import Json
from worker.api.middleware import access
from worker.api.serving import lifecycle_of
from worker.lifecycle import Lifecycle

Schema = Mapping[str, Any]

ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string", "description": "One sentence for a person."},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"], "description": "The field at fault."},
                "code": {"type": "string", "description": "A stable word for programs."},
                "details": {
                    "type": "object",
                    "description": "What the message tells, as a `reason` with its numbers.",
                    "additionalProperties": {"type": ["string", "number"]},
                },
            },
        }
    },
}

EVENT = {
    "type": "object",
    "description": "One server-sent event: before OpenAPI 3.2 a stream's schema is that of each.",
    "required": ["event", "data"],
    "properties": {
        "event": {"type": "string"},
        "data": {"type": "string", "description": "JSON; see docs/api.md."},
    },
}

_MEANINGS = {
    200: "Done.",
    201: "Made.",
    202: "Accepted.",
    204: "Done; there is nothing to say.",
    400: "A field is wrong: `param` names it.",
    401: "A valid API key is needed.",
    403: "Not allowed.",
    404: "There is no such thing, or it is somebody else's.",
    405: "This address does not take this method: see `Allow`.",
    408: "The body did not arrive, or the request's own `timeout_s` has passed.",
    409: "Not possible in the present state.",
    413: "The body is too large.",
    415: "Send `Content-Type: application/json`, or a form where files are taken.",
    421: "This cell is not for whoever asks under this name or through this proxy.",
    422: "Understood and declined.",
    429: "Too many requests, or over a limit: come back after `Retry-After`.",
    431: "The request's head is too large.",
    500: "Something failed here: tell the operators the `X-Request-ID`.",
    503: "Nobody can take it now: come back after `Retry-After`.",
    507: "There is no room for the file.",
}

ALWAYS = (400, 401, 403, 405, 421, 429, 431, 500, 503)
"""What any address may answer, nginx's own refusals included."""

WITH_BODY = (408, 413, 415)
"""What an address that takes a body may answer besides."""


@dataclass(frozen=True)
class Part:
    """Of one module: OpenAPI's path items by path, and the schemas that they refer to."""

    paths: Mapping[str, Mapping[str, Any]]
    schemas: Mapping[str, Schema] = field(default_factory=dict)


Describe = Callable[[Lifecycle], Part]


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def operation(
    summary: str,
    answers: Mapping[int, Schema | Mapping[str, Schema]],
    *,
    errors: Iterable[int] = (),
    body: Schema | None = None,
    form: Schema | None = None,
    files: Mapping[str, Schema] | None = None,
    parameters: Iterable[Mapping[str, Any]] = (),
    leads_to: Mapping[str, Iterable[tuple[str, str]]] | None = None,
) -> dict[str, Any]:
    """One method of a path. ``answers`` by status: the JSON's schema, schemas by media type, or
    nothing for an empty answer. ``errors`` beyond those of every address have the envelope.
    ``body`` is sent as JSON, ``form`` in its place as multipart form, ``files`` by media type.
    ``leads_to``: by JSON pointer into the first answer, the (method, path) pairs whose ``id``
    stands there."""
    content = dict(files or {})
    content |= {"application/json": body} if body is not None else {}
    content |= {"multipart/form-data": form} if form is not None else {}
    statuses = sorted({*ALWAYS, *errors, *(WITH_BODY if content else ())})
    responses = {str(status): _answer(status, schema) for status, schema in answers.items()}
    responses |= {str(status): _answer(status, ref("Error")) for status in statuses}
    if leads_to:
        responses[str(next(iter(answers)))]["links"] = _links(leads_to)
    described: dict[str, Any] = {"summary": summary, "responses": responses}
    if content:
        told = {media_type: {"schema": schema} for media_type, schema in content.items()}
        described["requestBody"] = {"required": True, "content": told}
    if parameters:
        described["parameters"] = list(parameters)
    return described


def parameter(where: str, name: str, schema: Schema, about: str = "") -> dict[str, Any]:
    """``where``: path (then it is required), query or header."""
    described = {"in": where, "name": name, "required": where == "path", "schema": schema}
    return {**described, "description": about} if about else described


def _links(leads_to: Mapping[str, Iterable[tuple[str, str]]]) -> dict[str, Any]:
    return {
        operation_id(*target): {
            "operationId": operation_id(*target),
            "parameters": {"id": f"$response.body#{pointer}"},
        }
        for pointer, targets in leads_to.items()
        for target in targets
    }


def operation_id(method: str, path: str) -> str:
    words = [word.strip("{}") for word in path.split("/") if word and word != "v1"]
    return "_".join([method, *words]).replace(".", "_")


def _answer(status: int, schema: Schema | Mapping[str, Schema]) -> dict[str, Any]:
    if not schema:
        return {"description": _MEANINGS[status]}
    by_type = schema if all("/" in key for key in schema) else {"application/json": schema}
    content = {media_type: {"schema": one} for media_type, one in by_type.items()}
    return {"description": _MEANINGS[status], "content": content}


def document(lifecycle: Lifecycle, describes: Iterable[Describe]) -> dict[str, Any]:
    """All parts as one document."""
    paths: dict[str, dict[str, Any]] = {}
    schemas: dict[str, Schema] = {"Error": ERROR, "Event": EVENT}
    for describe in describes:
        part = describe(lifecycle)
        schemas |= part.schemas
        for path, item in part.paths.items():
            for method, described in item.items():
                known = {"operationId": operation_id(method, path), **described}
                if access.is_open(path):
                    known["security"] = []
                paths.setdefault(path, {})[method] = known
    about = "Draws pictures from text. See docs/api.md for what the fields mean."
    models = lifecycle.components.models
    if models.of_cluster() is not None:
        about += f" Sizes and features are those of {models.name!r}; /v1/models has all of them."
    return {
        "openapi": "3.1.0",
        "info": {"title": "zimage-cluster", "version": "1", "description": about},
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer"},
                "azure_key": {"type": "apiKey", "in": "header", "name": "api-key"},
                "sign_in": {"type": "apiKey", "in": "cookie", "name": cookies.COOKIE},
            },
        },
        "security": [{"key": []}, {"azure_key": []}, {"sign_in": []}]
        if lifecycle.settings.auth == "keys"
        else [],
    }


def route(modules: Iterable[ModuleType]) -> Route:
    """Serves the document of ``modules``: those that have an ``openapi``."""
    describes: list[Describe] = [*(m.openapi for m in modules if hasattr(m, "openapi")), openapi]

    async def get_document(request: Request) -> Response:
        """This document."""
        lifecycle = lifecycle_of(request)
        lifecycle.require_ready()
        found = document(lifecycle, describes)
        if root := root_of(request):
            found["servers"] = [{"url": root}]
        return Json(found)

    return Route("/openapi.json", get_document, methods=["GET"])


def openapi(_: Lifecycle) -> Part:
    got = operation("This document.", {200: {"type": "object"}})
    return Part({"/openapi.json": {"get": got}})
