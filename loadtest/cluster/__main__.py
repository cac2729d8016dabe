"""``loadtest/hosts``: a cluster in namespaces on this machine, and what may happen to it.

    loadtest/hosts host-dropped front-killed      # or all, without a name

Real PostgreSQL (primary and standby), a real S3-compatible store, two fronts that share an address,
three hosts. Exit code 0: nothing was lost and all held; 1: not; 2: misuse. The figures are in
var/hosts/report.json, or where --out says.
"""

import argparse
import itertools
import json
import signal
import string
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deploy import output
from deploy.config import ROOT
from deploy.host.utf8 import speak_utf8
from loadtest.cluster import lease_clients, scale
from loadtest.cluster.machines import Failed
from loadtest.cluster.network import NoNetwork
from loadtest.cluster.platform import FRONTS, HOSTS, JOINING, WORKERS, Platform, platform
from loadtest.cluster.scenarios import SCENARIOS, Stage

UPGRADES = {"rolling-upgrade", "broken-upgrade"}
"""Scenarios of machines that run releases."""
CUT_SHORT = "cut short"
WARM = 20
"""Answers before something happens."""


_MANY = 5


def _names(count: int) -> list[str]:
    """Of so many hosts, as those of three are called."""
    letters = (letter for letter in string.ascii_lowercase if letter != JOINING)
    return list(itertools.islice(letters, count))


def _workers(hosts: int) -> int:
    """Of each: this machine has room for some tens of processes that draw."""
    return WORKERS if hosts <= _MANY else 1


def play(name: str, on: Platform) -> dict[str, Any]:
    """One scenario under load; its verdict."""
    scenario = SCENARIOS[name]
    output.say(f"› {name}: {scenario.__doc__}")
    stage, began = Stage(on, on.load()), time.monotonic()
    try:
        with stage.load.running():
            stage.load.until_answered(WARM)
            scenario(stage)
            stage.load.until_answered(WARM)
    except (Failed, TimeoutError, LookupError, RuntimeError) as problem:
        stage.notes.failures.append(str(problem))
    except KeyboardInterrupt:
        stage.notes.failures.append(CUT_SHORT)
    lost = stage.load.lost
    verdict = {
        "name": name,
        "holds": not lost and not stage.notes.failures,
        "answers": len(stage.load.records),
        "lost": len(lost),
        "refused_honestly": len(stage.load.came_again),
        "refusals": len(stage.load.refusals),
        "streams_resumed": stage.load.resumed,
        "asked_again": stage.load.asked_again,
        "seconds": round(time.monotonic() - began),
        **asdict(stage.notes),
        "answers_by_worker": stage.load.answers_by_worker,
        "examples": [record.error for record in lost[:3]],
    }
    _tell(verdict)
    return verdict


def _played(names: Sequence[str], on: Platform) -> Iterator[dict[str, Any]]:
    for name in names:
        yield (verdict := play(name, on))
        if CUT_SHORT in verdict["failures"]:
            return


def _tell(verdict: dict[str, Any]) -> None:
    mark = "✓" if verdict["holds"] else "✗"
    figures = "".join(f", {what} {value:g}" for what, value in verdict["measured"].items())
    output.say(
        f"{mark} {verdict['name']}: {verdict['lost']} of {verdict['answers']} lost, "
        f"{verdict['refused_honestly']} refused honestly, "
        f"{verdict['streams_resumed']} streams resumed, {verdict['asked_again']} asked again"
        f"{figures} ({verdict['seconds']} s)"
    )
    for line in (*verdict["failures"], *verdict["examples"]):
        output.say(f"    {line}")


def _scale(out: Path) -> int:
    try:
        with platform(FRONTS[:1], [], ["ghosts"]) as on:
            found = [asdict(seen) for seen in scale.measure(on)]
    except NoNetwork as problem:
        output.say(f"! {problem}")
        return 2
    _write(out, found)
    return 1 if any(seen["failed"] for seen in found) else 0


def _leases(out: Path) -> int:
    found = [asdict(seen) for seen in lease_clients.measure()]
    _write(out, found)
    return 1 if any(seen["twice"] for seen in found) else 0


def _write(out: Path, found: list[dict[str, Any]]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> int:
    speak_utf8()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what it began ends with it
    parser = argparse.ArgumentParser(prog="loadtest/hosts", description=__doc__.split("\n")[0])
    parser.add_argument("scenario", nargs="*", help=f"of {', '.join(SCENARIOS)} [all]")
    parser.add_argument(
        "--hosts",
        type=int,
        default=len(HOSTS),
        help="real ones; of more than five, each has one worker [3]",
    )
    parser.add_argument("--out", type=Path, default=ROOT / "var" / "hosts" / "report.json")
    parser.add_argument("--scale", action="store_true", help="1 to 100 hosts behind one front")
    parser.add_argument("--leases", action="store_true", help="1 to 100 workers at one database")
    parser.add_argument("--fronts", type=int, default=len(FRONTS), help="that many of them [2]")
    parser.add_argument("--workers", type=int, help="of each host")
    given = parser.parse_args()
    if unknown := sorted(set(given.scenario) - SCENARIOS.keys()):
        parser.error(f"no such scenario: {', '.join(unknown)}; there are {', '.join(SCENARIOS)}")
    if given.scale:
        return _scale(given.out.with_name("scale.json"))
    if given.leases:
        return _leases(given.out.with_name("leases.json"))
    chosen = [name for name in SCENARIOS if not given.scenario or name in given.scenario]
    try:
        more = [JOINING] if "joining" in chosen else []
        with platform(
            fronts=FRONTS[: given.fronts],
            hosts=_names(given.hosts),
            more=more,
            releases=bool(UPGRADES & set(chosen)),
            workers=given.workers or _workers(given.hosts),
        ) as on:
            verdicts = list(_played(chosen, on))
    except NoNetwork as problem:
        output.say(f"! {problem}")
        return 2
    _write(given.out, verdicts)
    return 0 if all(verdict["holds"] for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
