"""From a bare machine to a picture by scripts/up, on each system and its Python and nginx:
`scripts/prove machines`. MACHINES=trixie,noble in its environment: these alone."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from deploy.config import ROOT
from loadtest.traffic import check_picture
from tests.cluster.bare_machine import BareMachine, bare_machine
from tests.ports import free_ports

_CHOSEN = [name for name in os.environ.get("MACHINES", "").split(",") if name]

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(2400),
    pytest.mark.skipif("PROVE" not in os.environ, reason="an hour: scripts/prove machines"),
    pytest.mark.skipif(os.getuid() != 0, reason="a machine in a folder is made by root"),
    pytest.mark.skipif(not shutil.which("mmdebstrap"), reason="no mmdebstrap"),
]


@dataclass(frozen=True)
class System:
    name: str
    suite: str
    mirror: str
    python: str
    nginx: str
    components: str = "main"


DEBIAN, UBUNTU = "http://deb.debian.org/debian", "http://archive.ubuntu.com/ubuntu"
SYSTEMS = (
    System("Debian 12", "bookworm", DEBIAN, "Python 3.11.", "nginx/1.22."),
    System("Debian 13", "trixie", DEBIAN, "Python 3.13.", "nginx/1.26."),
    System("Ubuntu 24.04", "noble", UBUNTU, "Python 3.12.", "nginx/1.24.", "main,universe"),
    System("Debian sid", "sid", DEBIAN, "Python 3.14.", "nginx/1."),  # its nginx moves on
)
CONFIG = "[listen]\nport = {}\n[ops]\nport = {}\n"
"""It shares this machine's network, where another cell may have the default ports."""
BODY = {"prompt": "a large red circle on a white background", "size": "256x256"}
_OLD_LISTS = '--aptopt=Acquire::Check-Valid-Until "false"'
"""A mirror may be a snapshot; its signatures are checked all the same."""
_UP = """
set -eu
cd /srv/zimage-cluster
scripts/up
scripts/zimage status
curl -fsS "$URL/v1/images/generations" -H 'Content-Type: application/json' -d "$BODY" -o answer.json
scripts/up
scripts/zimage doctor
scripts/down
.venv/bin/python -V
nginx -v
"""
_LOCK = """
set -eu
cd /srv/zimage-cluster
.venv/bin/python -m pip download -qq --no-deps --require-hashes --only-binary :all: -d /tmp/locked \
    $(for name in kit alarms modelscope otel postgres s3; do
        echo -r deploy/requirements/$name.txt
    done)
rm -r /tmp/locked
"""


@pytest.fixture(scope="module", params=SYSTEMS, ids=lambda system: system.suite if system else "")
def system(request: pytest.FixtureRequest) -> System:
    wanted: System = request.param
    if _CHOSEN and wanted.suite not in _CHOSEN:
        pytest.skip(f"{wanted.name} is not in MACHINES")
    try:
        httpx.head(f"{wanted.mirror}/dists/{wanted.suite}/InRelease").raise_for_status()
    except httpx.HTTPError as error:
        pytest.skip(f"{wanted.name} did not run: {wanted.mirror} is not to be had here: {error}")
    return wanted


@pytest.fixture(scope="module")
def machine(system: System, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareMachine]:
    """As a newcomer has it: apt, curl and a clone."""
    folder = tmp_path_factory.mktemp(system.suite)
    options = [_OLD_LISTS, f"--components={system.components}", "--include=apt,curl"]
    if system.mirror == UBUNTU:
        options.append(f"--keyring={_ubuntu_keyring(folder)}")
    with bare_machine(folder, system.suite, *options, mirror=system.mirror) as made:
        clone = ["git", "clone", "-q", "--depth", "1", f"file://{ROOT}"]
        subprocess.run([*clone, str(made.root / "srv" / "zimage-cluster")], check=True, timeout=60)
        yield made


def test_a_bare_machine_draws_by_scripts_up(system: System, machine: BareMachine) -> None:
    port, ops_port = free_ports(2)
    checkout = machine.root / "srv" / "zimage-cluster"
    (checkout / "cluster.toml").write_text(CONFIG.format(port, ops_port), encoding="utf-8")
    variables = {"URL": f"http://127.0.0.1:{port}", "BODY": json.dumps(BODY), **_pip(machine)}
    said = machine.run(_UP, network=True, environment=variables, borrowed=_wheels(), timeout_s=2000)
    assert "install nginx (apt-get)" in said
    assert "install python3 python3-venv (apt-get)" in said
    assert "pool 3 of 3" in said
    assert "nothing to change" in said
    assert "none is left" in said
    assert f"\n{system.python}" in said
    assert f"nginx version: {system.nginx}" in said
    answer = json.loads((checkout / "answer.json").read_text("utf-8"))
    assert not check_picture(answer["data"][0], BODY, synthetic=False)


def test_what_a_release_installs_there_has_wheels_and_their_hashes(machine: BareMachine) -> None:
    """For the Python of the machine, and nothing is compiled. torch has a list of its own."""
    machine.run(_LOCK, network=True, environment=_pip(machine), borrowed=_wheels())


def _pip(machine: BareMachine) -> dict[str, str]:
    """pip there asks whom pip here asks: a company's index, and by its authority."""
    asked = {
        name: value
        for name, value in os.environ.items()
        if name.startswith("PIP_") or name.lower() in ("http_proxy", "https_proxy", "no_proxy")
    }
    if authorities := asked.get("PIP_CERT"):
        shutil.copy(authorities, machine.root / "srv" / "authorities.pem")
        asked["PIP_CERT"] = "/srv/authorities.pem"
    return asked


def _wheels() -> tuple[str, ...]:
    found = os.environ.get("PIP_FIND_LINKS", "").split()
    return tuple(path for path in found if Path(path).is_dir())


def _ubuntu_keyring(folder: Path) -> Path:
    """Ubuntu's keys as Debian signs them; this machine's Debian may have none."""
    keys = folder / "keys"
    package = ["--variant=extract", "--include=ubuntu-archive-keyring", "trixie", str(keys), DEBIAN]
    subprocess.run(["mmdebstrap", _OLD_LISTS, *package], check=True, timeout=300)
    return keys / "usr/share/keyrings/ubuntu-archive-keyring.gpg"
