"""What the images API accepts: a request's JSON, checked field by field.

Each problem is an ``InvalidRequest`` that names the field, what is wrong and the remedy.
"""

import difflib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, cast

from worker.errors import InvalidRequest, NotFound
from worker.pipelines.base import DrawSpec, ModelInfo
from worker.settings import Settings

MAX_SEED = 2**32 - 1
MAX_PARTIAL_IMAGES = 3
MAX_GUIDANCE_SCALE = 30.0
_LONGEST_NAME = 60  # of a field: comparing takes the square of it

ImageFormat = Literal["png", "jpeg", "webp"]
FORMATS = ("png", "jpeg", "webp")

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
    "prompt",
    "reproducible",
    "response_format",
    "seed",
    "size",
    "steps",
    "stream",
    *IGNORED,
)


@dataclass(frozen=True)
class Generation:
    """One checked request. ``seed`` None: the server chooses. ``quality`` is that of JPEG, WebP."""

    prompts: tuple[str, ...]
    n: int
    width: int
    height: int
    steps: int
    guidance_scale: float
    negative_prompt: str
    seed: int | None
    reproducible: bool
    response_format: Literal["b64_json", "url"]
    output_format: ImageFormat
    quality: int | None
    stream: bool
    partial_images: int

    @property
    def size(self) -> str:
        return f"{self.width}x{self.height}"

    def specs(self, default_seed: int) -> tuple[DrawSpec, ...]:
        """The pictures in order: all n of the first prompt, then the next; seed + k, wrapping."""
        first = default_seed if self.seed is None else self.seed
        prompts = [prompt for prompt in self.prompts for _ in range(self.n)]
        return tuple(
            DrawSpec(
                prompt,
                self.width,
                self.height,
                self.steps,
                (first + k) % (MAX_SEED + 1),
                self.guidance_scale,
                self.negative_prompt,
                self.reproducible,
            )
            for k, prompt in enumerate(prompts)
        )

    def normalised(self) -> str:
        """What decides the drawing, as one string: equal for a request and its resubmission."""
        parts = (
            self.prompts,
            self.n,
            self.size,
            self.steps,
            self.guidance_scale,
            self.negative_prompt,
            self.seed,
            self.reproducible,
        )
        return json.dumps(parts)


def parse(body: bytes, settings: Settings, info: ModelInfo) -> Generation:
    """Check ``body`` against this worker's limits and its model's abilities."""
    fields = _Fields(_object(body))
    _refuse_unknown(fields)
    _check_model(fields, settings, info)
    for name in IGNORED:
        fields.text(name, "")
    prompts = _prompts(fields, settings)
    n = fields.whole("n", 1, 1, settings.max_images)
    if n * len(prompts) > settings.max_images:
        _bad(
            "n",
            f"{len(prompts)} prompts × n = {n} are {n * len(prompts)} pictures; one request may "
            f"ask for {settings.max_images}: send several requests",
        )
    width, height = _size(fields, settings, info)
    stream = fields.flag("stream")
    response_format = fields.choice("response_format", "b64_json", ("b64_json", "url"))
    output_format = fields.choice("output_format", "png", FORMATS)
    partial_images = fields.whole("partial_images", 0, 0, MAX_PARTIAL_IMAGES)
    _check_combinations(stream, response_format, output_format, partial_images, fields)
    default_steps = settings.steps or info.default_steps
    default_guidance = (
        info.default_guidance_scale if settings.guidance_scale is None else settings.guidance_scale
    )
    return Generation(
        prompts=prompts,
        n=n,
        width=width,
        height=height,
        steps=fields.whole("steps", default_steps, 1, settings.max_steps),
        guidance_scale=fields.number("guidance_scale", default_guidance, 0, MAX_GUIDANCE_SCALE),
        negative_prompt=fields.prompt("negative_prompt", "", settings.max_prompt_chars),
        seed=fields.optional_whole("seed", 0, MAX_SEED),
        reproducible=fields.flag("reproducible"),
        response_format=cast(Literal["b64_json", "url"], response_format),
        output_format=cast(ImageFormat, output_format),
        quality=fields.optional_whole("output_compression", 0, 100),
        stream=stream,
        partial_images=partial_images,
    )


