"""The short way to the routes that are asked most."""

from collections.abc import Iterable

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from worker.api import answers
from worker.api.middleware.request_context import context_of
from worker.errors import ZimageError


class Direct:
    """Calls ``routes`` (of fixed paths) itself and leaves all others to ``app``.

    Starlette tries one pattern after the other and wraps an endpoint three times, which costs as
    much as reading, checking and admitting a drawing request.
    """

    def __init__(self, app: ASGIApp, routes: Iterable[Route]) -> None:
        self._app = app
        self._routes = {(method, r.path): r for r in routes for method in r.methods or ()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._routes.get((scope.get("method", ""), scope.get("path", "")))
        if route is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = route
        request = Request(scope, receive, send)
        response: Response
        try:
            response = await route.endpoint(request)
        except ZimageError as error:
            response = answers.of_error(error, again=context_of(request).again)
        except HTTPException as error:
            response = await answers.on_http_error(request, error)
        await response(scope, receive, send)
