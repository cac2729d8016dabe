"""Objectives of a scenario, and whether figures meet them."""

import difflib
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

DEFAULT_PATH = Path(__file__).with_name("slo.toml")


class Bound(BaseModel):
    """``optional``: a figure that the run did not produce is no miss."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    min: float | None = None
    max: float | None = None
    optional: bool = False

    @model_validator(mode="after")
    def _bounds_something(self) -> "Bound":
        if self.min is None and self.max is None:
            raise ValueError("needs min or max")
        return self

    def __str__(self) -> str:
        parts = [f"≥ {self.min:g}"] if self.min is not None else []
        parts += [f"≤ {self.max:g}"] if self.max is not None else []
        return ", ".join(parts)


class SloError(ValueError):
    """The file of objectives is wrong; the message names the key."""


@dataclass(frozen=True)
class Objective:
    """One figure and its bound. ``missed_by`` is 0 where it is met, nan where not measured."""

    name: str
    bound: str
    value: float
    missed_by: float

    @property
    def met(self) -> bool:
        return self.missed_by == 0

    def __str__(self) -> str:
        if self.met:
            return f"{self.name} {self.value:.4g} ({self.bound})"
        if math.isnan(self.value):
            return f"{self.name} was not measured ({self.bound})"
        return f"{self.name} {self.value:.4g} missed {self.bound} by {self.missed_by:.4g}"


def load(path: Path, scenario: str) -> dict[str, Bound]:
    """The bounds for ``scenario``; ``SloError`` where there are none or the file is wrong."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise SloError(f"{path}: {error}") from error
    if scenario not in tables:
        near = difflib.get_close_matches(scenario, tables)
        hint = f'; did you mean "{near[0]}"?' if near else ""
        raise SloError(f"{path}: no objectives for [{scenario}]{hint}")
    try:
        return {name: Bound.model_validate(bound) for name, bound in tables[scenario].items()}
    except ValidationError as error:
        raise SloError(f"{path}: [{scenario}]: {error}") from error


def judge(bounds: Mapping[str, Bound], measured: Mapping[str, float]) -> list[Objective]:
    """Every objective, in the file's order."""
    return [
        _judge(name, bound, measured.get(name, math.nan))
        for name, bound in bounds.items()
        if not (bound.optional and name not in measured)
    ]


def _judge(name: str, bound: Bound, value: float) -> Objective:
    over = value - bound.max if bound.max is not None else -math.inf
    under = bound.min - value if bound.min is not None else -math.inf
    missed = math.nan if math.isnan(value) else max(0.0, over, under)
    return Objective(name, str(bound), value, missed)
