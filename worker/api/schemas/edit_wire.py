"""What requests with a picture may say beside what all drawings may: files, or ids of pictures."""

import json
import re
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import AfterValidator, Field, PlainValidator, PrivateAttr, WithJsonSchema

from worker.api.schemas import synonyms, wire
from worker.api.schemas.fields import bad, bounded, text_of
from worker.api.schemas.forms import Once, Schema, names_of
from worker.generation.tiling import Tiles
from worker.models.base import ModelInfo
from worker.models.sizes import fitted
from worker.settings import Settings
from worker.types import FIELDS, SourceImage
from worker.uploads.named import is_address, is_id
from worker.uploads.sources import MAX_PIXELS, Fit, Placing, Size

STRENGTH = 0.6
"""Of a picture that may change everywhere, as diffusers has it; of one with a mask 1."""
UPSCALE_STRENGTH = 0.25
SCALE = 2
Kind = Literal["edit", "variation", "upscale"]
V = TypeVar("V", bound="Edit")
FILES = ("image", "mask")
IGNORED = (*wire.IGNORED, "input_fidelity")
EDITS = tuple(name for name, field in FIELDS.items() if field.about.edits)
_NOT_FETCHED = (
    "an address: nothing is fetched here; send the file itself as multipart form, or the id that "
    "POST /v1/uploads gives it"
)
_POSITION = re.compile(r"([0-9]{1,5}),([0-9]{1,5})")


def _id_for(name: str) -> Callable[[str], str]:
    def check(value: str) -> str:
        if is_id(value):
            return value
        if is_address(value):
            bad(name, _NOT_FETCHED)
        return bad(name, f"{value[:40]!r} is no id of a picture or upload: send its id, or a file")

    return check


def _corner(value: object) -> tuple[int, int] | None:
    text = text_of("position", value)
    match = _POSITION.fullmatch(text)
    if match is None and text != "center":
        bad("position", f"{text[:40]!r} is neither X,Y in pixels nor 'center'")
    return None if match is None else (int(match[1]), int(match[2]))


_TEXT = WithJsonSchema({"type": "string"})
ImageId = Annotated[str, AfterValidator(_id_for("image")), _TEXT]
MaskId = Annotated[str, AfterValidator(_id_for("mask")), _TEXT]
Position = Annotated[
    tuple[int, int] | None,
    PlainValidator(_corner),
    WithJsonSchema({"type": "string", "pattern": "^([0-9]{1,5},[0-9]{1,5}|center)$"}),
]


class Edit(wire.Generation):
    """A drawing that goes on from a picture. ``image``, ``mask``: ids of pictures in the gallery or
    of uploads; empty: a file came with the request, or none."""

    missing: ClassVar[Mapping[str, tuple[str, str]]] = wire.Generation.missing
    said: ClassVar[tuple[str, ...]] = (*wire.SAID, *EDITS)
    events: ClassVar[str] = "image_edit"
    usual_strength: ClassVar[float] = STRENGTH

    _source: SourceImage | None = PrivateAttr(None)

    image: ImageId = ""
    mask: MaskId = ""
    fit: Fit = "cover"
    position: Position = None

    @property
    def source(self) -> SourceImage | None:
        return self._source

    def placing(self, settings: Settings, info: ModelInfo) -> Placing:
        """How its picture becomes as large as it."""
        auto = "size" not in self.model_fields_set

        def size(of: Size) -> Size:
            return size_for(of, settings, info) if auto else self.size

        return Placing(size, self.fit, self.position)

    def goes_on_from(self, source: SourceImage, size: Size) -> Self:
        """This with its picture, and with what that decides where the request does not say it."""
        strength = 1.0 if source.mask is not None else self.usual_strength
        decided: dict[str, Any] = {"size": size}
        if "strength" not in self.model_fields_set:
            decided["strength"] = strength
        edit = self.model_copy(update=decided)
        edit._source = source
        return edit


class Variation(Edit):
    """``prompts``: none is needed."""


class Upscale(Variation):
    """A picture twice as large on each side."""

    usual_strength: ClassVar[float] = UPSCALE_STRENGTH

    _tiles: Tiles | None = PrivateAttr(None)

    @property
    def tiles(self) -> Tiles | None:
        return self._tiles

    def placing(self, settings: Settings, info: ModelInfo) -> Placing:
        most = min(4 * settings.max_pixels, MAX_PIXELS)

        def size(of: Size) -> Size:
            width, height = (_near(SCALE * side, info) for side in of)
            if width * height > most:
                told = f"{of[0]}×{of[1]} would become {width}×{height}"
                bad("image", f"{told}, more than {most:,} pixels: send a smaller one")
            return width, height

        return Placing(size)

    def in_tiles(self, source: SourceImage, size: Size, tiles: Tiles) -> "Upscale":
        """``goes_on_from``, in tiles."""
        edit = self.goes_on_from(source, size)
        edit._tiles = tiles
        return edit


def tile_of(settings: Settings, info: ModelInfo) -> Size:
    """The largest tile: what the model draws best, and a worker draws at all."""
    return fitted(info.default_size, settings.max_pixels, info.side_multiple)


