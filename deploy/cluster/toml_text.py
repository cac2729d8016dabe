"""Settings written into a ``cluster.toml`` that a person wrote: comments, order and everything
else in it stay. What comes out is read again and compared, so that nothing is guessed."""

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

Settings = Mapping[str, Any]


class Conflict(Exception):
    """Keys that have another value, one ``key: there …, wanted …`` each."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("; ".join(lines))
        self.lines = lines


def with_settings(text: str, settings: Settings) -> str:
    """``text`` with what ``settings`` has and it has not. ``Conflict`` where it says otherwise;
    ``ValueError`` where its form leaves no place: then a person must write them."""
    present, settings = tomllib.loads(text), _without_empty(settings)
    if conflicts := list(_conflicts(present, settings, "")):
        raise Conflict(conflicts)
    fresh = text
    for section, keys in _sections(settings, ""):
        missing = {key: v for key, v in keys.items() if key not in _at(present, section)}
        if missing:
            fresh = _inserted(fresh, section, missing)
    for name, tables in _lists_of_tables(settings).items():
        if name not in present:
            fresh = _below(fresh, _listed(name, tables))
    try:
        written = tomllib.loads(fresh)
    except tomllib.TOMLDecodeError:
        written = {}
    if written != _merged(present, settings):
        raise ValueError(lines_of(settings))
    return fresh


def lines_of(settings: Settings) -> str:
    """As they would stand in a file of their own."""
    sections = [_written(section, keys) for section, keys in _sections(settings, "") if keys]
    lists = [_listed(name, tables) for name, tables in _lists_of_tables(settings).items()]
    return "\n".join([*sections, *lists])


def _without_empty(settings: Settings) -> dict[str, Any]:
    """A table with nothing in it says nothing."""
    inner = {k: _without_empty(v) if isinstance(v, Mapping) else v for k, v in settings.items()}
    return {key: value for key, value in inner.items() if value != {}}


def _conflicts(present: Any, settings: Settings, before: str) -> Iterator[str]:
    for key, value in settings.items():
        name = f"{before}{key}"
        if not isinstance(present, Mapping) or key not in present:
            continue
        if isinstance(value, Mapping):
            yield from _conflicts(present[key], value, f"{name}.")
        elif present[key] != value:
            yield f"{name}: there {_value(present[key])}, the cluster's {_value(value)}"


def _sections(settings: Settings, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    lists = _lists_of_tables(settings)
    plain = {k: v for k, v in settings.items() if not isinstance(v, Mapping) and k not in lists}
    if plain:
        yield name, plain
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _sections(value, f"{name}.{key}" if name else key)


def _lists_of_tables(settings: Settings) -> dict[str, list[Mapping[str, Any]]]:
    """Such as [[models]], which stand at the top alone."""
    lists = {key: value for key, value in settings.items() if isinstance(value, list) and value}
    return {k: v for k, v in lists.items() if all(isinstance(each, Mapping) for each in v)}


def _listed(name: str, tables: list[Mapping[str, Any]]) -> str:
    return "\n".join(f"[[{name}]]\n{_keys(table)}" for table in tables)


def _inserted(text: str, section: str, keys: Mapping[str, Any]) -> str:
    """Below the section's header, or as a section at the end."""
    header = re.search(rf"^[ \t]*\[[ \t]*{re.escape(section)}[ \t]*\][^\n]*$", text, re.M)
    if header is None:
        return _below(text, _written(section, keys))
    return f"{text[: header.end()]}\n{_keys(keys).rstrip()}{text[header.end() :]}"


def _below(text: str, more: str) -> str:
    joint = "" if not text or text.endswith("\n\n") else "\n" if text.endswith("\n") else "\n\n"
    return f"{text}{joint}{more}"


def _written(section: str, keys: Mapping[str, Any]) -> str:
    return f"[{section}]\n{_keys(keys)}"


def _keys(keys: Mapping[str, Any]) -> str:
    return "".join(f"{key} = {_value(value)}\n" for key, value in keys.items())


def _value(value: Any) -> str:
    """JSON's texts, numbers, lists and truths are TOML's."""
    return json.dumps(value, ensure_ascii=False)


def _at(present: Any, section: str) -> Any:
    for part in section.split("."):
        present = present.get(part, {}) if isinstance(present, Mapping) else {}
    return present


def _merged(present: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    merged = dict(present)
    for key, value in settings.items():
        inner = isinstance(value, Mapping)
        merged[key] = _merged(merged.get(key, {}), value) if inner else value
    return merged
