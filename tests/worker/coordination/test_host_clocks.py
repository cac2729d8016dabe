"""What a front says of a request's beginning, by the clock of the host that draws it."""

import json
import os
from pathlib import Path

import pytest

from deploy.layout import Layout
from worker.coordination.host_clocks import HostClocks, host_list


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    hosts = [{"id": "gpu1", "skew_s": 300.0}, {"id": "f1", "skew_s": -2.0}]
    path = tmp_path / "hosts.json"
    path.write_text(json.dumps({"hosts": hosts}))
    return path


def test_both_clocks_are_compared_by_the_databases(listed: Path) -> None:
    clocks = HostClocks(listed, "gpu1")
    assert clocks.here(1000.0, "f1") == 1302.0
    assert HostClocks(listed, "f1").here(1000.0, "gpu1") == 698.0


def test_unknown_machine_is_taken_to_be_right(listed: Path) -> None:
    assert HostClocks(listed, "gpu1").here(1000.0, "f9") == 1300.0
    assert HostClocks(listed.with_name("none"), "gpu1").here(1000.0, "f1") == 1000.0


def test_list_that_cannot_be_read_changes_nothing(
    listed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.coordination.host_clocks._READ_EVERY_S", 0.0)
    clocks = HostClocks(listed, "gpu1")
    assert clocks.here(0.0, "f1") == 302.0
    for text in ("half of", "[]", '{"hosts": [{"id": "gpu1"}]}'):
        listed.write_text(text, encoding="utf-8")
        assert clocks.here(0.0, "f1") == 302.0
    listed.write_text('{"hosts": [{"id": "gpu1", "skew_s": 1}]}', encoding="utf-8")
    os.utime(listed, (1, 1))
    assert clocks.here(0.0, "f1") == 1.0


def test_membership_writes_what_workers_read(tmp_path: Path) -> None:
    assert Layout(tmp_path, tmp_path / "run").hosts_json == host_list(tmp_path)
