import venv
from pathlib import Path

import pytest

from deploy.cell import Cell, CellError
from deploy.config import load
from deploy.rollout import environment, operation, releases, upgrade
from deploy.rollout.releases import Releases


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        ("latest", "neither a version, such as 1.2.0, nor a wheel"),
        ("../etc", "neither a version"),
        ("zimage_cluster-1.0.0-py3-none-any.whl", "cannot be read: No such file"),
        ("nonsense.whl", "Invalid wheel filename"),
        ("torch-2.13.0-py3-none-any.whl", "is a wheel of torch, not of zimage-cluster"),
    ],
)
def test_what_is_no_version_is_refused_in_a_line(tmp_path: Path, wanted: str, why: str) -> None:
    with pytest.raises(CellError, match=why):
        upgrade.upgrade(wanted, tmp_path / "cluster.toml", Releases(tmp_path))
    assert [path.name for path in (tmp_path / "releases").iterdir()] == [".lock"]


def test_wheel_that_differs_from_its_sum_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "zimage_cluster-1.0.0-py3-none-any.whl"
    wheel.write_bytes(b"cut")
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  {wheel.name}\n")
    with pytest.raises(CellError, match=r"is not what .*SHA256SUMS says"):
        upgrade.upgrade(str(wheel), tmp_path / "cluster.toml", Releases(tmp_path))


def test_environment_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    wheel = tmp_path / "zimage_cluster-1.0.0-py3-none-any.whl"
    wheel.write_bytes(b"no wheel")
    (tmp_path / "SHA256SUMS").write_text(f"{releases.sha256(wheel)}  {wheel.name}\n")
    installed = Releases(tmp_path)
    with pytest.raises(CellError, match="is no wheel that can be read"):
        upgrade.upgrade(str(wheel), tmp_path / "cluster.toml", installed)
    assert not installed.folder("1.0.0").exists()


def test_package_that_is_missing_is_named(tmp_path: Path) -> None:
    venv.create(tmp_path)
    packages = next((tmp_path / "lib").glob("python*")) / "site-packages"
    (packages / "odd-1.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: odd\nVersion: 1\nRequires-Dist: nowhere-to-be-found\n"
    (packages / "odd-1.dist-info" / "METADATA").write_text(metadata)
    with pytest.raises(CellError, match="odd 1 requires nowhere-to-be-found"):
        environment._pip("--python", str(tmp_path / "bin" / "python"), "check")


def test_rollback_without_a_version_before_says_so(tmp_path: Path) -> None:
    with pytest.raises(CellError, match="no version before this one is here"):
        upgrade.rollback(tmp_path / "cluster.toml", Releases(tmp_path))


@pytest.mark.parametrize(("command", "leads_to"), [("upgrade 1.2", "1.1"), ("rollback", "1.0")])
def test_rollback_of_what_was_cut_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, leads_to: str
) -> None:
    """An upgrade: back to what is current. A rollback: go on with it."""
    config = tmp_path / "cluster.toml"
    config.write_text(f'[cell]\nvar_dir = "{tmp_path}/var"\n')
    installed = Releases(tmp_path)
    for version in ("1.0", "1.1"):
        (installed.folder(version) / "bin").mkdir(parents=True)
        (installed.folder(version) / "bin" / "python").touch()
        installed.switch(installed.folder(version))
    monkeypatch.setattr(Releases, "half_taken", lambda _: ["1.2"])
    cell = Cell(load(config), config)
    with operation.begin(cell, "up", command):
        pass
    assert upgrade._before(config, installed).name == leads_to
