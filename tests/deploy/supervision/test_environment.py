"""What programs of a cell inherit."""

import os
from pathlib import Path

import pytest

from deploy.supervision import supervise


def test_temporary_files_go_into_the_cells_folder_where_tmp_is_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "TMPDIR" not in supervise.environment("/home", tmp_path)
    writable = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != "/tmp" and writable(path, mode))
    assert supervise.environment("/home", tmp_path)["TMPDIR"] == str(tmp_path)