def model_names(settings: Settings, info: ModelInfo) -> frozenset[str]:
    """Names under which a client may ask for the loaded model, in lower case."""
    names = {info.id, settings.model, settings.model.rstrip("/").rsplit("/", 1)[-1]}
    return frozenset(name.lower() for name in names)


def _bad(param: str | None, message: str, code: str = "invalid_value") -> NoReturn:
    raise InvalidRequest(f"{param}: {message}." if param else f"{message}.", param=param, code=code)


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body.decode("utf-8-sig"), parse_constant=_refuse_constant)
    except UnicodeDecodeError:
        _bad(None, "The body is not UTF-8: send JSON encoded in UTF-8", "invalid_json")
    except RecursionError:
        _bad(None, "The body is nested too deeply: send one flat JSON object", "invalid_json")
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        _bad(None, f"The body is not valid JSON ({error.msg} at {where})", "invalid_json")
    except ValueError as error:
        _bad(None, f"The body is not valid JSON ({error})", "invalid_json")
    if not isinstance(value, dict):
        _bad(None, f"The body must be a JSON object, not {_kind(value)}", "invalid_json")
    return value


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not a JSON number")


def _refuse_unknown(fields: "_Fields") -> None:
    for name in fields.values:
        if name in KNOWN:
            continue
        near = difflib.get_close_matches(name[:_LONGEST_NAME], KNOWN, 1)
        shown = name[:_LONGEST_NAME].encode("ascii", "backslashreplace").decode()
        hint = f"did you mean {near[0]}?" if near else f"known fields: {', '.join(sorted(KNOWN))}"
        message = f"Unknown field {shown!r}: {hint}"
        raise InvalidRequest(message, param=shown, code="unknown_parameter")


def _check_model(fields: "_Fields", settings: Settings, info: ModelInfo) -> None:
    asked = fields.text("model", info.id)
    if asked.lower() not in model_names(settings, info):
        raise NotFound(
            f"model: {asked[:100]!r} is not served here; use {info.id!r} or leave the field out.",
            param="model",
            code="model_not_found",
        )


def _prompts(fields: "_Fields", settings: Settings) -> tuple[str, ...]:
    value = fields.values.get("prompt")
    if value is None:
        _bad("prompt", "missing: say what to draw", "missing_required_parameter")
    if isinstance(value, list):
        if not value:
            _bad("prompt", "the list is empty: give at least one prompt")
        if len(value) > settings.max_images:
            _bad(
                "prompt",
                f"{len(value)} prompts; one request may have {settings.max_images}: "
                "send several requests",
            )
        items = [_one_prompt(f"prompt[{k}]", item, settings) for k, item in enumerate(value)]
        return tuple(items)
    return (_one_prompt("prompt", value, settings),)


def _one_prompt(param: str, value: object, settings: Settings) -> str:
    text = _text(param, value, "text or a list of texts" if param == "prompt" else "text")
    if not text.strip():
        _bad(param, "empty: say what to draw")
    return _bounded(param, text, settings.max_prompt_chars)


def _text(param: str, value: object, wanted: str = "text") -> str:
    if not isinstance(value, str):
        _bad(param, f"must be {wanted}, not {_kind(value)}", "invalid_type")
    try:
        value.encode()
    except UnicodeEncodeError:
        _bad(param, "has half of a surrogate pair: send complete characters")
    return value


def _bounded(param: str, text: str, max_chars: int) -> str:
    if len(text) > max_chars:
        _bad(param, f"{len(text)} characters; at most {max_chars} are read: shorten it")
    return text


