from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from deploy.cell import Cell
from deploy.config import parse
from deploy.host import processes
from deploy.host.machine import Machine
from deploy.layout import Layout
from deploy.rendering.plan import plan
from deploy.rendering.render import Host, render
from deploy.rollout import code

CONFIG = parse({})
PLAN = plan(CONFIG, Machine(2, 24.0, 23.0, ()))


def host(**changes: Any) -> Host:
    names = ("nginx_path", "python", "user", "home", "worker_code", "guard_code")
    texts = {n: n.replace("_", "") for n in (*names, "lasting_python", "packages")}
    return replace(Host(**texts, nginx_version=(1, 22, 1), cores=2, nameservers=()), **changes)


def rendered(layout: Layout, **changes: str) -> dict[str, str]:
    return render(CONFIG, PLAN, layout, host(**changes))


@pytest.fixture
def cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cell:
    """One that runs what was rendered last."""
    layout = Layout(tmp_path, tmp_path / "run")
    layout.render_dir.mkdir()
    layout.supervisord_conf.write_text(rendered(layout)["supervisord.conf"])
    monkeypatch.setattr(processes, "members", lambda _: [object()])
    return cast(Cell, SimpleNamespace(layout=layout))


@pytest.mark.parametrize("what", ["worker_code", "guard_code", "packages", "python"])
def test_code_packages_and_python_that_changed_are_to_be_checked(cell: Cell, what: str) -> None:
    assert code.differs(cell, rendered(cell.layout, **{what: "c0de"}))


def test_same_code_is_not_loaded_again(cell: Cell) -> None:
    assert not code.differs(cell, rendered(cell.layout, home="/elsewhere"))


def test_code_that_nothing_runs_needs_no_check(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "members", lambda _: [])
    assert not code.differs(cell, rendered(cell.layout, worker_code="c0de"))


def test_code_that_lies_here_can_be_loaded(tmp_path: Path) -> None:
    assert code.loads(str(tmp_path)).level == "ok"


def test_what_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "ImportError: no such thing" >&2\nexit 1\n')
    python.chmod(0o755)
    found = code.loads(str(tmp_path), str(python))
    assert (found.level, found.text) == ("fail", "cannot be loaded: ImportError: no such thing")
