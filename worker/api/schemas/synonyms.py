"""Words of other APIs that mean the same: said in ours before a request is read."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from worker.api.schemas.fields import Fields, bad
from worker.errors import ZimageError

FIELDS = {"batch_size": "n", "image_size": "size", "num_inference_steps": "steps"}
"""Our name of each. ``width`` and ``height`` together are ``size`` as well."""

_LONGEST_SIDE = 999_999  # any limit of pixels is far below
_SIDES = "width, height"
_OTHER_NAMES = frozenset({*FIELDS, "width", "height"})
_OTHER_WORDS = ("size", "output_format", "seed")
"""Our fields whose values have synonyms."""


@dataclass(frozen=True)
class Said:
    """``values`` in our words; ``theirs``: what the client called those that it called otherwise,
    by our names."""

    values: dict[str, Any]
    theirs: Mapping[str, str]

    def rename(self, error: ZimageError) -> None:
        """Let ``error`` name its field as the client did."""
        own = error.param or ""
        theirs = self.theirs.get(own)
        if theirs is not None and error.message.startswith(f"{own}:"):
            error.message = theirs + error.message[len(own) :]
            error.args = (error.message,)
            error.param = _first(theirs)


def translated(values: Mapping[str, Any], known: Collection[str]) -> Said:
    """``values`` with the synonyms of ``known`` fields replaced by these. Two names of one field
    must say the same. What else is wrong with a value is left to whoever reads the field."""
    ours = dict(values)
    for name in _OTHER_WORDS:
        if name in ours:
            ours[name] = _value(name, ours[name])
    theirs: dict[str, str] = {}
    if _OTHER_NAMES.isdisjoint(ours):  # as in most requests
        return Said(ours, theirs)

    def put(own: str, name: str, value: object) -> None:
        if value is None:
            return
        if ours.get(own) not in (None, value):
            bad(
                _first(name),
                f"means the same as {theirs.get(own, own)}, which differs: leave one out",
            )
        ours[own], theirs[own] = value, name

    for name, own in FIELDS.items():
        if name in ours and own in known:
            put(own, name, _value(own, ours.pop(name)))
    if ("width" in ours or "height" in ours) and "size" in known:
        put("size", _SIDES, _size({side: ours.pop(side, None) for side in ("width", "height")}))
    return Said(ours, theirs)


def _first(names: str) -> str:
    return names.partition(",")[0]


def of(known: Collection[str]) -> tuple[str, ...]:
    """The words that mean one of the ``known`` fields."""
    sides = ("width", "height") if "size" in known else ()
    return (*(name for name, own in FIELDS.items() if own in known), *sides)


def _value(name: str, value: Any) -> Any:
    """``value`` of our field ``name``, in our words."""
    if name == "size" and isinstance(value, str):
        return value.replace("*", "x")
    if name == "output_format" and value == "jpg":
        return "jpeg"
    if name == "seed" and value == -1:
        return None
    return value


def _size(sides: dict[str, Any]) -> str | None:
    given = [side for side, value in sides.items() if value is not None]
    if not given:
        return None
    fields = Fields(sides)
    width, height = (fields.optional_whole(side, 1, _LONGEST_SIDE) for side in sides)
    for side, value in (("width", width), ("height", height)):
        if value is None:
            bad(side, f"missing beside {given[0]}: give both", "missing_required_parameter")
    return f"{width}x{height}"


def schema(properties: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """``properties`` of a JSON Schema, which describe our ``known`` fields, with these words as
    well."""
    ours = dict(properties)
    pattern = "^([0-9]{2,6}[x*][0-9]{2,6}|auto)$"
    ours["size"] = {**ours["size"], "pattern": pattern}
    ours["seed"] = {**ours["seed"], "minimum": -1, "description": "-1: the server chooses."}
    ours["output_format"] = {"enum": [*ours["output_format"]["enum"], "jpg"]}
    same = {
        name: {**ours[own], "description": f"Means {own}."}
        for name, own in FIELDS.items()
        if own in known
    }
    side = {
        "type": ["integer", "null"],
        "minimum": 1,
        "maximum": _LONGEST_SIDE,
        "description": "Width and height together mean size.",
    }
    return {**ours, **same, "width": side, "height": side}