def _near(side: int, info: ModelInfo) -> int:
    multiple = info.side_multiple
    return max(info.min_side, round(side / multiple) * multiple)


def size_for(of: Size, settings: Settings, info: ModelInfo) -> Size:
    """The nearest to a picture's that can be drawn."""
    near = _near(of[0], info), _near(of[1], info)
    width, height = fitted(near, settings.max_pixels, info.side_multiple)
    return max(width, info.min_side), max(height, info.min_side)


@Once
def _edit(settings: Settings, info: ModelInfo) -> type[Edit]:
    return wire.generation_form(Edit, settings, info, IGNORED)


@Once
def _variation(settings: Settings, info: ModelInfo) -> type[Variation]:
    return _unprompted(Variation, settings, info)


@Once
def _upscale(settings: Settings, info: ModelInfo) -> type[Upscale]:
    return _unprompted(Upscale, settings, info)


def _unprompted(base: type[V], settings: Settings, info: ModelInfo) -> type[V]:
    def check(value: object) -> tuple[str, ...]:
        text = bounded("prompt", text_of("prompt", value), settings.max_prompt_chars)
        if info.prompt_limit is not None:
            info.prompt_limit.check("prompt", text)
        return (text,)

    told = WithJsonSchema({"type": "string", "maxLength": settings.max_prompt_chars})
    kind = Annotated[tuple[str, ...], PlainValidator(check), told]
    own = {"prompts": (kind, Field(("",), alias="prompt"))}
    return wire.generation_form(base, settings, info, IGNORED, own)


_FORMS: Mapping[Kind, Callable[[Settings, ModelInfo], type[Edit]]] = {
    "edit": _edit,
    "variation": _variation,
    "upscale": _upscale,
}
_NOT_TAKEN: Mapping[Kind, Mapping[str, str]] = {
    "edit": {},
    "variation": {"mask": "variations have none: use /v1/images/edits"},
    "upscale": {
        "mask": "a picture is made larger as a whole: leave it out",
        "partial_images": "there are no previews of tiles: leave it out",
        **dict.fromkeys(("size", "fit", "position"), "it becomes twice as large: leave it out"),
        "n": "one picture becomes one: leave it out",
    },
}


KNOWN = tuple(sorted({*names_of(Edit), *IGNORED, *Edit.said}))


def parse(
    values: Mapping[str, Any], settings: Settings, info: ModelInfo, kind: Kind = "edit"
) -> Edit:
    """Check ``values`` against this worker's limits and its model's abilities."""
    form = _FORMS[kind](settings, info)
    said = {name: value for name, value in values.items() if (name, value) != ("size", "auto")}
    asked = wire.read(form, KNOWN, said, settings)
    for name, why in _NOT_TAKEN[kind].items():
        if name in asked.model_fields_set and getattr(asked, name) != _default(form, name):
            bad(name, why, "unknown_parameter")
    check_fit(asked.fit, asked.position, sized="size" in asked.model_fields_set)
    return asked


def _default(form: type[Edit], name: str) -> Any:
    return form.model_fields[name].default


def check_fit(fit: Fit, position: tuple[int, int] | None, *, sized: bool) -> None:
    """Raise ``InvalidRequest`` where they do not go together. ``sized``: a size was said."""
    if position is not None and fit != "extend":
        bad("position", "it places a picture that is extended: add fit: extend, or leave it out")
    if fit == "extend" and not sized:
        bad("size", "missing: say how large the extended picture is", "missing_required_parameter")


def files_of(kind: Kind) -> tuple[str, ...]:
    """Which files such a request may carry."""
    return FILES if kind == "edit" else ("image",)


def typed(texts: Mapping[str, str], settings: Settings, info: ModelInfo) -> dict[str, Any]:
    """``texts`` of a form as JSON would have them; what is no number stays a text, for whoever
    reads it to complain."""
    known = synonyms.schema(_edit(settings, info).schema_of()["properties"], KNOWN)
    return {name: _typed(text, known.get(name, {}).get("type", ())) for name, text in texts.items()}


def _typed(text: str, kinds: Collection[str]) -> Any:
    if "array" in kinds and text.lstrip().startswith("["):
        with suppress(ValueError, RecursionError):
            return json.loads(text)
    if not {"integer", "number", "boolean"} & set([kinds] if isinstance(kinds, str) else kinds):
        return text
    try:
        value = json.loads(text[:40].strip().lower())
    except ValueError:
        return text
    return value if isinstance(value, int | float) else text


def schema(settings: Settings, info: ModelInfo, kind: Kind, *, files: bool) -> Schema:
    """What ``parse`` takes, as JSON Schema; with ``files``, as a form that carries them."""
    known = _FORMS[kind](settings, info).schema_of()
    properties = synonyms.schema(known["properties"], KNOWN)
    file = {"type": "string", "format": "binary"}
    for name in _NOT_TAKEN[kind]:
        del properties[name]
    if files:
        properties |= dict.fromkeys(files_of(kind), file)
    needed = [*known.get("required", []), "image"]
    return {**known, "required": needed, "properties": properties}
