"""``scripts/prove``: the long proofs one after the other, each with a verdict.

Each plays on a cell of its own, which it starts and ends; reports are in ``var/prove/reports``.
Exit code 0: all hold; 1: one does not; 2: misuse.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from deploy import output
from deploy.config import ROOT
from deploy.host.utf8 import speak_utf8
from loadtest.crash_jobs import free_ports

CONFIG = """
[cell]
name = "prove"
var_dir = "{folder}"
[listen]
port = {port}
[ops]
port = {ops_port}
"""
"""The default cell, beside the one that may run here."""


@dataclass(frozen=True)
class Proof:
    """``command`` is run in the checkout; ``minutes`` are those of two cores."""

    shows: str
    command: tuple[str, ...]
    minutes: int


def _scenario(name: str, *options: str) -> tuple[str, ...]:
    return "loadtest/run", name, *options


SHORT = {
    "basics": Proof(
        "a worker killed, hanging, stopped and drained under load: no request is lost",
        _scenario("basics"),
        3,
    ),
    "crash-short": Proof(
        "six jobs, something killed in the middle of each: every picture once, the right one",
        ("loadtest/crash-jobs", "--rounds", "6"),
        1,
    ),
}
LONG = {
    "crash": Proof(
        "the same with a hundred jobs",
        ("loadtest/crash-jobs",),
        15,
    ),
    "failover": Proof(
        "20 users, something breaks every ten seconds: nobody sees an error",
        _scenario("failover"),
        3,
    ),
    "mixed": Proof(
        "pictures from text, from pictures, within masks and with adapters while a worker is "
        "killed, hangs, is drained, and all are restarted: each is right, no request is lost",
        _scenario("mixed"),
        4,
    ),
    "faults": Proof("what users see of each fault", _scenario("faults"), 15),
    "rolling": Proof(
        "a rolling restart and two new configurations lose nothing", _scenario("rolling"), 7
    ),
    "versions": Proof(
        "good, broken and migrating versions, upgrades killed at each step, under load: "
        "no request is lost",
        ("env", "PROVE=1", "TEST_PROCESSES=0", "scripts/test", "tests/cluster/test_versions.py"),
        6,
    ),
    "rollouts": Proof(
        "commands, guard and supervisord killed at every step and at random, power cut, full disk, "
        "20 clients: nothing is lost",
        ("env", "PROVE=1", "TEST_PROCESSES=0", "scripts/test", "tests/cluster/test_rollouts.py"),
        10,
    ),
    "proxies": Proof(
        "nginx, Apache, HAProxy, Caddy and lighttpd in front, as docs/proxies.md writes them",
        (
            "env",
            "PROVE=proxies",
            "TEST_PROCESSES=0",
            "scripts/test",
            "tests/cluster/test_proxies.py",
        ),
        2,
    ),
    "bundle": Proof(
        "from nothing but a bundle, a bare Debian without any network installs itself and draws",
        ("env", "PROVE=bundle", "TEST_PROCESSES=0", "scripts/test", "tests/cluster/test_bundle.py"),
        6,
    ),
    "machines": Proof(
        "bare Debian 12, 13 and sid and Ubuntu 24.04, each with its own Python and nginx, install "
        "the kit by scripts/up and draw; says which it could not have",
        (
            "env",
            "PROVE=machines",
            "TEST_PROCESSES=0",
            "scripts/test",
            "tests/cluster/test_machines.py",
        ),
        60,
    ),
    "chart": Proof(
        "two cells and a front run as the chart's pods would, draw, survive the loss of one, and "
        "end within their grace; one pod of default values draws",
        ("env", "PROVE=chart", "TEST_PROCESSES=0", "scripts/test", "tests/cluster/test_chart.py"),
        3,
    ),
    "clients": Proof(
        "a dozen libraries of others, unmodified: each draws with its own defaults",
        (
            "env",
            "PROVE=1",
            "TEST_PROCESSES=0",
            "scripts/test",
            "tests/cluster/test_client_matrix.py",
        ),
        5,
    ),
    "hosts": Proof(
        "hosts, fronts, database and store of a cluster are lost under load: no request is",
        ("loadtest/hosts",),
        12,
    ),
    "container": Proof(
        "images are built and run without root and with a read-only root: they draw, and end under "
        "load without losing a request",
        (
            "env",
            "PROVE=container",
            "TEST_PROCESSES=0",
            "scripts/test",
            "tests/container",
        ),
        15,
    ),
    "overload": Proof(
        "three times the capacity: what is accepted is drawn, the rest is refused honestly",
        _scenario("overload"),
        5,
    ),
    "soak": Proof(
        "10,000 requests: memory, files, threads and temporary files stay flat",
        _scenario("soak", "--sizes", "64x64", "--steps", "2", "--users", "36"),
        10,
    ),
    "fuzz": Proof(
        "scheduler, driver, forecasts and API hold for requests that nobody thought of",
        ("scripts/fuzz", "30"),
        30,
    ),
}


def run(proof: Proof, folder: Path) -> bool:
    """Whether it holds; what it says is shown as it comes."""
    config, (port, ops_port) = folder / "cluster.toml", free_ports()
    _clear(folder, config)
    text = CONFIG.format(folder=folder, port=port, ops_port=ops_port)
    config.write_text(text, encoding="utf-8")
    environment = {**os.environ, "ZIMAGE_CONFIG": str(config), "PYTHON": sys.executable}
    return not subprocess.run(proof.command, cwd=ROOT, env=environment, check=False).returncode


def _clear(folder: Path, config: Path) -> None:
    """Nothing is left of the proof before but its report."""
    if config.exists():  # one that was killed may have left its cell
        down = [sys.executable, "-m", "deploy.cli.app", "down", "--now", "--config", str(config)]
        subprocess.run(down, cwd=ROOT, stdout=subprocess.DEVNULL, check=True, timeout=120)
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.iterdir():
        if left.name != "reports":
            shutil.rmtree(left) if left.is_dir() else left.unlink()


def main() -> int:
    speak_utf8()
    parser = argparse.ArgumentParser(prog="scripts/prove", description=__doc__)
    parser.add_argument("--short", action="store_true", help=f"{' and '.join(SHORT)} only")
    parser.add_argument(
        "--list", action="store_true", help="what each shows, and how long it takes"
    )
    names = {**SHORT, **LONG}
    parser.add_argument("proof", nargs="*", help="some of them [all but the short ones]")
    given = parser.parse_args()
    if unknown := sorted(set(given.proof) - names.keys()):
        parser.error(f"no such proof: {', '.join(unknown)}; there are {', '.join(names)}")
    chosen = given.proof or list(SHORT if given.short else LONG)
    if given.list:
        for name, proof in names.items():
            output.say(f"{name:12} {proof.minutes:3} min  {proof.shows}")
        return 0
    return _prove({name: names[name] for name in chosen})


def _prove(proofs: dict[str, Proof]) -> int:
    verdicts: list[str] = []
    failed = 0
    for name, proof in proofs.items():
        output.say(f"› {name}, about {proof.minutes} min: {proof.shows}")
        began = time.monotonic()
        holds = run(proof, ROOT / "var" / "prove")
        failed += not holds
        took_s = round(time.monotonic() - began)
        mark = "✓" if holds else "✗"
        verdicts.append(f"{mark} {name} ({took_s // 60}:{took_s % 60:02} min): {proof.shows}")
    for verdict in verdicts:
        output.say(verdict)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
