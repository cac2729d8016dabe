import json
import os
from pathlib import Path
from typing import Any

import pytest

from deploy.cell import Cell
from deploy.config import parse
from deploy.host import processes
from deploy.rollout import cluster_checks

CLUSTER = {"name": "studio", "host": "a", "address": "10.0.0.7:7862"}


@pytest.fixture
def cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cell:
    """It runs, as far as commands can tell, without a supervisord."""
    data = {
        "cell": {"var_dir": str(tmp_path)},
        "cluster": CLUSTER,
        "database": {"url": "postgresql://zimage@db1/zimage"},
        "objects": {
            "url": "s3://pictures",
            "endpoint": "http://10.0.0.9:9",
            "credentials_file": "s3-key",
        },
    }
    monkeypatch.setattr(processes, "members", lambda _: [object()])
    found = Cell(parse(data), tmp_path / "cluster.toml")
    found.layout.create()
    return found


def host(id: str, **changes: Any) -> dict[str, Any]:
    told = {
        "id": id,
        "role": "host",
        "version": "1.0.0",
        "skew_s": 0.1,
        "wanted": "in",
        "lost_at": None,
        "facts": {},
    }
    return {**told, **changes}


def found(cell: Cell, *hosts: dict[str, Any]) -> dict[str, list[str]]:
    """Texts by level."""
    cell.layout.hosts_json.write_text(json.dumps({"hosts": hosts}))
    levels: dict[str, list[str]] = {}
    for finding in cluster_checks.doctor(cell):
        levels.setdefault(finding.level, []).append(finding.text)
    return levels


def test_a_host_among_others_is_well(cell: Cell) -> None:
    assert found(cell, host("a"), host("b")) == {"ok": ["a is one of 2 machines"]}


def test_skew_versions_and_lost_hosts_are_told(cell: Cell) -> None:
    odd = host("b", version="1.1.0", skew_s=-2.5, lost_at=100.0)
    gone = host("c", version="0.9.0", skew_s=9.0, wanted="removed")
    assert found(cell, host("a"), odd, gone)["warn"] == [
        "its clock is -2.5 s off the database's",
        "hosts run 1.0.0 and 1.1.0",
        "no front hears b",
    ]


def test_files_of_a_model_that_differ_are_told(cell: Cell) -> None:
    one, other = ({"serves": [{"name": "turbo", "digest": digest}]} for digest in "xy")
    told = found(cell, host("a", facts=one), host("b", facts=other))
    assert told["warn"] == ["model turbo is another one on each of: a; b"]


def test_two_machines_of_one_name_are_told(cell: Cell) -> None:
    told = found(cell, host("a", facts={"twin": True}))
    assert told["fail"] == ["two machines write as a: fronts send to one and to the other"]


def test_a_list_that_nobody_writes_any_more_is_told(cell: Cell) -> None:
    cell.layout.hosts_json.write_text(json.dumps({"hosts": [host("a")]}))
    os.utime(cell.layout.hosts_json, (1, 1))
    [old, _] = cluster_checks.doctor(cell)
    assert (old.level, "s old" in old.text) == ("warn", True)


def test_a_host_without_a_list_and_one_that_was_removed_are_not_well(cell: Cell) -> None:
    [missing] = cluster_checks.doctor(cell)
    assert (missing.level, missing.text) == ("fail", "nothing is known of other hosts")
    assert found(cell, host("a", wanted="removed"))["fail"] == ["a was removed"]


def test_a_host_of_its_own_has_nothing_to_check(tmp_path: Path) -> None:
    assert list(cluster_checks.doctor(Cell(parse({}), tmp_path / "cluster.toml"))) == []
