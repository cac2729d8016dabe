"""The files of the images, without an engine: scripts/prove container builds and runs them."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from deploy.cell import Cell
from deploy.config import ROOT, load, patterns
from deploy.rollout.down import end_timeout_s

FOLDER = ROOT / "deploy" / "container"
CONTAINERFILE = (FOLDER / "Containerfile").read_text(encoding="utf-8")
BIN = Path(sys.executable).parent
FIRST_KEY = "keys first"
UP = "up --foreground --no-draw"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    found: dict[str, Any] = YAML(typ="safe").load(FOLDER / "compose.yaml")
    return found


def test_hadolint_finds_nothing_in_the_containerfile() -> None:
    said = subprocess.run([BIN / "hadolint", FOLDER / "Containerfile"], capture_output=True)
    assert (said.returncode, said.stdout) == (0, b"")


def test_compose_file_is_one_by_its_schema() -> None:
    schema = ("--builtin-schema", "vendor.compose-spec")
    said = subprocess.run(
        [BIN / "check-jsonschema", *schema, FOLDER / "compose.yaml"],
        capture_output=True,
        text=True,
    )
    assert said.returncode == 0, said.stdout


def test_images_hold_all_that_a_wheel_does() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        wheel = tomllib.load(file)["tool"]["hatch"]["build"]["targets"]["wheel"]["include"]
    copied = set(re.findall(r"^COPY (?:--\S+ )?(\w+)/", CONTAINERFILE, re.M))
    sent = set(re.findall(r"^!(\w+)$", (ROOT / ".dockerignore").read_text(), re.M))
    for folder in (name.split("/")[1] for name in wheel):
        assert folder in copied
        assert folder in sent


def test_images_install_every_package_by_its_hash() -> None:
    installs = re.findall(r"pip install(?:.|\\\n)*", CONTAINERFILE)
    assert len(installs) == 3
    assert all("--require-hashes" in each and "--no-deps" in each for each in installs)
    extras = set(re.findall(r'^ARG EXTRAS="(.*)"$', CONTAINERFILE, re.M))
    assert len(extras) == 1
    for name in ("kit", "torch-cpu", "torch-cuda", *extras.pop().split()):
        assert (ROOT / "deploy" / "requirements" / f"{name}.txt").is_file()


def test_both_images_run_alike_but_for_what_draws() -> None:
    cell, front = CONTAINERFILE.split("FROM packages AS cell")[1].split(
        "FROM front-packages AS front"
    )

    def told(text: str) -> set[str]:
        return set(re.findall(r"^(?:ENV|USER|VOLUME|STOPSIGNAL|ENTRYPOINT|CMD) .*", text, re.M))

    assert told(cell) == told(front)
    assert "USER 7860:7860" in told(cell)


@pytest.mark.parametrize("name", ["cluster.toml", "compose.toml"])
def test_cells_in_containers_ask_everybody_for_a_key(name: str) -> None:
    config = load(FOLDER / name, pytest.fail)
    assert (config.listen.address, config.listen.auth) == ("0.0.0.0", "keys")
    assert config.cell.var_dir in CONTAINERFILE


def test_compose_waits_longer_than_a_cell_takes_to_end(compose: dict[str, Any]) -> None:
    config = FOLDER / "compose.toml"
    cell = Cell(load(config, pytest.fail), config)
    grace_s = int(compose["services"]["cell"]["stop_grace_period"].removesuffix("s"))
    assert end_timeout_s(cell) <= grace_s


def test_every_service_of_compose_says_how_it_is(compose: dict[str, Any]) -> None:
    without = {n for n, service in compose["services"].items() if "healthcheck" not in service}
    assert without == {"cell"}  # its image has one
    assert "HEALTHCHECK" in CONTAINERFILE
    waited_for = [
        how["condition"]
        for service in compose["services"].values()
        for how in service.get("depends_on", {}).values()
    ]
    assert set(waited_for) == {"service_healthy"}


def test_compose_holds_no_secret_and_publishes_to_this_machine_alone(
    compose: dict[str, Any],
) -> None:
    for service in compose["services"].values():
        for name, value in service.get("environment", {}).items():
            assert "PASSWORD" not in name or value.startswith("/run/secrets/")
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    files = {secret["file"] for secret in compose["secrets"].values()}
    assert all(file.startswith("secrets/") for file in files)
    assert "/deploy/container/secrets/" in (ROOT / ".gitignore").read_text().splitlines()
    assert "deploy/container/secrets" in (ROOT / ".dockerignore").read_text().splitlines()


def test_secrets_are_made_once_and_are_those_that_compose_mounts(
    tmp_path: Path, compose: dict[str, Any]
) -> None:
    script = tmp_path / "secrets.sh"
    script.write_bytes((FOLDER / "secrets.sh").read_bytes())
    made = []
    for _ in range(2):
        subprocess.run(["sh", script], check=True, capture_output=True)
        made.append({p.name: p.read_text() for p in (tmp_path / "secrets").iterdir()})
    assert made[0] == made[1]
    assert {f"secrets/{name}" for name in made[0]} == {
        secret["file"] for secret in compose["secrets"].values()
    }
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
    assert len(set(made[0].values())) == len(made[0])
    [identity] = json.loads(made[0]["s3-config.json"])["identities"]
    for text in identity["credentials"][0].values():
        assert text in made[0]["s3-credentials"]


class Started:
    """What the entrypoint calls, with a ``zimage`` that only writes down how."""

    def __init__(self, folder: Path) -> None:
        self.home, self.secrets = folder / "home", folder / "secrets"
        programs = folder / "bin"
        for made in (self.home, self.secrets, programs):
            made.mkdir()
        self.config = folder / "cluster.toml"
        self.config.write_text("[cell]\n", encoding="utf-8")
        zimage = programs / "zimage"
        zimage.write_text(
            '#!/bin/sh\necho "$*" >>"$HOME/calls"\n[ "$1 $2" != "${FAILS:-}" ] || exit 3\n'
            'case "$*" in\n*--join*) cat >"$HOME/token"; echo "$ZIMAGE_CONFIG" >"$HOME/config" ;;\n'
            "esac\n"
            'while [ "$1" = up ] && ! grep -q "${WAITS_FOR:-}" "$HOME/calls"; do sleep 0.01; done\n'
            '[ "$1" != reload ] || kill -TERM $PPID\n'
        )
        zimage.chmod(0o755)
        self._environment = {
            "PATH": f"{programs}:/usr/bin:/bin",
            "HOME": str(self.home),
            "ZIMAGE_SECRETS": str(self.secrets),
            "ZIMAGE_CONFIG": str(self.config),
        }

    def __call__(self, *words: str, program: str = "entrypoint", **environment: str) -> list[str]:
        self.code = subprocess.run(
            [FOLDER / program, *words], env={**self._environment, **environment}
        ).returncode
        calls = self.home / "calls"
        text = calls.read_text()
        calls.unlink()
        return text.splitlines()


@pytest.fixture
def start(tmp_path: Path) -> Started:
    return Started(tmp_path)


def test_a_start_sees_to_a_key_first(start: Started) -> None:
    assert start("up") == [FIRST_KEY, UP]
    assert start() == [FIRST_KEY, UP]
    (start.secrets / "zimage-key").touch()
    assert start("up") == [f"{FIRST_KEY} --file {start.secrets}/zimage-key", UP]


def test_nothing_starts_where_the_key_is_none(start: Started) -> None:
    assert start("up", FAILS=FIRST_KEY) == [FIRST_KEY]
    assert start.code == 3


def test_a_renewed_certificate_is_looked_for(start: Started) -> None:
    assert sorted(start("up", ZIMAGE_RELOAD_S="0.01", WAITS_FOR="reload")) == [
        FIRST_KEY,
        "reload",
        UP,
    ]


def test_what_is_no_start_is_a_command(start: Started) -> None:
    assert start("doctor") == ["doctor"]
    assert start("zimage", "keys", "list") == ["keys list"]


def test_a_token_makes_it_part_of_a_cluster_with_settings_of_its_own(start: Started) -> None:
    (start.secrets / "zimage-join").write_text("zimage-join.abc\n")
    (start.secrets / "zimage-key").touch()  # keys are the cluster's
    own = start.home / "cluster.toml"
    assert start("up", "--address", "10.0.0.8:7862") == [f"{UP} --join - --address 10.0.0.8:7862"]
    assert (start.home / "token").read_text() == "zimage-join.abc\n"
    assert (start.home / "config").read_text() == f"{own}\n"
    assert own.read_text() == "[cell]\n"
    own.write_text("[cell]\nname = 'joined'\n")
    start("up")
    assert "joined" in own.read_text()  # what joining has written stays


@pytest.mark.parametrize(
    ("pod", "ip", "host", "address"),
    [
        ("zimage-cell-0", "10.1.2.3", "zimage-cell-0", "10.1.2.3:7862"),
        ("zimage-cell-0", "fd00::7", "zimage-cell-0", "[fd00::7]:7862"),
        (
            "a-release-whose-name-is-long-zimage-front-7d9c8b6f5d-x7k2p",
            "10.1.2.3",
            "front-7d9c8b6f5d-x7k2p",
            "10.1.2.3:7862",
        ),
    ],
)
def test_a_pod_has_its_own_name_and_address(
    start: Started, pod: str, ip: str, host: str, address: str
) -> None:
    template, own = start.home / "template", start.home / "own"
    template.write_text('host = "POD_NAME"\naddress = "POD_ADDRESS:7862"\n')
    environment = {"POD_NAME": pod, "POD_IP": ip, "ZIMAGE_CONFIG": str(own)}
    words = ("enrol", str(template), "/run/secrets/authority")
    assert start(*words, program="pod", **environment) == ["cluster enrol /run/secrets/authority"]
    found = dict(line.replace('"', "").split(" = ") for line in own.read_text().splitlines())
    assert found["address"] == address
    assert found["host"].endswith(host)
    assert re.fullmatch(patterns.NAME, found["host"])
    assert re.fullmatch(patterns.HOST_AND_PORT, found["address"])
