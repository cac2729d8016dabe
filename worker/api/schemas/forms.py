"""A request's JSON object, read by a pydantic model: parser and OpenAPI schema in one.

Pydantic's complaints are put into this API's words here and nowhere else: the field, what is wrong
with it, the remedy, a code for programs. A model's own checks raise ``InvalidRequest`` themselves,
which passes through pydantic as it is.
"""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, ClassVar, Generic, NoReturn, Self, TypeVar, get_args

from annotated_types import Ge, Le
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from worker.api.schemas.fields import bad, brief, refuse_unknown, shown, text_of
from worker.models.base import ModelInfo
from worker.settings import Settings

T = TypeVar("T")

Schema = dict[str, Any]


class Form(BaseModel):
    """A JSON object in which ``null`` counts as left out, as in OpenAI's API."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    missing: ClassVar[Mapping[str, tuple[str, str]]] = {}
    """What to say, and with which code, where a field without a default is left out."""

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """Raises ``InvalidRequest``. A misspelt field must not be taken for one left out, so what
        is unknown is told first."""
        if cls.model_config["extra"] == "forbid":
            refuse_unknown(values, _named(cls))
        try:
            return cls.model_validate({k: v for k, v in values.items() if v is not None})
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
        return _refuse(cls, problem)

    @classmethod
    def schema_of(cls) -> Schema:
        """What ``read`` takes, as JSON Schema."""
        schema = cls.model_json_schema()
        needed = schema.get("required", [])
        properties = {
            name: _bare(about) if name in needed else _or_null(_bare(about))
            for name, about in schema["properties"].items()
        }
        kept: Schema = {name: schema[name] for name in ("type", "required") if name in schema}
        open_ = cls.model_config["extra"] == "allow"
        return {**kept, "additionalProperties": open_, "properties": properties}


@cache
def _named(form: type[Form]) -> Mapping[str, FieldInfo]:
    """Fields by the name that requests give them."""
    return {field.alias or name: field for name, field in form.model_fields.items()}


def names_of(form: type[Form]) -> tuple[str, ...]:
    """What requests may say."""
    return tuple(sorted(_named(form)))


def _bare(about: Schema) -> Schema:
    """Without what pydantic says of Python."""
    known = {name: value for name, value in about.items() if name not in ("title", "default")}
    match known.get("anyOf"):
        case [one, {"type": "null"}]:
            return dict(one)
    return known


def _or_null(about: Schema) -> Schema:
    if "enum" in about:
        return {"enum": [*about["enum"], None]}
    if isinstance(about.get("type"), str):
        return {**about, "type": [about["type"], "null"]}
    return about


def _refuse(form: type[Form], problem: Mapping[str, Any]) -> NoReturn:
    """Say ``problem`` as this API says it."""
    name, value = str(problem["loc"][0]), problem["input"]
    field = _named(form)[name]
    match problem["type"]:
        case "missing":
            bad(name, *form.missing[name])
        case "bool_type":
            bad(name, f"must be true or false, not {shown(value)}", "invalid_type")
        case "int_type":
            bad(name, f"must be a whole number, not {shown(value)}", "invalid_type")
        case "greater_than_equal" | "less_than_equal":
            bad(name, _out_of_range(field, value))
        case "float_type" if _is_whole(value):  # of more digits than a float can hold
            bad(name, _out_of_range(field, value))
        case "float_type" | "finite_number":
            bad(name, f"must be a number, not {shown(value)}", "invalid_type")
        case "string_too_long":
            most = problem["ctx"]["max_length"]
            bad(name, f"{len(value)} characters; at most {most} are read: shorten it")
    text = text_of(name, value)  # what is left is about texts
    bad(name, f"{text[:40]!r} is not one of {', '.join(get_args(field.annotation))}")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _out_of_range(field: FieldInfo, value: float) -> str:
    low = next(bound.ge for bound in field.metadata if isinstance(bound, Ge))
    high = next(bound.le for bound in field.metadata if isinstance(bound, Le))
    return f"{brief(value)} is out of range: {_plain(low)} to {_plain(high)}"


def _plain(bound: object) -> str:
    return f"{bound:g}" if isinstance(bound, float) else str(bound)


class Once(Generic[T]):
    """What is built of a worker's settings and its model: it has one of each."""

    def __init__(self, build: Callable[[Settings, ModelInfo], T]) -> None:
        self._build = build
        self._known: tuple[Settings, ModelInfo, T] | None = None

    def __call__(self, settings: Settings, info: ModelInfo) -> T:
        known = self._known
        if known is None or known[0] is not settings or known[1] is not info:
            known = self._known = settings, info, self._build(settings, info)
        return known[2]
