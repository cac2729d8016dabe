"""Signing in on the page: a key once, then a cookie that scripts cannot read."""

import time
from dataclasses import replace
from typing import Any

import sqlalchemy as sa
from starlette.requests import Request
from starlette.responses import Response

from worker.accounts import tokens
from worker.api import answers, cookies
from worker.api.address import is_https
from worker.api.answers import Json
from worker.api.client import read_json_body
from worker.api.middleware.access import (
    key_behind,
    key_of,
    refuse_other_pages,
    require_own_page,
    session_in,
    sessions_in,
    signed_in,
)
from worker.api.middleware.request_context import context_of
from worker.api.schemas.fields import Fields, bad, json_object, refuse_unknown
from worker.api.schemas.openapi import Part, operation, parameter
from worker.api.serving import lifecycle_of
from worker.components import Components
from worker.errors import InvalidRequest, StoreAway, Unauthenticated
from worker.lifecycle import Lifecycle
from worker.storage import keys, usage
from worker.storage.keys import EVERYONE, Key

_MAX_BODY_BYTES = 4096


async def session(request: Request) -> Response:
    """Sign in, look who is, sign out."""
    # It asks for no key, so nginx lets by whoever shows anything in a header.
    refuse_other_pages(request.method, dict(request.scope["headers"]))
    if request.method == "POST":
        return await _sign_in(request)
    return await (_sign_out if request.method == "DELETE" else _get_session)(request)


async def _sign_in(request: Request) -> Response:
    """``{"key": "…"}`` → 204 and the cookie."""
    components = lifecycle_of(request).components
    if components.settings.auth != "keys":
        raise InvalidRequest("This cell has no keys: there is nothing to sign in to.", param="key")
    components.keys.require_current()
    body = Fields(json_object(await read_json_body(request, _MAX_BODY_BYTES)))
    refuse_unknown(body.values, ("key",))
    context = context_of(request)
    try:
        key = key_of(components, context, body.text("key", ""))
    except Unauthenticated:
        why = context.notes["denied"]
        components.audit.note("sign_in_refused", EVERYONE, "", context.key, why=why)
        raise
    context.notes["key"] = key.name
    components.audit.note("signed_in", key.id, key.name, context.key)
    now = int(time.time())
    proof = tokens.Session(key.id, key.version, now, tokens.new_session_id(), started_at=now)
    return _with_cookie(Response(status_code=204), request, proof)


async def _get_session(request: Request) -> Response:
    """Who is signed in, and what the key may do. Renews a cookie that is past half its life."""
    components = lifecycle_of(request).components
    headers = dict(request.scope["headers"])
    key = signed_in(components, headers) if components.settings.auth == "keys" else None
    content: dict[str, Any] = {
        "auth": components.settings.auth,
        "signed_in": key is not None,
        "key": None,
    }
    if key is None:
        return Json(content, headers={"Cache-Control": "no-store"})
    content["key"] = await _described(components, key)
    answer = Json(content, headers={"Cache-Control": "no-store"})
    proof = session_in(components, headers)
    if proof is None or _lasts_until(components, proof) <= proof.expires_at:
        return answer
    renew = proof.expires_at - time.time() < components.settings.session_ttl_s / 2
    return _with_cookie(answer, request, proof) if renew else answer


def _lasts_until(components: Components, session: tokens.Session) -> int:
    """The end of ``session`` if it is renewed now."""
    settings = components.settings
    ends_at = min(time.time() + settings.session_ttl_s, session.started_at + settings.session_max_s)
    return int(ends_at)


async def _sign_out(request: Request) -> Response:
    """204, and the cookie is good for nothing any more, wherever it is.
    ``?everywhere=true``: nor is any other that was got with the same key until now."""
    given = dict(request.query_params)
    everywhere = given.pop("everywhere", "false")
    if given or everywhere not in ("true", "false"):
        bad("everywhere", "the only parameter, must be true or false")
    answer = Response(status_code=204)
    try:
        await _end_sessions(request, everywhere=everywhere == "true")
    except StoreAway as error:
        answer = answers.of_error(error)
    headers, cell = dict(request.scope["headers"]), lifecycle_of(request).components.settings.cell
    plain, secure = cookies.plain_name(headers, cell), cookies.secure_name(headers, cell)
    for name in (plain, secure):
        answer.delete_cookie(
            name,
            path=cookies.path_for(headers),
            httponly=True,
            samesite="strict",
            secure=name == secure,
        )
    return answer


async def _end_sessions(request: Request, *, everywhere: bool) -> None:
    components = lifecycle_of(request).components
    headers = dict(request.scope["headers"])
    sessions = sessions_in(components, headers) if components.settings.auth == "keys" else []
    found = [(key, each) for each in sessions if (key := key_behind(components, each))]
    if not found:
        return
    require_own_page(request.method, headers)
    now, max_s = time.time(), components.settings.session_max_s

    def work(connection: sa.Connection) -> None:
        if everywhere:
            keys.end_sessions(connection, found[0][0].id)
        for key, session in found[everywhere:]:
            ends_at = session.started_at + max_s
            keys.end_session(connection, session.id, key.id, ends_at, now)

    await components.database.run(work)
    await components.keys.refresh()
    client = context_of(request).key
    key, _ = found[0]
    components.audit.note("signed_out", key.id, key.name, client, everywhere=everywhere)


def _with_cookie(answer: Response, request: Request, session: tokens.Session) -> Response:
    """``answer`` with a cookie for ``session``, for as long as it may last from now on."""
    components = lifecycle_of(request).components
    until = _lasts_until(components, session)
    headers = dict(request.scope["headers"])
    answer.set_cookie(
        cookies.name_of(headers, components.settings.cell),
        tokens.session_text(components.keys.secrets[0], replace(session, expires_at=until)),
        max_age=max(0, until - int(time.time())),
        path=cookies.path_for(headers),
        httponly=True,
        samesite="strict",
        secure=is_https(headers),
    )
    return answer


async def _described(components: Components, key: Key) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "role": key.role,
        "priority": key.priority,
        "images_per_day": key.images_per_day,
        "images_today": await _images_today(components, key),
        "concurrency": key.concurrency,
    }


async def _images_today(components: Components, key: Key) -> int | None:
    """What counts against the limit, or else stands in the ledger; None: nobody knows now."""
    if key.images_per_day is not None:
        counted = await components.quotas.today(key)
        if counted is not None:
            return counted
    today = usage.day_of(time.time())
    try:
        return await components.database.read(lambda c: usage.images_on(c, key.id, today))
    except StoreAway:
        return None


def openapi(_: Lifecycle) -> Part:
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
    sign_out = operation(
        "Sign out: ends the session, or all of its key.",
        {204: {}},
        parameters=[parameter("query", "everywhere", {"type": "boolean"})],
    )
    return Part({"/v1/session": {"post": sign_in, "get": look, "delete": sign_out}})
