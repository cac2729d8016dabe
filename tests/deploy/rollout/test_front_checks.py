"""What `zimage up` and `zimage doctor` say of a machine's part in a cluster."""

from pathlib import Path

from deploy.cell import Cell
from deploy.config import parse
from deploy.rollout import front_checks
from tests.deploy.certificates import Authority
from tests.deploy.nginx.cluster import SHARED


def cell(tmp_path: Path, role: str) -> Cell:
    address = {} if role == "front" else {"address": "127.0.0.1:7862"}
    told = {"cell": {"var_dir": str(tmp_path)}, "cluster": {"name": "studio", "role": role}}
    told["cluster"] |= address
    return Cell(parse({**SHARED, **told}), tmp_path / "cluster.toml")


def levels(cell: Cell) -> dict[str, str]:
    return {finding.subject: finding.level for finding in front_checks.before_up(cell)}


def test_each_role_needs_its_certificate(tmp_path: Path) -> None:
    both = cell(tmp_path, "both")
    missing = {"certificate of a host": "fail", "certificate of a front": "fail"}
    assert levels(both) == missing
    authority = Authority()
    authority.equip(both.layout, "host")
    assert levels(both)["certificate of a host"] == "ok"
    both.layout.cluster_secret.unlink()
    assert levels(both)["certificate of a host"] == "fail", "its workers could sign nothing"
    authority.equip(both.layout, "host", "front")
    assert set(levels(both).values()) == {"ok"}
    assert levels(cell(tmp_path, "host")).keys() == {"certificate of a host"}


def test_a_certificate_that_is_none_is_told(tmp_path: Path) -> None:
    host = cell(tmp_path, "host")
    Authority().equip(host.layout, "host")
    host.layout.cluster_certificate("host").write_text("none")
    assert levels(host) == {"certificate of a host": "fail"}


def test_a_machine_of_its_own_is_asked_for_nothing(tmp_path: Path) -> None:
    alone = Cell(parse({"cell": {"var_dir": str(tmp_path)}}), tmp_path / "cluster.toml")
    assert levels(alone) == {}
