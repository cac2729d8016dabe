"""JSON answers and the one error envelope: ``{"error": {message, type, param, code}}``."""

import math
from collections.abc import Mapping
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from worker.api.address import origin_of
from worker.errors import (
    HandedBack,
    InvalidRequest,
    LimitReached,
    NotReady,
    OtherHost,
    OtherModel,
    Unauthenticated,
    Unavailable,
    WorkerFailed,
    ZimageError,
    status_of,
)

AGAIN = "@again"
"""Where nginx asks all workers once more, with the turn behind it: ``locations.conf.j2``."""
POOL = "@pool_"
"""Where nginx asks the workers with one of several models, with ``pool_of`` its name behind it."""
HAND_OVER = "X-Hand-Over"
"""Names a front's pool of hosts, to a front alone: its link asks for it (``link.conf.j2``)."""
MAX_RETRY_AFTER_S = 120  # the openai SDK ignores a longer one

NO_USAGE = {
    "input_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    "output_tokens": 0,
    "total_tokens": 0,
}
"""What clients read without asking whether it is there; nothing here is counted in tokens."""

_CODES = {
    401: "invalid_api_key",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    413: "request_too_large",
    415: "unsupported_media_type",
}


_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class Json(Response):
    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content, option=orjson.OPT_NON_STR_KEYS)


class Prepared(Response):
    """JSON that is bytes already. Its headers need none of what Starlette does for others."""

    def __init__(self, body: bytes, headers: Mapping[str, str]) -> None:
        self.status_code, self.background, self.body = 200, None, body
        self.raw_headers = [
            (b"content-length", b"%d" % len(body)),
            (b"content-type", b"application/json"),
            *((name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()),
        ]


def dumps(content: Any) -> bytes:
    return orjson.dumps(content)


def with_b64(fields: Mapping[str, Any], b64: bytes) -> tuple[bytes, ...]:
    """``fields`` as JSON with ``b64_json`` added, in parts: megabytes of base64 are neither scanned
    again nor copied before they are joined."""
    return dumps(fields)[:-1], b',"b64_json":"', b64, b'"}'


def error_object(status: int, message: str, param: str | None, code: str) -> dict[str, Any]:
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    fields = {"message": message, "type": kind, "param": param, "code": code}
    # What is refused may be quoted, and may be what cannot be sent: half of a surrogate pair.
    return {"error": {name: text and _encodable(text) for name, text in fields.items()}}


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def describe(error: ZimageError) -> dict[str, Any]:
    """The envelope of ``error``."""
    described = error_object(status_of(error), error.message, error.param, error.code)
    if error.details:
        described["error"]["details"] = error.details
    return described


def of_error(error: ZimageError, *, again: str = "") -> Response:
    """The answer to a request that failed with ``error``. ``again``: the turn in which nginx would
    ask every worker once more, those that refused before this one did among them, or empty."""
    headers = {}
    if again and isinstance(error, HandedBack | NotReady | WorkerFailed):
        headers["X-Accel-Redirect"] = AGAIN + again  # read by nginx where no worker is left to ask
    if isinstance(error, OtherHost):
        headers[HAND_OVER] = error.pool
    elif isinstance(error, OtherModel):
        headers["X-Accel-Redirect"] = POOL + error.pool
    if isinstance(error, Unavailable):
        headers["Retry-After"] = str(retry_after_s(error.retry_after_s))
    elif isinstance(error, LimitReached):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
        # What OpenAI's clients obey before they look at Retry-After.
        headers["X-Should-Retry"] = "true" if error.retry else "false"
    elif isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    return Json(describe(error), status_of(error), headers)


def retry_after_s(wait_s: float) -> int:
    """In whole seconds. Whoever raised the error has spread it."""
    return max(1, min(MAX_RETRY_AFTER_S, math.ceil(wait_s)))


def bug() -> dict[str, Any]:
    """The envelope where the worker itself is at fault; the log has the rest."""
    message = "The worker failed on this request. Operators find the cause under its X-Request-ID."
    return error_object(500, message, None, ZimageError.code)


def of_bug() -> Response:
    """The answer where the worker itself is at fault."""
    return Json(bug(), 500)


async def on_zimage_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ZimageError)
    return of_error(error)


async def on_http_error(request: Request, error: Exception) -> Response:
    """Starlette's own errors, in our envelope and with a remedy."""
    assert isinstance(error, HTTPException)
    message = error.detail
    if error.status_code == 404:
        message = (
            f"There is no {request.url.path[:100]} here: see the API's documentation. "
            f"The base URL of clients is {origin_of(request)[:200]}/v1."
        )
    elif error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        message = f"{request.method[:20]} is not possible here: use {allowed}."
    code = _CODES.get(error.status_code, InvalidRequest.code)
    content = error_object(error.status_code, message, None, code)
    return Json(content, error.status_code, dict(error.headers or {}))
