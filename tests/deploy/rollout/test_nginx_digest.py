"""What nginx is asked and says of a reload, before a cell that is told of it."""

from pathlib import Path

import pytest

from deploy.cell import Cell, CellError
from deploy.config import parse
from deploy.rollout import nginx_digest

ASKED_AT_MOST = 3


@pytest.fixture
def cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cell:
    """Its nginx runs with other files than lie there, however often it is asked."""
    found = Cell(parse({"cell": {"var_dir": str(tmp_path)}}), tmp_path / "cluster.toml")
    found.layout.create()
    monkeypatch.setattr(nginx_digest, "rendered", lambda _: "new")
    answers = iter(["old"] * ASKED_AT_MOST)
    monkeypatch.setattr(nginx_digest, "running", lambda _: next(answers))
    return found


REFUSED = '[emerg] 7#7: invalid number "x" in nginx.conf:1\n'


@pytest.mark.parametrize("before", ["", "[emerg] 7#7: of before\n"])
def test_refusal_of_a_reload_is_told_as_soon_as_nginx_says_it(cell: Cell, before: str) -> None:
    log = cell.layout.nginx_error_log
    log.write_text(before)
    reloaded_at = nginx_digest.errors_bytes(cell)
    log.write_text(before + REFUSED)
    with pytest.raises(CellError, match=r"(?s)refused the new one:\n.*invalid number"):
        nginx_digest.require(cell, reloaded_at=reloaded_at)


def test_refusal_in_a_log_that_was_begun_anew_is_seen(cell: Cell) -> None:
    cell.layout.nginx_error_log.write_text(REFUSED)
    with pytest.raises(CellError, match="refused the new one"):
        nginx_digest.require(cell, reloaded_at=10_000)


@pytest.mark.parametrize(
    ("said", "reloaded_at"),
    [
        ("[emerg] 7#7: bind() to 127.0.0.1:7860 failed (98: Address already in use)\n", 0),
        ("[error] 7#7: *1 connect() failed\n", 0),
        (REFUSED, len(REFUSED)),
        (REFUSED, None),
    ],
    ids=["tried again", "of a request", "of before", "not reloaded"],
)
def test_all_else_is_waited_for(cell: Cell, said: str, reloaded_at: int | None) -> None:
    cell.layout.nginx_error_log.write_text(said)
    with pytest.raises(StopIteration):  # asked again and again
        nginx_digest.require(cell, reloaded_at=reloaded_at)


def test_who_says_nothing_is_not_told_to_have_refused(
    cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nginx_digest, "_TIMEOUT_S", 0.0)
    with pytest.raises(CellError, match="before, 0 s after it was to take another"):
        nginx_digest.require(cell, reloaded_at=0)
