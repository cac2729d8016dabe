"""``Parameters`` as columns: of jobs, whose items share them, and of pictures.

A row of a version that did not know a later field has NULL in it, which is its default: that
version drew so. A row that says more than a worker knows is not drawn by it: see ``needs``.
"""

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from worker.types import KNOWN, ChosenLoras, Field, Parameters, fields_of

_TYPES: Mapping[type, type[sa.types.TypeEngine[Any]]] = {
    int: sa.Integer,
    float: sa.Double,
    str: sa.Text,
    bool: sa.Boolean,
    ChosenLoras: sa.Text,
}


def stored(kind: type[Parameters] = Parameters) -> dict[str, Field]:
    """Fields that tables keep."""
    return {name: field for name, field in fields_of(kind).items() if field.about.jobs}


def columns(kind: type[Parameters] = Parameters) -> list[sa.Column[Any]]:
    """For a table that keeps them."""
    return [
        sa.Column(name, _TYPES[field.kind], nullable=field.about.since > 0)
        for name, field in stored(kind).items()
    ]


def columns_of(table: sa.FromClause) -> list[sa.ColumnElement[Any]]:
    """Those of ``table``, to be selected."""
    return [table.c[name] for name in stored()]


def values(parameters: Parameters) -> dict[str, Any]:
    """By column."""
    return {name: getattr(parameters, name) for name in stored(type(parameters))}


def gathered(row: sa.RowMapping, kind: type[Parameters] = Parameters) -> dict[str, Any]:
    """``row`` with its parameters as one value."""
    rest = dict(row)
    found = {name: rest.pop(name) for name in stored(kind)}
    known = {name: value for name, value in found.items() if value is not None}
    if "lora" in known:
        known["lora"] = ChosenLoras(known["lora"])
    return {**rest, "parameters": kind(**known)}


def needs() -> sa.Column[Any]:
    """Of a table of what is to be drawn: the migration that a worker must know to draw it."""
    return sa.Column("needs", sa.SmallInteger)


def are_known(table: sa.FromClause) -> sa.ColumnElement[bool]:
    """Rows whose parameters this version knows all: while a cell is upgraded, a worker of the
    version before must not draw without a field that it has never heard of."""
    return sa.func.coalesce(table.c.needs, 0) <= KNOWN
