import os
from pathlib import Path

import pytest

from deploy.config import ROOT, parse
from deploy.layout import Layout, too_long_by, under_root
from worker.bounds import MAX_SOCKET_PATH_BYTES


def test_relative_paths_start_at_the_checkout() -> None:
    assert Layout.of(parse({})).var_dir == ROOT / "var"
    assert under_root("~/x") == Path.home() / "x"


def test_database_is_in_the_state_directory_unless_the_file_says_where() -> None:
    other = {"url": "sqlite:////data/z.db"}
    found = [Layout.of(parse({"cell": {"var_dir": "/v"}, "database": d})) for d in ({}, other)]
    assert [str(layout.database) for layout in found] == ["/v/zimage.db", "/data/z.db"]
    assert [layout.database_url for layout in found] == ["sqlite:////v/zimage.db", other["url"]]


def test_a_server_is_told_by_its_url_and_the_file_of_its_password() -> None:
    url = "postgresql://me@/z?host=a&host=b"
    database = {"url": url, "password_file": "/run/secrets/z y"}
    layout = Layout.of(parse({"cell": {"var_dir": "/v"}, "database": database}))
    assert layout.database_url == f"{url}&password_file=/run/secrets/z%20y"
    assert layout.database_name == "postgresql://me@/z"


def test_run_directory_is_in_the_state_directory_when_sockets_fit() -> None:
    layout = Layout.of(parse({"cell": {"var_dir": "/srv/cell"}}))
    assert layout.run_dir == Path("/srv/cell/run")
    assert layout.gate("w1") == Path("/srv/cell/pool/w1.sock")


def long(letter: str = "x") -> Layout:
    return Layout.of(parse({"cell": {"var_dir": "/srv/" + letter * 100}}))


def test_short_name_is_chosen_when_sockets_would_not_fit() -> None:
    layout = long()
    assert layout.short_link is not None
    assert layout.short_link.parent == Path("/run" if os.getuid() == 0 else "/tmp")
    assert layout.run_dir == layout.short_link / "run"
    assert layout.pool_dir == layout.short_link / "pool"
    assert too_long_by(layout) == 0
    # What commands know a cell by is not behind the name that may be cleaned.
    for path in (layout.processes, layout.up_lock, layout.supervisor_pid, layout.nginx_pid):
        assert path.is_relative_to(layout.var_dir)


def test_short_name_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "short").symlink_to(tmp_path / "elsewhere")
    layout = Layout(tmp_path / "var", tmp_path / "short" / "run", short_link=tmp_path / "short")
    with pytest.raises(PermissionError, match="is not a link of this cell"):
        layout.create()


def test_length_counts_bytes_of_the_gate_too() -> None:
    layout = Layout.of(parse({"cell": {"var_dir": "/v", "run_dir": "/" + "画" * 34}}))
    assert len(os.fsencode(layout.gate("w" * 16))) == MAX_SOCKET_PATH_BYTES + too_long_by(layout)
    assert too_long_by(layout) > 0


def test_two_cells_share_no_run_directory() -> None:
    assert long("a").run_dir != long("b").run_dir


def test_created_run_directory_is_private(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "var", tmp_path / "var" / "run")
    layout.create()
    assert layout.run_dir.stat().st_mode & 0o777 == 0o700
    assert all(directory.is_dir() for directory in layout.directories)


def test_run_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PermissionError, match="not a directory of this user"):
        Layout(tmp_path / "var", tmp_path / "run").create()
