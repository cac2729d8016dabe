"""The application: routes, error envelope, and a lifespan that loads the model behind them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.routing import Route
from starlette.types import ASGIApp

from worker.api import answers
from worker.api.middleware.access import Access
from worker.api.middleware.direct import Direct
from worker.api.middleware.poison import PoisonGuard
from worker.api.middleware.prefix import OnePrefix
from worker.api.middleware.request_context import RequestContexts
from worker.api.routes import (
    admin,
    edits,
    files,
    gallery,
    health,
    images,
    jobs,
    loras,
    models,
    session,
    uploads,
    usage,
)
from worker.api.schemas import openapi
from worker.coordination.host_clocks import HostClocks, host_list
from worker.errors import ZimageError
from worker.lifecycle import Lifecycle, Load
from worker.settings import Settings

_DRAW = Route("/v1/images/generations", images.generate, methods=["POST"])
_EDITS = [Route(path, answer, methods=["POST"]) for path, answer in edits.ANSWERS.items()]
_READY = Route("/readyz", health.readyz)
ROUTES = [
    _DRAW,
    *_EDITS,
    Route(files.ROUTE + "/{name:path}", files.get_file),
    *gallery.ROUTES,
    *uploads.ROUTES,
    Route("/v1/session", session.session, methods=["GET", "POST", "DELETE"]),
    Route("/v1/usage", usage.get_usage),
    Route("/v1/loras", loras.list_loras),
    Route("/v1/models", models.list_models),
    Route("/v1/models/{id:path}", models.get_model),
    *jobs.ROUTES,
    openapi.route(
        (images, edits, uploads, files, gallery, jobs, session, usage, models, loras, health)
    ),
    _READY,
    Route("/livez", health.livez),
    Route("/metrics", health.metrics),
    Route("/admin/ops", admin.ops),
    Route("/admin/key", admin.key),
    Route("/admin/drain", admin.drain, methods=["POST"]),
    Route("/admin/undrain", admin.undrain, methods=["POST"]),
]
_DRAWINGS = frozenset(route.path for route in (_DRAW, *_EDITS))
DIRECT = [_DRAW, _READY]
"""What must cost next to nothing: besides its drawing, or because the guard asks it five times a
second. Middleware sees it like all others."""


class Application(Starlette):
    """Starlette without its outermost middleware: ``RequestContexts`` does what it would do."""

    def build_middleware_stack(self) -> ASGIApp:
        app: ASGIApp = ExceptionMiddleware(self.router, handlers=self.exception_handlers)
        app = Direct(app, DIRECT)
        for middleware in reversed(self.user_middleware):
            app = middleware.cls(app, *middleware.args, **middleware.kwargs)
        return app


def _clocks(settings: Settings) -> HostClocks | None:
    in_cluster = bool(settings.host)
    return HostClocks(host_list(settings.var_dir), settings.host) if in_cluster else None


def create_app(settings: Settings, load: Load) -> Application:
    """One worker's application; ``app.state.lifecycle`` is its life.

    ``load`` runs in a thread once the lifespan has begun: until it is done and a warm-up picture
    was drawn, every traffic route answers 503. Create the application inside its event loop.
    """
    lifecycle = Lifecycle(settings, load)
    lifecycle.when_loaded.append(partial(models.publish_own, lifecycle))
    built = lifecycle.components

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await lifecycle.start()
        try:
            yield
        finally:
            await lifecycle.close()

    app = Application(
        routes=ROUTES,
        lifespan=lifespan,
        middleware=[
            Middleware(OnePrefix),
            Middleware(
                RequestContexts,
                worker=settings.name,
                metrics=built.metrics,
                traces=built.traces,
                clocks=_clocks(settings),
            ),
            Middleware(Access, components=built),
            Middleware(PoisonGuard, components=built, drawings=_DRAWINGS),
        ],
        exception_handlers={
            ZimageError: answers.on_zimage_error,
            HTTPException: answers.on_http_error,
        },
    )
    app.router.redirect_slashes = False
    app.state.lifecycle = lifecycle
    return app