def _size(fields: "_Fields", settings: Settings, info: ModelInfo) -> tuple[int, int]:
    text = fields.text("size", "auto")
    if text == "auto":
        return info.default_size
    match = re.fullmatch(r"([0-9]{1,6})x([0-9]{1,6})", text)
    if match is None:
        _bad("size", f"{text[:40]!r} is not WIDTHxHEIGHT in pixels, such as 512x768, nor 'auto'")
    width, height = int(match[1]), int(match[2])
    for side in (width, height):
        if side % info.side_multiple:
            near = max(info.min_side, round(side / info.side_multiple) * info.side_multiple)
            _bad(
                "size",
                f"{side} is not a multiple of {info.side_multiple}, as both sides must be; "
                f"the nearest is {near}",
            )
        if side < info.min_side:
            _bad("size", f"{side} is too small: each side has at least {info.min_side} pixels")
    if width * height > settings.max_pixels:
        _bad(
            "size",
            f"{text} is {width * height} pixels; this service draws at most "
            f"{settings.max_pixels}: make it smaller",
        )
    return width, height


def _check_combinations(
    stream: bool, response_format: str, output_format: str, partial_images: int, fields: "_Fields"
) -> None:
    if stream and response_format == "url":
        _bad(
            "response_format",
            "a stream carries its pictures itself: use b64_json, or url without stream",
        )
    if partial_images and not stream:
        _bad("partial_images", "previews need stream: true")
    if output_format == "png" and fields.values.get("output_compression") not in (None, 100):
        _bad("output_compression", "png is lossless: leave it out, or use jpeg or webp")


def _kind(value: object) -> str:
    """JSON's word for the type of ``value``."""
    if isinstance(value, bool):
        return "a boolean"
    kinds: Mapping[type, str] = {
        str: "text",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
    }
    return kinds.get(type(value), "null")


@dataclass(frozen=True)
class _Fields:
    """Typed access to a JSON object. ``null`` counts as left out, as in OpenAI's API."""

    values: dict[str, Any]

    def _get(self, name: str, check: Callable[[object], bool], wanted: str) -> Any:
        value = self.values.get(name)
        if value is not None and not check(value):
            _bad(name, f"must be {wanted}, not {_shown(value)}", "invalid_type")
        return value

    def text(self, name: str, default: str) -> str:
        value = self.values.get(name)
        return default if value is None else _text(name, value)

    def prompt(self, name: str, default: str, max_chars: int) -> str:
        return _bounded(name, self.text(name, default), max_chars)

    def flag(self, name: str) -> bool:
        return bool(self._get(name, lambda v: isinstance(v, bool), "true or false"))

    def choice(self, name: str, default: str, choices: tuple[str, ...]) -> str:
        value = self.text(name, default)
        if value not in choices:
            _bad(name, f"{value[:40]!r} is not one of {', '.join(choices)}")
        return value

    def optional_whole(self, name: str, low: int, high: int) -> int | None:
        value: int | None = self._get(name, _is_whole, "a whole number")
        if value is not None and not low <= value <= high:
            _bad(name, f"{_brief(value)} is out of range: {low} to {high}")
        return value

    def whole(self, name: str, default: int, low: int, high: int) -> int:
        value = self.optional_whole(name, low, high)
        return default if value is None else value

    def number(self, name: str, default: float, low: float, high: float) -> float:
        value = self._get(name, _is_number, "a number")
        if value is None:
            return default
        if not low <= value <= high:
            _bad(name, f"{_brief(value)} is out of range: {low:g} to {high:g}")
        return float(value)


def _shown(value: object) -> str:
    """A float where a whole number is wanted is shown itself; else JSON's word for its type."""
    return f"{value:.6g}" if isinstance(value, float) else _kind(value)


def _brief(value: float) -> str:
    # A JSON integer may have thousands of digits, more than a float can hold.
    return str(value) if abs(value) < 10**20 else "the number"


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return not isinstance(value, float) or math.isfinite(value)
