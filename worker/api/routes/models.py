"""The models under their names, as OpenAI lists models, with what a client may ask of each.

Of several in one cell, each worker has left what it knows of its own (``publish``): so any of them
tells of all.
"""

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from worker import log
from worker.api import model_routing
from worker.api.answers import Json
from worker.api.middleware.request_context import context_of
from worker.api.schemas import wire
from worker.api.schemas.openapi import Part, operation, parameter
from worker.api.serving import lifecycle_of
from worker.coordination.live_workers import DIGEST, publish, published
from worker.coordination.served_models import ServedModel, ServedModels, pool_of
from worker.errors import NotFound, NotReady
from worker.lifecycle import Lifecycle
from worker.models.loading.sources import ModelLoadError, digest_of
from worker.settings import Settings

_RETRY_AFTER_S = 10.0


async def list_models(request: Request) -> Response:
    lifecycle = lifecycle_of(request)
    lifecycle.require_ready()
    served = model_routing.served_to(context_of(request), lifecycle.components.models)
    return Json({"object": "list", "data": await _all(lifecycle, served)})


async def get_model(request: Request) -> Response:
    lifecycle = lifecycle_of(request)
    lifecycle.require_ready()
    asked = request.path_params["id"]
    served = model_routing.served_to(context_of(request), lifecycle.components.models)
    if served is not None:
        return Json(await _one_of(lifecycle, served, asked))
    settings, info = lifecycle.settings, lifecycle.model.info
    shown = wire.model_names(settings, info).get(asked.lower())
    if shown is None:
        message = f"{asked[:100]!r} is not served here; {wire.model_id(settings, info)!r} is."
        raise NotFound(message, param="model", code="model_not_found")
    return Json(_describe(lifecycle, shown))


async def _all(lifecycle: Lifecycle, served: ServedModels | None) -> list[dict[str, Any]]:
    """All models, and behind them their aliases."""
    if served is None:
        ids = dict.fromkeys(wire.model_names(lifecycle.settings, lifecycle.model.info).values())
        return [_describe(lifecycle, each) for each in ids]
    told = await _told(lifecycle, served)
    known = [model for model in served.all if model.pool in told]
    return [
        *(_under(told[model.pool], model, model.name) for model in known),
        *(
            _under(told[model.pool], model, alias)
            for model in known
            for alias in model.aliases
            if served.asked(alias) is model  # of two hosts' models with one alias, the first
        ),
    ]


async def _one_of(lifecycle: Lifecycle, served: ServedModels, asked: str) -> dict[str, Any]:
    model = served.asked(asked)
    if model is None:
        raise model_routing.unknown(asked, served, lifecycle.components.models)
    about = (await _told(lifecycle, served)).get(model.pool)
    if about is None:
        message = f"{model.name!r} is loaded for the first time: try again."
        raise NotReady(message, retry_after_s=_RETRY_AFTER_S)
    alias = next((each for each in model.aliases if each.lower() == asked.lower()), model.name)
    return _under(about, model, alias)


def _under(about: dict[str, Any], model: ServedModel, shown: str) -> dict[str, Any]:
    return about | {"id": shown, "alias_of": None if shown == model.name else model.name}


async def _told(lifecycle: Lifecycle, served: ServedModels) -> dict[str, dict[str, Any]]:
    """What is known of each model, by its pool; of this host's, what its workers have said, and of
    this worker's own, what it knows itself."""
    others = {model.pool: dict(model.about) for model in served.all if model.about}
    found = await asyncio.to_thread(published, lifecycle.settings.run_dir)
    own = _own(lifecycle)
    for about in found.values():
        about.pop(DIGEST, None)
    return others | {pool_of(str(about.get("id"))): about for about in (*found.values(), own)}


def _own(lifecycle: Lifecycle) -> dict[str, Any]:
    return _describe(lifecycle, wire.model_id(lifecycle.settings, lifecycle.model.info))


def publish_own(lifecycle: Lifecycle) -> None:
    """Leave for the other workers what this one's model is like, where the cell has several; and
    for other hosts, with what tells whether they have the same."""
    settings = lifecycle.settings
    if settings.host:
        own = _own(lifecycle) | {DIGEST: _digest(settings)}
        publish(settings.run_dir, settings.name, own)
    elif lifecycle.components.models.several:
        publish(settings.run_dir, settings.name, _own(lifecycle))


def _digest(settings: Settings) -> str:
    try:
        return digest_of(settings)
    except (OSError, ModelLoadError) as error:
        log.failure("the model's files cannot be compared with other hosts'", error)
        return ""


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
