"""The one model of this worker under its names, as OpenAI lists models, with what a client may ask
of it."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from worker.api.answers import Json
from worker.api.schemas import wire
from worker.api.schemas.openapi import Part, operation, parameter
from worker.api.serving import lifecycle_of
from worker.errors import NotFound
from worker.lifecycle import Lifecycle


async def list_models(request: Request) -> Response:
    lifecycle = lifecycle_of(request)
    lifecycle.require_ready()
    ids = dict.fromkeys(wire.model_names(lifecycle.settings, lifecycle.model.info).values())
    return Json({"object": "list", "data": [_describe(lifecycle, each) for each in ids]})


async def get_model(request: Request) -> Response:
    lifecycle = lifecycle_of(request)
    lifecycle.require_ready()
    asked = request.path_params["id"]
    settings, info = lifecycle.settings, lifecycle.model.info
    shown = wire.model_names(settings, info).get(asked.lower())
    if shown is None:
        message = f"{asked[:100]!r} is not served here; {wire.model_id(settings, info)!r} is."
        raise NotFound(message, param="model", code="model_not_found")
    return Json(_describe(lifecycle, shown))


def _describe(lifecycle: Lifecycle, shown: str) -> dict[str, Any]:
    settings, info = lifecycle.settings, lifecycle.model.info
    id = wire.model_id(settings, info)
    width, height = info.default_size
    guidance = settings.guidance_scale
    return {
        "id": shown,
        "object": "model",
        "created": int(lifecycle.started_at),
        "owned_by": "zimage-cluster",
        "alias_of": None if shown == id else id,
        "default_size": f"{width}x{height}",
        "default_steps": settings.steps or info.default_steps,
        "default_guidance_scale": info.default_guidance_scale if guidance is None else guidance,
        "side_multiple": info.side_multiple,
        "min_side": info.min_side,
        "max_pixels": settings.max_pixels,
        "max_steps": settings.max_steps,
        "max_images": settings.max_images,
        "max_prompt_chars": settings.max_prompt_chars,
        "max_prompt_tokens": info.prompt_limit.max_tokens if info.prompt_limit else None,
        "output_formats": list(wire.FORMATS),
        "edits": info.edits,
        "masks": info.masks,
        "loras": info.loras is not None,
    }


def openapi(lifecycle: Lifecycle) -> Part:
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array"}
    shown = _describe(lifecycle, lifecycle.model.info.id)
    properties: dict[str, Any] = {
        key: {"type": kinds[type(value)]} for key, value in shown.items() if value is not None
    }
    properties["alias_of"] = {"type": ["string", "null"]}
    properties["max_prompt_tokens"] = {"type": ["integer", "null"]}
    model = {"type": "object", "required": list(shown), "properties": properties}
    models = {
        "type": "object",
        "required": ["object", "data"],
        "properties": {"object": {"const": "list"}, "data": {"type": "array", "items": model}},
    }
    name = parameter("path", "id", {"type": "string", "minLength": 1})
    one = operation(
        "The model, under any of its names.", {200: model}, errors=(404,), parameters=[name]
    )
    every = operation("The loaded model, and behind it its aliases.", {200: models})
    return Part({"/v1/models": {"get": every}, "/v1/models/{id}": {"get": one}})
