import threading
import time
from pathlib import Path

import pytest

from deploy.config import ClusterConfig
from loadtest import chaos
from loadtest.chaos import Injected
from loadtest.faults import Cell
from loadtest.faults.catalogue import Fault
from loadtest.observer import Observer
from loadtest.runner import Options, Runner


def test_no_two_faults_hit_the_same_worker_or_the_whole_cell_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ClusterConfig.model_validate({"cell": {"var_dir": str(tmp_path)}})
    cell = Cell.of(config, tmp_path / "cluster.toml")
    now: list[str] = []
    clashes: list[str] = []
    together: set[int] = set()
    lock = threading.Lock()

    def inject(_: Cell, name: str, worker: str, max_hold_s: float) -> Injected:
        with lock:
            clashes.extend(other for other in now if other == worker)
            now.append(worker)
            together.add(len(now))
        time.sleep(0.05)
        with lock:
            now.remove(worker)
        return Injected(time.time(), name, worker, 0.0, 0.0)

    def targets(_: Cell, fault: Fault) -> list[str]:
        return ["w1", "w2"] if fault.of_worker else [""]

    monkeypatch.setattr(chaos, "inject", inject)
    monkeypatch.setattr(chaos, "targets", targets)
    options = Options(every_s=0.01, faults=("kill", "pause", "slow-loris"))
    stage = Runner(cell, config, tmp_path / "cluster.toml", tmp_path, options, Observer(cell))
    while len(stage.faults) < 20 or max(together) == 1:  # they overlap all the same
        stage.inject_until(time.time() + 0.2)
    assert {fault.worker for fault in stage.faults} == {"w1", "w2", ""}
    assert clashes == []
