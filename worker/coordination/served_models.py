"""The models of a cell that has several, as ``models.json`` lists them: `zimage up` writes it anew
while workers run, so that none must restart for another model's sake. And those of a whole cluster,
in a file of the same form.

Each has a pool of its own in nginx, which is known there by what ``pool_of`` makes of its name.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from worker import log


def pool_of(name: str) -> str:
    """What nginx calls the workers of the model ``name``: the same wherever it stands in the list,
    so that old and new configurations mean the same by it."""
    return hashlib.sha256(name.lower().encode()).hexdigest()[:10]


@dataclass(frozen=True)
class ServedModel:
    """``source``: as ``cluster.toml`` names it, by which clients may ask for it, too. ``about``:
    how ``/v1/models`` shows one that other hosts serve."""

    name: str
    aliases: tuple[str, ...] = ()
    source: str = ""
    about: Mapping[str, Any] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """What jobs may call it."""
        return self.name, *self.aliases

    @property
    def pool(self) -> str:
        return pool_of(self.name)


@dataclass(frozen=True)
class ServedModels:
    """In the order of the file: the first draws what names none."""

    all: tuple[ServedModel, ...]

    @cached_property
    def by_name(self) -> Mapping[str, ServedModel]:
        """By each name for it, in small letters. What a model is called goes before where one
        comes from: two may come from the same."""
        known = {m.name.lower(): m for m in self.all}
        for model in self.all:
            for alias in model.aliases:
                known.setdefault(alias.lower(), model)
        for model in self.all:
            for source in (model.source, model.source.rstrip("/").rsplit("/", 1)[-1]):
                known.setdefault(source.lower(), model)
        return known

    def asked(self, name: str) -> ServedModel | None:
        """Which of them ``name`` means; the first for an empty one, None for one of no model."""
        return self.by_name.get(name.lower()) if name else self.all[0]


def dump(models: Sequence[ServedModel]) -> str:
    """The text of ``models.json``."""
    told = [{k: v for k, v in asdict(m).items() if v is not None} for m in models]
    return json.dumps(told, indent=2, ensure_ascii=False) + "\n"


class ServedModelsFile:
    """What ``path`` says now: read again whenever it was replaced."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: ServedModels | None = None
        self._seen: tuple[int, int] | None = None

    def read(self) -> ServedModels | None:
        """None: the cell has one model, or nobody has written the file yet. Of a file that is gone
        or half of one, what it said before."""
        try:
            status = self._path.stat()
            seen = status.st_ino, status.st_mtime_ns
            if seen != self._seen:
                self._known = _parsed(json.loads(self._path.read_bytes()))
                self._seen = seen
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError, KeyError) as error:
            log.failure("the list of models cannot be read", error)
        return self._known


def _parsed(told: Any) -> ServedModels | None:
    known = {field.name for field in fields(ServedModel)}
    models = [{key: value for key, value in each.items() if key in known} for each in told]
    found = tuple(
        ServedModel(**{**each, "aliases": tuple(each.get("aliases", ()))}) for each in models
    )
    return ServedModels(found) if found else None
