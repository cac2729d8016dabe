"""What the images API accepts, checked field by field."""

import re
from collections.abc import Collection, Mapping
from functools import cached_property, partial
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

import orjson
from pydantic import AfterValidator, Field, PlainValidator, WithJsonSchema, create_model

from worker.api.schemas import lora_wire, synonyms
from worker.api.schemas.fields import bad, bounded, json_object, text_of
from worker.api.schemas.forms import Form, Once, Schema, names_of
from worker.engine.request import Priority
from worker.errors import NotFound, ZimageError
from worker.generation.tiling import Tiles
from worker.models.base import ModelInfo
from worker.settings import Settings
from worker.types import FIELDS, ChosenLoras, DrawSpec, Parameters, SourceImage

A = TypeVar("A", bound="Asked")
G = TypeVar("G", bound="Generation")

MAX_SEED = 2**32 - 1
MAX_PARTIAL_IMAGES = 3
MAX_TIMEOUT_S = 86_400.0
ImageFormat = Literal["png", "jpeg", "webp"]
FORMATS: tuple[str, ...] = get_args(ImageFormat)
PRIORITIES = {"interactive": Priority.INTERACTIVE, "batch": Priority.BATCH}

_ANSWERED_WITH_LINKS = frozenset({"dall-e-2", "dall-e-3"})
"""Models whose default ``response_format`` is ``url`` in OpenAI's API."""

_OPENAIS = (
    "background",
    "complexity",
    "moderation",
    "quality",
    "safety_identifier",
    "style",
    "user",
)
IGNORED = tuple(name for name in _OPENAIS if name not in FIELDS)
"""Fields of OpenAI's API without a meaning here: they must be strings and change nothing."""

_SIZE = re.compile(r"([0-9]{1,6})x([0-9]{1,6})")

SAID = tuple(n for n in FIELDS if n not in ("width", "height") and not FIELDS[n].about.edits)
"""Parameters that requests say by their names; the sides are ``size``."""


class Asked(Form):
    """What a request and a job have in common, beside ``Parameters`` and the limits of a cell,
    which ``form_of`` adds. ``seed`` None: the server chooses. ``compression`` is the quality of
    JPEG and WebP."""

    said: ClassVar[tuple[str, ...]]
    """The parameters that it may say by their names."""

    model: str = ""
    size: tuple[int, int]
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    output_format: ImageFormat = "png"
    compression: int | None = Field(None, ge=0, le=100, alias="output_compression")
    urgency: Literal["interactive", "batch"] = Field("interactive", alias="priority")

    @cached_property
    def parameters(self) -> Parameters:
        """How its pictures are drawn."""
        asked = vars(self)
        return Parameters(*self.size, **{name: asked[name] for name in self.said})

    @property
    def priority(self) -> Priority:
        """Who goes first."""
        return PRIORITIES[self.urgency]


class Generation(Asked):
    """One checked request. ``timeout_s`` counts from the request's arrival; None: no limit of its
    own. ``store``: the pictures go into the gallery. ``resume``: the place of a stream that was
    cut, or empty."""

    missing: ClassVar[Mapping[str, tuple[str, str]]] = {
        "prompt": ("missing: say what to draw", "missing_required_parameter")
    }
    said: ClassVar[tuple[str, ...]] = SAID
    events: ClassVar[str] = "image_generation"
    """What the names of its stream's events begin with."""

    prompts: tuple[str, ...] = Field(alias="prompt")
    n: int = 1
    response_format: Literal["b64_json", "url"] = "b64_json"
    stream: bool = False
    partial_images: int = Field(0, ge=0, le=MAX_PARTIAL_IMAGES)
    timeout_s: float | None = Field(None, ge=0.1, le=MAX_TIMEOUT_S)
    store: bool = True
    resume: str = ""

    @property
    def ignored(self) -> tuple[str, ...]:
        """Fields that nobody knows here."""
        return tuple(self.model_extra or ())

    @property
    def source(self) -> SourceImage | None:
        """The picture that it goes on from."""
        return None  # kept by those that have one: a private attribute costs each request 5 µs

    @property
    def tiles(self) -> Tiles | None:
        """What its one picture is drawn in."""
        return None

    def specs(self, default_seed: int) -> tuple[DrawSpec, ...]:
        """The pictures in order: all n of the first prompt, then the next; seed + k, wrapping."""
        first = default_seed if self.seed is None else self.seed
        prompts = [prompt for prompt in self.prompts for _ in range(self.n)]
        how, source = self.parameters, self.source
        return tuple(
            DrawSpec(prompt, (first + k) % (MAX_SEED + 1), how, source)
            for k, prompt in enumerate(prompts)
        )

    def normalised(self) -> bytes:
        """What decides the drawing, in bytes: equal for a request and its resubmission."""
        parts: list[Any] = [self.prompts, self.n, self.seed, self.parameters.normalised()]
        source = self.source
        if source is not None:
            parts.append(source.identity)
        return orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)


