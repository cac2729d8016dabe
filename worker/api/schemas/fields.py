"""A request's JSON object, checked field by field.

Each problem is an ``InvalidRequest`` that names the field, what is wrong and the remedy.
"""

import difflib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import orjson

from worker.errors import InvalidRequest

_MOST_DIGITS = 18  # of a column of 64 bits; Python itself refuses to read more than 4300
_LONGEST_NAME = 60  # of a field: comparing takes the square of it


def bad(param: str | None, message: str, code: str = "invalid_value") -> NoReturn:
    """Refuse the request because of field ``param``; ``message`` ends without a full stop."""
    raise InvalidRequest(f"{param}: {message}." if param else f"{message}.", param=param, code=code)


def json_object(body: bytes) -> dict[str, Any]:
    """``body`` as a JSON object."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        value = _slowly(body)
    if not isinstance(value, dict):
        bad(None, f"The body must be a JSON object, not {kind_of(value)}", "invalid_json")
    return value


def _slowly(body: bytes) -> Any:
    """With the standard library: it names the place of a mistake, takes a byte order mark, and
    leaves half surrogate pairs to whoever can name the field."""
    try:
        return _decode(body.decode("utf-8-sig"))
    except UnicodeDecodeError:
        bad(None, "The body is not UTF-8: send JSON encoded in UTF-8", "invalid_json")
    except RecursionError:
        bad(None, "The body is nested too deeply: send one flat JSON object", "invalid_json")
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        bad(None, f"The body is not valid JSON ({error.msg} at {where})", "invalid_json")
    except ValueError as error:
        bad(None, f"The body is not valid JSON ({error})", "invalid_json")


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not a JSON number")


_decode = json.JSONDecoder(parse_constant=_refuse_constant).decode


def refuse_unknown(values: Mapping[str, Any], known: Collection[str]) -> None:
    """A misspelt field must not be taken for one left out."""
    for name in values:
        if name in known:
            continue
        near = difflib.get_close_matches(name[:_LONGEST_NAME], known, 1)
        shown = name[:_LONGEST_NAME].encode("ascii", "backslashreplace").decode()
        hint = f"did you mean {near[0]}?" if near else f"known fields: {', '.join(sorted(known))}"
        message = f"Unknown field {shown!r}: {hint}"
        raise InvalidRequest(message, param=shown, code="unknown_parameter")


def text_of(param: str, value: object, wanted: str = "text") -> str:
    """``value`` as text that can be encoded."""
    if not isinstance(value, str):
        bad(param, f"must be {wanted}, not {kind_of(value)}", "invalid_type")
    try:
        value.encode()
    except UnicodeEncodeError:
        bad(param, "has half of a surrogate pair: send complete characters")
    return value


def digits_of(text: str) -> int | None:
    """The whole number that ``text`` is, in digits and small enough for every database, or None."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS else None


def bounded(param: str, text: str, max_chars: int) -> str:
    """``text``, of at most ``max_chars`` characters."""
    if len(text) > max_chars:
        bad(param, f"{len(text)} characters; at most {max_chars} are read: shorten it")
    return text


def kind_of(value: object) -> str:
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
class Fields:
    """Typed access to a JSON object. ``null`` counts as left out, as in OpenAI's API."""

    values: dict[str, Any]

    def _get(self, name: str, check: Callable[[object], bool], wanted: str) -> Any:
        value = self.values.get(name)
        if value is not None and not check(value):
            bad(name, f"must be {wanted}, not {shown(value)}", "invalid_type")
        return value

    def text(self, name: str, default: str) -> str:
        value = self.values.get(name)
        return default if value is None else text_of(name, value)

    def flag(self, name: str, default: bool = False) -> bool:
        value = self._get(name, lambda v: isinstance(v, bool), "true or false")
        return default if value is None else bool(value)

    def optional_whole(self, name: str, low: int, high: int) -> int | None:
        value: int | None = self._get(name, _is_whole, "a whole number")
        if value is not None and not low <= value <= high:
            bad(name, f"{brief(value)} is out of range: {low} to {high}")
        return value

    def whole(self, name: str, default: int, low: int, high: int) -> int:
        value = self.optional_whole(name, low, high)
        return default if value is None else value


def shown(value: object) -> str:
    """A float where a whole number is wanted is shown itself; else JSON's word for its type."""
    return f"{value:.6g}" if isinstance(value, float) else kind_of(value)


def brief(value: float) -> str:
    """``value`` in a complaint."""
    # A JSON integer may have thousands of digits, more than a float can hold.
    return str(value) if abs(value) < 10**20 else "the number"


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
