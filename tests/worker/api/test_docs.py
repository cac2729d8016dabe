"""docs/api.md says what the code does."""

import re
from pathlib import Path

import pytest

from worker import app, errors
from worker.api.schemas import synonyms, wire

TEXT = (Path(__file__).parents[3] / "docs" / "api.md").read_text()


@pytest.mark.parametrize("field", [*wire.KNOWN, *synonyms.of(wire.KNOWN)])
def test_every_field_is_documented(field: str) -> None:
    assert f"`{field}`" in TEXT


@pytest.mark.parametrize("error", errors.STATUS, ids=lambda error: error.__name__)
def test_every_status_and_code_is_documented(error: type[errors.ZimageError]) -> None:
    row = next(line for line in TEXT.splitlines() if line.startswith(f"| {errors.STATUS[error]} "))
    assert row
    assert f"`{error.code}`" in TEXT


@pytest.mark.parametrize(
    "route", [r for r in app.ROUTES if "files" not in r.path], ids=lambda r: r.path
)
def test_every_route_is_documented(route: object) -> None:
    path = re.sub(":[a-z]+", "", route.path)  # type: ignore[attr-defined]
    assert path in TEXT