def parse(body: bytes, settings: Settings, info: ModelInfo) -> Generation:
    """Check ``body`` against this worker's limits and its model's abilities."""
    return parse_values(json_object(body), settings, info)


def parse_values(values: Mapping[str, Any], settings: Settings, info: ModelInfo) -> Generation:
    """The same of a body that was read as JSON."""
    return read(_form(settings, info), KNOWN, values, settings)


def read(form: type[G], known: Collection[str], values: Mapping[str, Any], settings: Settings) -> G:
    """``values`` as a ``form`` whose fields, synonyms aside, are ``known``."""
    said = synonyms.translated(values, known)
    if said.values.get("response_format") is None:
        said.values["response_format"] = _usual_answer(said.values)
    try:
        asked = form.read(said.values)
        _check_combinations(asked, settings)
    except ZimageError as error:
        said.rename(error)
        raise
    return asked


def _usual_answer(values: Mapping[str, Any]) -> str:
    """The default of ``response_format``: OpenAI's for that model. A stream has no links."""
    model = values.get("model")
    linked = isinstance(model, str) and model.lower() in _ANSWERED_WITH_LINKS
    return "url" if linked and not values.get("stream") else "b64_json"


def _check_combinations(asked: Generation, settings: Settings) -> None:
    pictures = asked.n * len(asked.prompts)
    if pictures > settings.max_images:
        bad(
            "n",
            f"{len(asked.prompts)} prompts × n = {asked.n} are {pictures} pictures; one request "
            f"may ask for {settings.max_images}: send several requests",
        )
    if asked.stream and asked.response_format == "url":
        bad(
            "response_format",
            "a stream carries its pictures itself: use b64_json, or url without stream",
        )
    if asked.partial_images and not asked.stream:
        bad("partial_images", "previews need stream: true")
    check_compression(asked)


def check_compression(asked: Asked) -> None:
    """Refuse ``output_compression`` where it has no meaning."""
    if asked.output_format == "png" and asked.compression not in (None, 100):
        bad("output_compression", "png is lossless: leave it out, or use jpeg or webp")


@Once
def _form(settings: Settings, info: ModelInfo) -> type[Generation]:
    return generation_form(Generation, settings, info)


def generation_form(
    base: type[G],
    settings: Settings,
    info: ModelInfo,
    ignored: Collection[str] = IGNORED,
    own: Mapping[str, Any] | None = None,
) -> type[G]:
    """``form_of`` a generation. ``ignored``: texts without a meaning here."""
    check = PlainValidator(partial(_prompts, settings, info))
    prompt = prompt_schema(settings, info)
    prompts = {"type": "array", "items": prompt, "minItems": 1, "maxItems": settings.max_images}
    told = WithJsonSchema({"anyOf": [prompt, prompts]})
    fields = {
        **dict.fromkeys(ignored, (str, "")),
        "prompts": (Annotated[tuple[str, ...], check, told], Field(alias="prompt")),
        "n": (Annotated[int, Field(ge=1, le=settings.max_images)], 1),
        **(own or {}),
    }
    extra: Literal["allow", "forbid"] = "allow" if settings.unknown_fields == "ignore" else "forbid"
    return form_of(base, settings, info, fields, extra)


def form_of(
    base: type[A],
    settings: Settings,
    info: ModelInfo,
    own: Mapping[str, Any],
    extra: Literal["allow", "forbid"] = "forbid",
) -> type[A]:
    """``base`` with this cell's limits, with ``Parameters``, and with fields of its ``own``."""
    fields: dict[str, Any] = {"model": (_model(settings, info), ""), **own}
    fields["size"] = _size(settings, info), Field(default_factory=lambda: info.default_size)
    fields |= {name: _parameter(name, settings, info) for name in base.said}
    return create_model(base.__name__, __base__=base, __cls_kwargs__={"extra": extra}, **fields)


