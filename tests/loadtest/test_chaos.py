from contextlib import nullcontext
from pathlib import Path

import pytest

from deploy.config import ClusterConfig
from deploy.layout import Layout
from loadtest import chaos
from loadtest.faults import Cell
from loadtest.faults.catalogue import FAULTS, Fault


class Whole(Cell):
    def serves(self, *workers: str) -> bool:
        return True


def test_no_fault_is_held_for_longer_than_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = Fault("nothing", lambda *_: nullcontext(), 600.0, of_worker=False, leaves=False)
    monkeypatch.setitem(FAULTS, "long", long)
    config = ClusterConfig.model_validate({"cell": {"var_dir": str(tmp_path)}})
    done = chaos.inject(Whole(Layout.of(config), ""), "long", "", max_hold_s=0.1)
    assert done.back_s is not None
    assert done.back_s < 100
    assert done.error == ""
