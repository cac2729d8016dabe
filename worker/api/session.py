"""Signing in on the page: a key once, then a cookie that scripts cannot read."""

import asyncio
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
from worker.errors import InvalidRequest, StoreAway, Unauthenticated
from worker.service import Service
from worker.storage import usage
from worker.storage.keys import EVERYONE, Key

_MAX_BODY_BYTES = 4096


async def session(request: Request) -> Response:
    """Sign in, look who is, sign out."""
    if request.method == "POST":
        return await _sign_in(request)
    return _sign_out() if request.method == "DELETE" else await _get_session(request)


async def _sign_in(request: Request) -> Response:
    """``{"key": "…"}`` → 204 and the cookie."""
    service: Service = request.app.state.service
    if service.settings.auth != "keys":
        raise InvalidRequest("This cell has no keys: there is nothing to sign in to.", param="key")
    service.keys.require_current()
    body = Fields(json_object(await read_json_body(request, _MAX_BODY_BYTES)))
    refuse_unknown(body, ("key",))
    exchange = exchange_of(request)
    try:
        key = key_of(service, exchange, body.text("key", ""))
    except Unauthenticated:
        why = exchange.notes["denied"]
        service.audit.note("sign_in_refused", EVERYONE, "", exchange.key, why=why)
        raise
    exchange.notes["key"] = key.name
    service.audit.note("signed_in", key.id, key.name, exchange.key)
    return _with_cookie(Response(status_code=204), request, key)


async def _get_session(request: Request) -> Response:
    """Who is signed in, and what the key may do. Renews a cookie that is past half its life."""
    service: Service = request.app.state.service
    headers = dict(request.scope["headers"])
    key = signed_in(service, headers) if service.settings.auth == "keys" else None
    content: dict[str, Any] = {
        "auth": service.settings.auth,
        "signed_in": key is not None,
        "key": None,
    }
    if key is None:
        return Json(content, headers={"Cache-Control": "no-store"})
    content["key"] = await _described(service, key)
    answer = Json(content, headers={"Cache-Control": "no-store"})
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


async def _described(service: Service, key: Key) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "role": key.role,
        "priority": key.priority,
        "images_per_day": key.images_per_day,
        "images_today": await _images_today(service, key),
        "concurrency": key.concurrency,
    }


async def _images_today(service: Service, key: Key) -> int | None:
    """What counts against the limit, or else stands in the ledger; None: nobody knows now."""
    if key.images_per_day is not None:
        counted = await asyncio.to_thread(service.quotas.today, key)
        if counted is not None:
            return counted
    today = usage.day_of(time.time())
    try:
        return await service.database.read(lambda c: usage.images_on(c, key.id, today))
    except StoreAway:
        return None


def openapi(_: Service) -> Part:
    optional = {"type": ["integer", "null"]}
    key = {
        "type": ["object", "null"],
        "properties": {
            "id": {"type": "string"},
            "name": {"type": "string"},
            "role": {"enum": ["user", "ops"]},
            "priority": {"enum": ["interactive", "batch"]},
            "images_per_day": optional,
            "images_today": optional,
            "concurrency": optional,
        },
    }
    who = {
        "type": "object",
        "required": ["auth", "signed_in", "key"],
        "properties": {
            "auth": {"enum": ["none", "loopback", "keys"]},
            "signed_in": {"type": "boolean"},
            "key": key,
        },
    }
    body = {
        "type": "object",
        "required": ["key"],
        "properties": {"key": {"type": "string"}},
        "additionalProperties": False,
    }
    sign_in = operation("Sign in: sets a cookie.", {204: {}}, body=body)
    look = operation("Who is signed in, and what the key may do.", {200: who})
    sign_out = operation("Sign out: takes the cookie.", {204: {}})
    return Part({"/v1/session": {"post": sign_in, "get": look, "delete": sign_out}})
