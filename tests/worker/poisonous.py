"""``python -m tests.worker.poisonous``: a worker with a route, no drawing's, that can kill it."""

import json
import os

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from worker import app
from worker.__main__ import main

ROUTE = "/v1/poison"


async def poison(request: Request) -> Response:
    if json.loads(await request.body()) == "exit":
        os._exit(139)
    return PlainTextResponse("harmless")


if __name__ == "__main__":
    app.ROUTES.append(Route(ROUTE, poison, methods=["POST"]))
    main()
