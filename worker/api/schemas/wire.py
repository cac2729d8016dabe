"""What the images API accepts: a request's JSON, checked field by field.

Each problem is an ``InvalidRequest`` that names the field, what is wrong and the remedy.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, cast

import orjson

from worker.api.schemas import synonyms
from worker.api.schemas.fields import (
    Fields,
    bad,
    bounded,
    json_object,
    passed_over,
    refuse_unknown,
    text_of,
)
from worker.engine.request import Priority
from worker.errors import NotFound
from worker.models.base import ModelInfo
from worker.settings import Settings
from worker.types import DrawSpec, Parameters

MAX_SEED = 2**32 - 1
MAX_PARTIAL_IMAGES = 3
MAX_GUIDANCE_SCALE = 30.0
MAX_TIMEOUT_S = 86_400.0
PRIORITIES = {"interactive": Priority.INTERACTIVE, "batch": Priority.BATCH}

ImageFormat = Literal["png", "jpeg", "webp"]
FORMATS = ("png", "jpeg", "webp")
ANSWERS = ("b64_json", "url")

_ANSWERED_WITH_LINKS = frozenset({"dall-e-2", "dall-e-3"})
"""Models whose default ``response_format`` is ``url`` in OpenAI's API."""

IGNORED = (
    "background",
    "complexity",
    "moderation",
    "quality",
    "safety_identifier",
    "style",
    "user",
)
"""Fields of OpenAI's API without a meaning here: they must be strings and change nothing."""

KNOWN = (
    "guidance_scale",
    "model",
    "n",
    "negative_prompt",
    "output_compression",
    "output_format",
    "partial_images",
    "priority",
    "prompt",
    "reproducible",
    "response_format",
    "resume",
    "seed",
    "size",
    "steps",
    "store",
    "stream",
    "timeout_s",
    *IGNORED,
)


@dataclass(frozen=True)
class Generation:
    """One checked request. ``seed`` None: the server chooses. ``quality`` is that of JPEG, WebP.
    ``timeout_s`` counts from the request's arrival; None: no limit of its own. ``store``: the
    pictures go into the gallery. ``resume``: the place of a stream that was cut, or empty.
    ``ignored``: fields that nobody knows here."""

    prompts: tuple[str, ...]
    n: int
    parameters: Parameters
    seed: int | None
    response_format: Literal["b64_json", "url"]
    output_format: ImageFormat
    quality: int | None
    stream: bool
    partial_images: int
    priority: Priority
    timeout_s: float | None
    store: bool = True
    resume: str = ""
    ignored: tuple[str, ...] = ()

    def specs(self, default_seed: int) -> tuple[DrawSpec, ...]:
        """The pictures in order: all n of the first prompt, then the next; seed + k, wrapping."""
        first = default_seed if self.seed is None else self.seed
        prompts = [prompt for prompt in self.prompts for _ in range(self.n)]
        return tuple(
            DrawSpec(prompt, (first + k) % (MAX_SEED + 1), self.parameters)
            for k, prompt in enumerate(prompts)
        )

    def normalised(self) -> bytes:
        """What decides the drawing, in bytes: equal for a request and its resubmission."""
        parts = (self.prompts, self.n, self.seed, self.parameters.normalised())
        return orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)


def parse(body: bytes, settings: Settings, info: ModelInfo) -> Generation:
    """Check ``body`` against this worker's limits and its model's abilities."""
    said = synonyms.translated(json_object(body), KNOWN)
    ignored = passed_over(said.values, KNOWN) if settings.unknown_fields == "ignore" else ()
    with said.named():
        return _read(Fields(said.values), settings, info, ignored)


