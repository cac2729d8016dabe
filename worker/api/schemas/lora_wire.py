"""The field ``lora`` of a request: which adapters, and how strongly."""

from functools import partial
from typing import Annotated, Any

from pydantic import PlainValidator, WithJsonSchema

from worker.api.schemas.fields import bad, kind_of, refuse_unknown, text_of
from worker.models.base import ModelInfo
from worker.models.loras.folder import NAME
from worker.models.loras.shelf import MAX_LORAS, MAX_SCALE, LoraShelf
from worker.types import ChosenLoras, Lora

_KNOWN = ("name", "scale", "sha256")
_SCHEMA = {
    "type": "array",
    "maxItems": MAX_LORAS,
    "items": {
        "type": "object",
        "required": ["name"],
        "additionalProperties": False,
        "properties": {
            "name": {"type": "string", "pattern": f"^{NAME}$"},
            "scale": {"type": "number", "minimum": -MAX_SCALE, "maximum": MAX_SCALE},
            "sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
        },
    },
}
SHOWN = {
    "type": "array",
    "items": {
        "type": "object",
        "required": list(_KNOWN),
        "properties": {
            "name": {"type": "string"},
            "scale": {"type": "number"},
            "sha256": {"type": "string"},
        },
    },
}
"""The schema of ``as_asked``."""


def kind(info: ModelInfo) -> Any:
    """The field's type, for the adapters of a model."""
    told = WithJsonSchema(_SCHEMA if info.loras else {**_SCHEMA, "maxItems": 0})
    return Annotated[ChosenLoras, PlainValidator(partial(_chosen, info.loras)), told]


def as_asked(loras: ChosenLoras) -> list[dict[str, Any]]:
    """As a request says it that wants the same again."""
    return [lora._asdict() for lora in loras.each]


def _chosen(shelf: LoraShelf | None, value: object) -> ChosenLoras:
    if not isinstance(value, list):
        bad("lora", f"must be a list of objects, not {kind_of(value)}", "invalid_type")
    if not value:
        return ChosenLoras()
    if shelf is None:
        bad("lora", "this model takes no adapters: leave the field out")
    if len(value) > MAX_LORAS:
        bad("lora", f"{len(value)} adapters; a drawing may have {MAX_LORAS}: use fewer")
    found = [_one(shelf, f"lora[{place}]", item) for place, item in enumerate(value)]
    for place, lora in enumerate(found):
        if lora.name in [each.name for each in found[:place]]:
            bad(f"lora[{place}].name", f"{lora.name} is named twice: name it once")
    shelf.require(found)
    return ChosenLoras.of(found)


def _one(shelf: LoraShelf, param: str, item: object) -> Lora:
    if not isinstance(item, dict):
        bad(param, f"must be an object with name and scale, not {kind_of(item)}", "invalid_type")
    refuse_unknown(item, _KNOWN)
    if "name" not in item:
        bad(f"{param}.name", "missing: name an adapter, as GET /v1/loras lists it")
    stored = shelf.named(text_of(f"{param}.name", item["name"]))
    digest = item.get("sha256")
    digest = stored.sha256 if digest is None else text_of(f"{param}.sha256", digest)
    return Lora(stored.name, _scale(f"{param}.scale", item.get("scale")), digest)


def _scale(param: str, value: object) -> float:
    if value is None:
        return 1.0
    if isinstance(value, bool) or not isinstance(value, int | float):
        bad(param, f"must be a number, not {kind_of(value)}", "invalid_type")
    if not -MAX_SCALE <= value <= MAX_SCALE:
        bad(param, f"is out of range: {-MAX_SCALE:g} to {MAX_SCALE:g}")
    return round(float(value), 4)
