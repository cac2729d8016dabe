"""Addresses of the API, as clients make them of a base URL with a slash or a v1 too many."""

import re
from collections.abc import Awaitable

from starlette.types import ASGIApp, Receive, Scope, Send

_PREFIX = re.compile("^/+(?:v1/+)+")
_ODD = ("//", "/v1//", "/v1/v1/")


class OnePrefix:
    """``//v1/x``, ``/v1//x`` and ``/v1/v1/x`` are ``/v1/x``. Stands before whoever decides by a
    path, so that nobody is let in by another spelling; what is behind the prefix stays as it is."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] == "http" and scope["path"].startswith(_ODD):
            scope["path"] = _PREFIX.sub("/v1/", scope["path"])
        return self._app(scope, receive, send)
