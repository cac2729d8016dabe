"""For guard, command line and nginx itself: nobody outside is routed here."""

from starlette.requests import Request
from starlette.responses import Response

from worker import log
from worker.api.answers import Json
from worker.api.caller import caller_of
from worker.api.routes.health import readiness
from worker.api.serving import lifecycle_of
from worker.errors import Forbidden


async def drain(request: Request) -> Response:
    """Hand back what waits, or draw it too (``finish=1``), and take no more."""
    lifecycle = lifecycle_of(request)
    lifecycle.drain(finish=request.query_params.get("finish") == "1")
    log.event("drained by request")
    return Json(readiness(lifecycle))


async def ops(request: Request) -> Response:
    """204 for a key of the role ops: nginx asks before it shows the page of operators."""
    if caller_of(request).role != "ops":
        raise Forbidden("The page of operators needs a key of the role ops.")
    return Response(status_code=204)


async def key(_: Request) -> Response:
    """204 for a good key: nginx asks before it takes a large body."""
    return Response(status_code=204)


async def undrain(request: Request) -> Response:
    """Take work again."""
    lifecycle = lifecycle_of(request)
    lifecycle.undrain()
    log.event("undrained by request")
    return Json(readiness(lifecycle))
