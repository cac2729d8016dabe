"""Problems in words: one line each, ``key.path: what is wrong; remedy``."""

import difflib
import itertools
from typing import get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from deploy.config import patterns
from deploy.config.schema import ClusterConfig, NamedModel, WorkerGroup

_ENTRIES: dict[int | str, type[BaseModel]] = {"workers": WorkerGroup, "models": NamedModel}


def lines_of(details: list[ErrorDetails]) -> list[str]:
    lines: list[str] = []
    # A number-or-"auto" key that is wrong fails once as a number and once as "auto": one line.
    for path, group in itertools.groupby(details, key=lambda d: _path(d["loc"])):
        alike = list(group)
        lines += _lines(path, alike[0], or_auto=_fails_as_auto(alike[-1]) and len(alike) > 1)
    return lines


def _fails_as_auto(detail: ErrorDetails) -> bool:
    return detail["type"] == "literal_error" and detail["ctx"]["expected"] == "'auto'"


def _lines(path: str, detail: ErrorDetails, *, or_auto: bool) -> list[str]:
    context = detail.get("ctx", {})
    if detail["type"] == "problems":
        return str(context["lines"]).split("\n")
    if detail["type"] == "problem":
        return [f"{path}.{context['key']}: {context['what']}; {context['remedy']}"]
    what = _what(detail)
    if "input" in detail and what.startswith("must"):
        what += ' or "auto"' if or_auto else ""
        what += f", not {_toml(detail['input'])}"
    return [f"{path}: {what}; {_remedy(detail)}"]


def _keys(loc: tuple[int | str, ...]) -> list[int | str]:
    # Without the names of union branches, which pydantic adds and the file does not have.
    branches = {"auto", "groups", "[key]"}
    return [k for k in loc if isinstance(k, int) or not (k in branches or _is_branch(k))]


def _is_branch(key: str) -> bool:
    return key in {"int", "float"} or key.startswith(("constrained-", "literal["))


def _path(loc: tuple[int | str, ...]) -> str:
    path = ""
    for key in _keys(loc):
        path += f"[{key}]" if isinstance(key, int) else f".{key}" if path else key
    return path or "cluster.toml"


def _what(detail: ErrorDetails) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        return "unknown key"
    if kind == "missing":
        return "missing"
    words = {
        "int_type": "must be a whole number",
        "float_type": "must be a number",
        "bool_type": "must be true or false",
        "list_type": "must be a list in [ ]",
        "string_type": "must be text in quotes",
        "dict_type": "must be a table",
        "model_type": "must be a table",
        "tuple_type": 'must be "auto" or [[workers]] tables',
        "literal_error": f"must be {str(context.get('expected')).replace(chr(39), chr(34))}",
        "greater_than_equal": f"must be at least {context.get('ge')}",
        "greater_than": f"must be more than {context.get('gt')}",
        "less_than_equal": f"must be at most {context.get('le')}",
        "string_too_long": f"must be at most {context.get('max_length')} characters",
        "string_too_short": "must not be empty",
        "too_short": "must not be empty",
        "string_pattern_mismatch": patterns.WORDS.get(str(context.get("pattern")), "must match"),
    }
    return words.get(kind, detail["msg"])


def _remedy(detail: ErrorDetails) -> str:
    keys = _keys(detail["loc"])
    parent = _model_at(keys[:-1])
    name = str(keys[-1]) if keys else ""
    if parent is None or not keys:
        return f"see [{keys[0]}] in deploy/cluster.toml" if keys else "see deploy/cluster.toml"
    if detail["type"] == "extra_forbidden":
        return _did_you_mean(name, parent)
    field = parent.model_fields.get(name)
    if field is None or field.is_required() or field.default_factory:
        return f"see [{keys[0]}] in deploy/cluster.toml"
    if isinstance(field.default, BaseModel):
        table = ".".join(map(str, keys))
        return f"write [{table}] on a line of its own"
    return f"the default is {_toml(field.default)}"


def _toml(value: object) -> str:
    return (
        f'"{value}"'
        if isinstance(value, str)
        else str(value).lower()
        if isinstance(value, bool)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def _did_you_mean(name: str, model: type[BaseModel]) -> str:
    keys = {key: key for key in model.model_fields}
    for table in model.model_fields:
        inner = _model_in(model, table)
        keys |= {key: f"{table}.{key}" for key in inner.model_fields} if inner else {}
    near = difflib.get_close_matches(name, keys, n=1, cutoff=0.6)
    if near:
        return f'did you mean "{keys[near[0]]}"?'
    return f"this table has {', '.join(model.model_fields)}"


def _model_at(keys: list[int | str]) -> type[BaseModel] | None:
    """The section that ``keys`` lead to, or None where they lead to no section."""
    model: type[BaseModel] = ClusterConfig
    for key in keys:
        if key in _ENTRIES:
            model = _ENTRIES[key]
        elif isinstance(key, int):
            continue
        elif key in model.model_fields:
            inner = _model_in(model, key)
            if inner is None:
                return None
            model = inner
    return model


def _model_in(model: type[BaseModel], key: str) -> type[BaseModel] | None:
    kind = model.model_fields[key].annotation
    kinds = [kind, *get_args(kind)]
    return next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)
