"""From nothing but a bundle: a bare Debian without any network draws. `scripts/prove bundle`."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.config import ROOT
from tests.cluster.bare_machine import BareMachine, bare_machine

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(1200),
    pytest.mark.skipif("PROVE" not in os.environ, reason="minutes: scripts/prove bundle"),
    pytest.mark.skipif(os.getuid() != 0, reason="a machine in a folder is made by root"),
    pytest.mark.skipif(not shutil.which("mmdebstrap"), reason="no mmdebstrap"),
]

_INSIDE = """
set -eu
test "$(grep -c : /proc/net/dev)" = 1   # lo alone
cd /srv/zimage
scripts/up --bundle ../zimage.bundle --signers ../signers
test ! -e .bundle
scripts/up
scripts/zimage down
"""


@pytest.fixture(scope="module")
def signers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("signers")
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "key")], check=True
    )
    public = (folder / "key.pub").read_text("utf-8")
    (folder / "signers").write_text(f'ops namespaces="zimage-bundle" {public}', "utf-8")
    return folder


@pytest.fixture(scope="module")
def bundle(signers: Path) -> Path:
    """BUNDLE names one that is there, with ``key`` and ``signers`` beside it."""
    if given := os.environ.get("BUNDLE"):
        shutil.copy(Path(given).with_name("signers"), signers / "signers")
        return Path(given)
    path = signers / "zimage.bundle"
    words = ["--model", str(ROOT / "tinymodel" / "weights"), "--torch", "cpu"]
    words += ["--sign", str(signers / "key"), "--out", str(path)]
    command = [sys.executable, "-m", "deploy.cli.app", "bundle", *words]
    subprocess.run(command, cwd=ROOT, check=True, timeout=900)
    return path


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareMachine]:
    """With the client of SSH, as Debian's installer leaves it."""
    said = Path("/etc/os-release").read_text("utf-8")
    suite = next(
        line.partition("=")[2] for line in said.splitlines() if line.startswith("VERSION_CODENAME")
    )
    folder = tmp_path_factory.mktemp("machine")
    with bare_machine(folder, suite, "--include=openssh-client") as made:
        yield made


def test_a_bare_machine_without_a_network_draws(
    machine: BareMachine, bundle: Path, signers: Path
) -> None:
    srv = machine.root / "srv"
    shutil.copy(bundle, srv / "zimage.bundle")
    shutil.copy(signers / "signers", srv / "signers")
    subprocess.run(["tar", "xf", bundle, "-C", srv, "kit"], check=True)
    (srv / "kit").rename(srv / "zimage")
    said = machine.run(_INSIDE)
    assert "is signed by ops" in said
    assert "install nginx (apt-get)" in said
    assert "cluster.toml is made: it draws with models/weights" in said
    assert " drew " in said
    assert "nothing to change" in said