def _parameter(name: str, settings: Settings, info: ModelInfo) -> tuple[Any, Any]:
    """Type and default of a field of ``Parameters``."""
    field, guidance = FIELDS[name], settings.guidance_scale
    if field.kind is ChosenLoras:
        return lora_wire.kind(info), Field(default_factory=ChosenLoras)
    models = {
        "steps": settings.steps or info.default_steps,
        "guidance_scale": info.default_guidance_scale if guidance is None else guidance,
    }
    return _type(name, settings, info), models.get(name, field.default)


def _type(name: str, settings: Settings, info: ModelInfo) -> Any:
    field = FIELDS[name]
    if field.kind is bool:
        return bool
    if field.kind is str:
        read = AfterValidator(partial(_read_whole, info, name))
        return Annotated[str, Field(max_length=settings.max_prompt_chars), read]
    high = field.about.high
    most = getattr(settings, high) if isinstance(high, str) else high
    return Annotated[field.kind, Field(ge=field.about.low, le=most)]


# Fields that need more than a type and bounds


@Once
def model_names(settings: Settings, info: ModelInfo) -> Mapping[str, str]:
    """Ids under which ``/v1/models`` shows the loaded model, by each name for it in lower case.
    The first is its own, the others are aliases."""
    shown, source = model_id(settings, info), settings.model
    others = (info.id, source, source.rstrip("/").rsplit("/", 1)[-1])
    names = {each.lower(): shown for each in (shown, *others)}
    return names | {n.lower(): n for n in settings.names.aliases if n.lower() not in names}


def model_id(settings: Settings, info: ModelInfo) -> str:
    """The id of the loaded model in the API."""
    return settings.names.name or info.id


def _model(settings: Settings, info: ModelInfo) -> Any:
    def check(asked: str) -> str:
        if settings.models is None and asked.lower() not in model_names(settings, info):
            raise NotFound(
                f"model: {asked[:100]!r} is not served here; "
                f"use {model_id(settings, info)!r} or leave the field out.",
                param="model",
                code="model_not_found",
            )
        return asked

    if settings.models is not None:  # which change while this runs, and were looked at before
        return Annotated[str, AfterValidator(check)]
    names = {model_id(settings, info), info.id, settings.model, *settings.names.aliases}
    return Annotated[str, AfterValidator(check), WithJsonSchema({"enum": sorted(names)})]


def _prompts(settings: Settings, info: ModelInfo, value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        return (_read_whole(info, "prompt", one_prompt("prompt", value, settings)),)
    if not value:
        bad("prompt", "the list is empty: give at least one prompt")
    if len(value) > settings.max_images:
        bad(
            "prompt",
            f"{len(value)} prompts; one request may have {settings.max_images}: "
            "send several requests",
        )
    named = {f"prompt[{k}]": item for k, item in enumerate(value)}
    return tuple(_read_whole(info, k, one_prompt(k, v, settings)) for k, v in named.items())


def _read_whole(info: ModelInfo, param: str, text: str) -> str:
    if info.prompt_limit is not None:
        info.prompt_limit.check(param, text)
    return text


def one_prompt(param: str, value: object, settings: Settings) -> str:
    """``value`` as a prompt; ``param`` names it in complaints."""
    text = text_of(param, value, "text or a list of texts" if param == "prompt" else "text")
    if not text.strip():
        bad(param, "empty: say what to draw")
    return bounded(param, text, settings.max_prompt_chars)


def _size(settings: Settings, info: ModelInfo) -> Any:
    told = WithJsonSchema({"type": "string", "pattern": "^([0-9]{2,6}x[0-9]{2,6}|auto)$"})
    return Annotated[tuple[int, int], PlainValidator(partial(_sides, settings, info)), told]


def _sides(settings: Settings, info: ModelInfo, value: object) -> tuple[int, int]:
    text = text_of("size", value)
    if text == "auto":
        return info.default_size
    match = _SIZE.fullmatch(text)
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


def prompt_schema(settings: Settings, info: ModelInfo) -> dict[str, Any]:
    """One prompt; tokens cannot be counted by a schema, so its description tells their limit."""
    known = {"type": "string", "maxLength": settings.max_prompt_chars, "pattern": r"\S"}
    if info.prompt_limit is None:
        return known
    return {
        **known,
        "description": f"At most {info.prompt_limit.max_tokens} of the model's tokens.",
    }


KNOWN = tuple(sorted({*names_of(Generation), *IGNORED, *SAID}))


@Once
def schema(settings: Settings, info: ModelInfo) -> Schema:
    """What ``parse`` takes, as JSON Schema; ``null`` counts as left out."""
    known = _form(settings, info).schema_of()
    return {**known, "properties": synonyms.schema(known["properties"], KNOWN)}
