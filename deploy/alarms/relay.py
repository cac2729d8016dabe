"""Takes what Alertmanager sends and tells every destination, each with a deadline.

Alertmanager asks again where the answer is no 2xx. It is 200 as soon as somebody was told: asked
again, those would be told twice. Who was not stands in ``alarms.json``, with when.
"""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import apprise
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from deploy.alarms.destinations import Destination, DestinationsError
from deploy.alarms.message import TEST, Group
from deploy.host import whole_file

DEADLINE_S = 20.0
ATTEMPTS = 2
_PAUSE_S = 1.0
_MAX_BYTES = 1 << 20
_KINDS = {
    "critical": apprise.NotifyType.FAILURE,
    "warning": apprise.NotifyType.WARNING,
    "info": apprise.NotifyType.INFO,
}
_log = logging.getLogger("alarms")


class Relay:
    """``read`` gives the destinations, again for each message: the file may change meanwhile."""

    def __init__(self, read: Callable[[], Sequence[Destination]], outcomes: Path) -> None:
        self._read = read
        self._outcomes = outcomes
        self._seen: dict[str, dict[str, Any]] = {}

    def app(self) -> Starlette:
        return Starlette(routes=[Route("/alarms", self._take, methods=["POST"])])

    async def _take(self, request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0] != "application/json":
            return _problem(415, "content type: must be application/json")
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > _MAX_BYTES:
                return _problem(413, f"body: over {_MAX_BYTES} bytes")
        try:
            group = Group.model_validate_json(body)
        except ValidationError as error:
            return _problem(400, f"not what Alertmanager sends: {error.errors()[0]['loc']}")
        try:
            told = await self.tell(group)
        except DestinationsError as error:
            _log.error("%s", error)
            return _problem(500, str(error))
        return JSONResponse({"told": told}, 200 if any(told.values()) else 502)

    async def tell(self, group: Group) -> dict[str, bool]:
        """Whom it reached. ``DestinationsError``: there is nobody to tell."""
        destinations = self._read()
        reached = await asyncio.gather(*(_told(destination, group) for destination in destinations))
        told = dict(zip((d.shown for d in destinations), reached, strict=True))
        self._note(group, told)
        return told

    def _note(self, group: Group, told: dict[str, bool]) -> None:
        now = round(time.time(), 3)
        test = group.alerts[0].labels.get(TEST, "")
        for shown, reached in told.items():
            entry = self._seen.setdefault(shown, {"told_at": None, "failed_at": None, "test": ""})
            entry["told_at" if reached else "failed_at"] = now
            if reached and test:
                entry["test"] = test
            if not reached:
                _log.error("%s was not told: %s", shown, group.title)
        known = {shown: self._seen[shown] for shown in told}
        whole_file.write(self._outcomes, json.dumps(known, indent=2).encode(), 0o600)


async def _told(destination: Destination, group: Group) -> bool:
    kind = apprise.NotifyType.SUCCESS if group.status == "resolved" else _KINDS.get(group.severity)
    for attempt in range(ATTEMPTS):
        try:
            async with asyncio.timeout(DEADLINE_S):
                if await destination.tell(
                    group.title, group.text, kind or apprise.NotifyType.WARNING
                ):
                    return True
        except (TimeoutError, OSError) as error:
            _log.warning("%s: %r", destination.shown, error)
        if attempt + 1 < ATTEMPTS:
            await asyncio.sleep(_PAUSE_S)
    return False


def _problem(status: int, message: str) -> Response:
    return JSONResponse({"error": {"message": message}}, status)