def _read(
    fields: Fields, settings: Settings, info: ModelInfo, ignored: tuple[str, ...]
) -> Generation:
    refuse_unknown(fields, KNOWN)
    check_model(fields, settings, info)
    for name in IGNORED:
        if name in fields.values:
            fields.text(name, "")
    prompts = _prompts(fields, settings, info)
    n = fields.whole("n", 1, 1, settings.max_images)
    if n * len(prompts) > settings.max_images:
        bad(
            "n",
            f"{len(prompts)} prompts × n = {n} are {n * len(prompts)} pictures; one request may "
            f"ask for {settings.max_images}: send several requests",
        )
    size = size_of(fields, settings, info)
    stream = fields.flag("stream")
    response_format = fields.choice("response_format", _usual_answer(fields, stream), ANSWERS)
    output_format = fields.choice("output_format", "png", FORMATS)
    partial_images = fields.whole("partial_images", 0, 0, MAX_PARTIAL_IMAGES)
    _check_combinations(stream, response_format, output_format, partial_images, fields)
    return Generation(
        prompts=prompts,
        n=n,
        parameters=Parameters(
            *size,
            steps=steps_of(fields, settings, info),
            guidance_scale=guidance_of(fields, settings, info),
            negative_prompt=negative_of(fields, settings, info),
            reproducible=fields.flag("reproducible"),
        ),
        seed=fields.optional_whole("seed", 0, MAX_SEED),
        response_format=cast(Literal["b64_json", "url"], response_format),
        output_format=cast(ImageFormat, output_format),
        quality=fields.optional_whole("output_compression", 0, 100),
        stream=stream,
        partial_images=partial_images,
        priority=PRIORITIES[fields.choice("priority", "interactive", tuple(PRIORITIES))],
        timeout_s=fields.optional_number("timeout_s", 0.1, MAX_TIMEOUT_S),
        store=fields.flag("store", default=True),
        resume=fields.text("resume", ""),
        ignored=ignored,
    )


def model_names(settings: Settings, info: ModelInfo) -> Mapping[str, str]:
    """Ids under which ``/v1/models`` shows the loaded model, by each name for it in lower case.
    The first is its own, the others are aliases."""
    return _names(info.id, settings.model, settings.names.name, tuple(settings.names.aliases))


@lru_cache
def _names(own: str, source: str, name: str, aliases: tuple[str, ...]) -> Mapping[str, str]:
    shown = name or own
    others = (own, source, source.rstrip("/").rsplit("/", 1)[-1])
    names = {each.lower(): shown for each in (shown, *others)}
    return names | {each.lower(): each for each in aliases if each.lower() not in names}


def model_id(settings: Settings, info: ModelInfo) -> str:
    """The id of the loaded model in the API."""
    return settings.names.name or info.id


def check_model(fields: Fields, settings: Settings, info: ModelInfo) -> None:
    """Raise ``NotFound`` where field ``model`` names another one."""
    asked = fields.text("model", "")
    if fields.values.get("model") is not None and asked.lower() not in model_names(settings, info):
        raise NotFound(
            f"model: {asked[:100]!r} is not served here; "
            f"use {model_id(settings, info)!r} or leave the field out.",
            param="model",
            code="model_not_found",
        )


def _usual_answer(fields: Fields, stream: bool) -> str:
    """The default of ``response_format``: OpenAI's for that model. A stream has no links."""
    linked = (fields.values.get("model") or "").lower() in _ANSWERED_WITH_LINKS
    return "url" if linked and not stream else "b64_json"


def _prompts(fields: Fields, settings: Settings, info: ModelInfo) -> tuple[str, ...]:
    value = fields.values.get("prompt")
    if value is None:
        bad("prompt", "missing: say what to draw", "missing_required_parameter")
    if isinstance(value, list):
        if not value:
            bad("prompt", "the list is empty: give at least one prompt")
        if len(value) > settings.max_images:
            bad(
                "prompt",
                f"{len(value)} prompts; one request may have {settings.max_images}: "
                "send several requests",
            )
        named = {f"prompt[{k}]": item for k, item in enumerate(value)}
        return tuple(_read_whole(k, one_prompt(k, v, settings), info) for k, v in named.items())
    return (_read_whole("prompt", one_prompt("prompt", value, settings), info),)


def _read_whole(param: str, text: str, info: ModelInfo) -> str:
    if info.prompt_limit is not None:
        info.prompt_limit.check(param, text)
    return text


def one_prompt(param: str, value: object, settings: Settings) -> str:
    """``value`` as a prompt; ``param`` names it in complaints."""
    text = text_of(param, value, "text or a list of texts" if param == "prompt" else "text")
    if not text.strip():
        bad(param, "empty: say what to draw")
    return bounded(param, text, settings.max_prompt_chars)


def negative_of(fields: Fields, settings: Settings, info: ModelInfo) -> str:
    """Field ``negative_prompt``."""
    text = fields.prompt("negative_prompt", "", settings.max_prompt_chars)
    return _read_whole("negative_prompt", text, info)


def steps_of(fields: Fields, settings: Settings, info: ModelInfo) -> int:
    """Field ``steps``, or the default."""
    return fields.whole("steps", settings.steps or info.default_steps, 1, settings.max_steps)


