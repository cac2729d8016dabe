"""Parameters as answers show them, and the schema of that."""

from collections.abc import Mapping
from typing import Any

from worker.api.schemas import lora_wire
from worker.api.schemas.openapi import Schema
from worker.storage.parameters import stored, values
from worker.types import FIELDS, ChosenLoras, Parameters, Value

_TYPES: Mapping[type[Value], str] = {
    int: "integer",
    float: "number",
    str: "string",
    bool: "boolean",
}

PICTURES: Mapping[str, Schema] = {
    name: lora_wire.SHOWN if field.kind is ChosenLoras else {"type": _TYPES[field.kind]}
    for name, field in stored().items()
}
"""Schemas of what ``of_picture`` shows, by name."""

JOBS: Mapping[str, Schema] = {
    "size": {"type": "string"},
    **{
        name: about
        for name, about in PICTURES.items()
        if name not in ("width", "height") and not FIELDS[name].about.edits
    },
}
"""Schemas of what ``as_asked`` shows of a job, by name."""


def of_picture(parameters: Parameters) -> dict[str, Any]:
    """What is kept of ``parameters``, by name."""
    return values(parameters) | {"lora": lora_wire.as_asked(parameters.lora)}


def as_asked(parameters: Parameters) -> dict[str, Any]:
    """``parameters`` of a job as its request says them."""
    known = of_picture(parameters) | {"size": parameters.size_text}
    return {name: known[name] for name in JOBS}
