"""Readiness for the guard and nginx, liveness and metrics for people and Prometheus."""

import os
import time
from dataclasses import asdict
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from worker import code_digest
from worker.api.answers import Json
from worker.api.schemas.openapi import Part, operation
from worker.api.serving import lifecycle_of
from worker.lifecycle import Lifecycle


async def readyz(request: Request) -> Response:
    """200 where this worker would take work now, else 503 and the reason."""
    content = readiness(lifecycle_of(request))
    return Json(content, 200 if content["ready"] else 503)


async def livez(request: Request) -> Response:
    """All that is known of this worker. 200 whenever the event loop runs."""
    lifecycle = lifecycle_of(request)
    heartbeat, state = lifecycle.heartbeat(), lifecycle.engine_state()
    return Json(
        {
            **readiness(lifecycle),
            "name": lifecycle.settings.name,
            "pid": os.getpid(),
            "model": lifecycle.settings.model,
            "device": lifecycle.settings.device,
            "levers": lifecycle.optimisations(),
            "uptime_s": round(time.time() - lifecycle.started_at, 1),
            "phase_age_s": None if heartbeat is None else round(heartbeat.age_s(), 3),
            "phase_allowance_s": None if heartbeat is None else heartbeat.allowance_s,
            "steps": None if heartbeat is None else heartbeat.steps,
            "encoding": lifecycle.components.encoders.waiting,
            "engine": None if state is None else asdict(state),
        }
    )


async def metrics(request: Request) -> Response:
    """Prometheus' text format."""
    lifecycle = lifecycle_of(request)
    return Response(lifecycle.components.metrics.render(), media_type=CONTENT_TYPE_LATEST)


def readiness(lifecycle: Lifecycle) -> dict[str, Any]:
    reason = lifecycle.not_ready()
    backlog, components = lifecycle.backlog(), lifecycle.components
    content: dict[str, Any] = {
        "ready": reason is None,
        "code": code_digest.own(),
        "phase": components.heartbeat.phase.name.lower(),
        "queued": backlog.queued,
        "running": backlog.running,
        "drawn": components.metrics.drawn,
        "predicted_wait_s": round(backlog.predicted_wait_s, 3),
        "full": lifecycle.full(backlog),
    }
    return content if reason is None else {**content, "reason": reason}


def openapi(_: Lifecycle) -> Part:
    state = {
        "type": "object",
        "required": [
            *("ready", "code", "phase", "queued", "running", "drawn", "predicted_wait_s", "full")
        ],
        "properties": {
            "ready": {"type": "boolean"},
            "code": {"type": "string", "description": "Digest of the sources that it runs."},
            "phase": {"type": "string"},
            "queued": {"type": "integer"},
            "running": {"type": "integer"},
            "drawn": {"type": "integer", "description": "Pictures since its start."},
            "predicted_wait_s": {"type": "number"},
            "full": {"type": "boolean", "description": "It would refuse a request that came now."},
        },
    }
    return Part({"/readyz": {"get": operation("Whether the cell would take work.", {200: state})}})