def guidance_of(fields: Fields, settings: Settings, info: ModelInfo) -> float:
    """Field ``guidance_scale``, or the default."""
    own = settings.guidance_scale
    default = info.default_guidance_scale if own is None else own
    return fields.number("guidance_scale", default, 0, MAX_GUIDANCE_SCALE)


def size_of(fields: Fields, settings: Settings, info: ModelInfo) -> tuple[int, int]:
    """Field ``size``: width and height."""
    text = fields.text("size", "auto")
    if text == "auto":
        return info.default_size
    match = re.fullmatch(r"([0-9]{1,6})x([0-9]{1,6})", text)
    if match is None:
        bad("size", f"{text[:40]!r} is not WIDTHxHEIGHT in pixels, such as 512x768, nor 'auto'")
    width, height = int(match[1]), int(match[2])
    for side in (width, height):
        if side % info.side_multiple:
            near = max(info.min_side, round(side / info.side_multiple) * info.side_multiple)
            bad(
                "size",
                f"{side} is not a multiple of {info.side_multiple}, as both sides must be; "
                f"the nearest is {near}",
            )
        if side < info.min_side:
            bad("size", f"{side} is too small: each side has at least {info.min_side} pixels")
    if width * height > settings.max_pixels:
        bad(
            "size",
            f"{text} is {width * height} pixels; this service draws at most "
            f"{settings.max_pixels}: make it smaller",
        )
    return width, height


def _check_combinations(
    stream: bool, response_format: str, output_format: str, partial_images: int, fields: Fields
) -> None:
    if stream and response_format == "url":
        bad(
            "response_format",
            "a stream carries its pictures itself: use b64_json, or url without stream",
        )
    if partial_images and not stream:
        bad("partial_images", "previews need stream: true")
    check_compression(fields, output_format)


def check_compression(fields: Fields, output_format: str) -> None:
    """Refuse ``output_compression`` where it has no meaning."""
    if output_format == "png" and fields.values.get("output_compression") not in (None, 100):
        bad("output_compression", "png is lossless: leave it out, or use jpeg or webp")


def prompt_schema(settings: Settings, info: ModelInfo) -> dict[str, Any]:
    """One prompt; tokens cannot be counted by a schema, so its description tells their limit."""
    known = {"type": "string", "maxLength": settings.max_prompt_chars, "pattern": r"\S"}
    if info.prompt_limit is None:
        return known
    return {
        **known,
        "description": f"At most {info.prompt_limit.max_tokens} of the model's tokens.",
    }


def schema(settings: Settings, info: ModelInfo) -> dict[str, Any]:
    """What ``parse`` takes, as JSON Schema; ``null`` counts as left out."""

    def whole(low: int, high: int) -> dict[str, Any]:
        return {"type": ["integer", "null"], "minimum": low, "maximum": high}

    def number(low: float, high: float) -> dict[str, Any]:
        return {"type": ["number", "null"], "minimum": low, "maximum": high}

    def choice(*words: str) -> dict[str, Any]:
        return {"enum": [*words, None]}

    text, flag = {"type": ["string", "null"]}, {"type": ["boolean", "null"]}
    prompt = prompt_schema(settings, info)
    prompts = {"type": "array", "items": prompt, "minItems": 1, "maxItems": settings.max_images}
    names = {model_id(settings, info), info.id, settings.model, *settings.names.aliases}
    own = {
        **dict.fromkeys(IGNORED, text),
        "prompt": {"anyOf": [prompt, prompts]},
        "model": choice(*sorted(names)),
        "n": whole(1, settings.max_images),
        "size": {"type": ["string", "null"], "pattern": "^([0-9]{2,6}x[0-9]{2,6}|auto)$"},
        "seed": whole(0, MAX_SEED),
        "steps": whole(1, settings.max_steps),
        "guidance_scale": number(0, MAX_GUIDANCE_SCALE),
        "negative_prompt": {**text, "maxLength": settings.max_prompt_chars},
        "reproducible": flag,
        "response_format": choice(*ANSWERS),
        "resume": text,
        "output_format": choice(*FORMATS),
        "output_compression": whole(0, 100),
        "stream": flag,
        "partial_images": whole(0, MAX_PARTIAL_IMAGES),
        "priority": choice(*PRIORITIES),
        "timeout_s": number(0.1, MAX_TIMEOUT_S),
        "store": flag,
    }
    return {
        "type": "object",
        "required": ["prompt"],
        "additionalProperties": settings.unknown_fields == "ignore",
        "properties": synonyms.schema(own),
    }
