"""Verbs for guard and command line. nginx never routes here: the socket is the permission."""

from starlette.requests import Request
from starlette.responses import Response

from worker import log
from worker.api.answers import Json
from worker.api.health import readiness
from worker.service import Service


async def drain(request: Request) -> Response:
    """Hand back what waits and take no more; what runs is finished."""
    service: Service = request.app.state.service
    service.drain()
    log.event("drained by request")
    return Json(readiness(service))


async def undrain(request: Request) -> Response:
    """Take work again."""
    service: Service = request.app.state.service
    service.undrain()
    log.event("undrained by request")
    return Json(readiness(service))
