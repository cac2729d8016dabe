"""The adapters that whoever asks may name in ``lora``."""

from starlette.requests import Request
from starlette.responses import Response

from worker.api import model_routing
from worker.api.answers import Json
from worker.api.caller import caller_of
from worker.api.schemas.openapi import Part, operation, parameter
from worker.api.serving import lifecycle_of
from worker.coordination.quota import allows
from worker.lifecycle import Lifecycle
from worker.models.loras.shelf import MAX_LORAS, MAX_SCALE


async def list_loras(request: Request) -> Response:
    lifecycle = lifecycle_of(request)
    lifecycle.require_ready()
    model_routing.require_own(request, lifecycle.components, request.query_params)
    shelf, key = lifecycle.model.info.loras, caller_of(request).key
    found = [] if shelf is None else list(shelf.all().values())
    data = [
        {"name": lora.name, "object": "lora", "sha256": lora.sha256, "rank": lora.rank}
        for lora in found
        if allows(key, lora.name)
    ]
    bounds = {"max_loras": 0 if shelf is None else MAX_LORAS, "max_scale": MAX_SCALE}
    return Json({"object": "list", **bounds, "data": data})


def openapi(lifecycle: Lifecycle) -> Part:
    lora = {
        "type": "object",
        "required": ["name", "object", "sha256", "rank"],
        "properties": {
            "name": {"type": "string"},
            "object": {"const": "lora"},
            "sha256": {"type": "string", "description": "Of the file that was added."},
            "rank": {"type": "integer"},
        },
    }
    loras = {
        "type": "object",
        "required": ["object", "max_loras", "max_scale", "data"],
        "properties": {
            "object": {"const": "list"},
            "max_loras": {"type": "integer", "description": "Of one drawing; 0: none."},
            "max_scale": {"type": "number", "description": "Either way."},
            "data": {"type": "array", "items": lora},
        },
    }
    text = "Adapters that the key may name in `lora`, with one of several models."
    asked = [parameter("query", "model", {"type": "string"})]
    get = operation(text, {200: loras}, parameters=asked, errors=(404,))
    return Part({"/v1/loras": {"get": get}})
