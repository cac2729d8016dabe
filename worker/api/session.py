"""Signing in on the page: a key once, then a cookie that scripts cannot read."""

import time
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from worker import tokens
from worker.api.access import COOKIE, key_of, session_in, signed_in
from worker.api.answers import Json
from worker.api.client import read_json_body
from worker.api.exchange import exchange_of
from worker.api.fields import Fields, json_object, refuse_unknown
from worker.api.openapi import Part, operation
from worker.errors import InvalidRequest
from worker.service import Service
from worker.storage.keys import Key

_MAX_BODY_BYTES = 4096


async def session(request: Request) -> Response:
    """Sign in, look who is, sign out."""
    if request.method == "POST":
        return await _sign_in(request)
    return _sign_out() if request.method == "DELETE" else _get_session(request)


async def _sign_in(request: Request) -> Response:
    """``{"key": "…"}`` → 204 and the cookie."""
    service: Service = request.app.state.service
    if service.settings.auth != "keys":
        raise InvalidRequest("This cell has no keys: there is nothing to sign in to.", param="key")
    service.keys.require_current()
    body = Fields(json_object(await read_json_body(request, _MAX_BODY_BYTES)))
    refuse_unknown(body, ("key",))
    key = key_of(service, exchange_of(request), body.text("key", ""))
    exchange_of(request).notes["key"] = key.name
    return _with_cookie(Response(status_code=204), request, key)


def _get_session(request: Request) -> Response:
    """Who is signed in, and what the key may do. Renews a cookie that is past half its life."""
    service: Service = request.app.state.service
    headers = dict(request.scope["headers"])
    key = signed_in(service, headers) if service.settings.auth == "keys" else None
    content = {"auth": service.settings.auth, "signed_in": key is not None, "key": None}
    if key is None:
        return Json(content, headers={"Cache-Control": "no-store"})
    answer = Json(content | {"key": _described(key)}, headers={"Cache-Control": "no-store"})
    proof = session_in(service, headers)
    left_s = 0.0 if proof is None else proof.expires_at - time.time()
    renew = left_s < service.settings.session_ttl_s / 2
    return _with_cookie(answer, request, key) if renew else answer


def _sign_out() -> Response:
    answer = Response(status_code=204)
    answer.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
    return answer


def _with_cookie(answer: Response, request: Request, key: Key) -> Response:
    service: Service = request.app.state.service
    ttl_s = int(service.settings.session_ttl_s)
    proof = tokens.Session(key.id, key.version, int(time.time()) + ttl_s)
    answer.set_cookie(
        COOKIE,
        tokens.session_text(service.keys.secret, proof),
        max_age=ttl_s,
        path="/",
        httponly=True,
        samesite="strict",
        secure=request.headers.get("x-forwarded-proto") == "https",
    )
    return answer


def _described(key: Key) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "role": key.role,
        "priority": key.priority,
        "images_per_day": key.images_per_day,
        "images_today": 0,
        "concurrency": key.concurrency,
    }


def openapi(_: Service) -> Part:
    text, whole = {"type": "string"}, {"type": ["integer", "null"]}
    key = {
        "type": ["object", "null"],
        "properties": {
            **dict.fromkeys(("id", "name", "role", "priority"), text),
            **dict.fromkeys(("images_per_day", "images_today", "concurrency"), whole),
        },
    }
    shown = {
        "type": "object",
        "required": ["auth", "signed_in", "key"],
        "properties": {"auth": text, "signed_in": {"type": "boolean"}, "key": key},
    }
    asked = {
        "type": "object",
        "required": ["key"],
        "additionalProperties": False,
        "properties": {"key": text},
    }
    item = {
        "post": operation("Sign in: the answer sets a cookie.", {204: {}}, body=asked),
        "get": operation("Who is signed in.", {200: shown}),
        "delete": operation("Sign out.", {204: {}}),
    }
    return Part({"/v1/session": item})
