from pathlib import Path

import pytest

from deploy.cell import Cell, CellError
from deploy.config import parse
from deploy.rollout import wait


def test_nobody_is_waited_for_whom_no_supervisord_would_start(tmp_path: Path) -> None:
    cell = Cell(parse({"cell": {"var_dir": str(tmp_path / "var")}}), tmp_path / "cluster.toml")
    cell.layout.create()
    with pytest.raises(CellError, match=r"supervisord is gone; .* is taken over by: zimage up"):
        wait.until_open(cell, ["w1"], timeout_s=5.0, title="starting w1")
