"""What may happen to a cluster. Each scenario plays under load and notes what was seen of it."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import httpx

from loadtest.cluster.load import Load
from loadtest.cluster.machines import Machine, until
from loadtest.cluster.network import Direction
from loadtest.cluster.platform import Platform

OUT_S = 1.0
"""So soon a lost host is out of the pool."""
_CLOSED_S = 20.0
_BACK_S = 120.0
_MORE = 40
"""Answers after each step, so that the step has been under load."""


@dataclass
class Notes:
    """What a scenario has seen: what was promised, and figures."""

    failures: list[str] = field(default_factory=list)
    measured: dict[str, float] = field(default_factory=dict)

    def expect(self, true: bool, what: str) -> None:
        if not true:
            self.failures.append(what)

    def at_most(self, what: str, value: float, most: float) -> None:
        self.measured[what] = round(value, 3)
        self.expect(value <= most, f"{what}: {value:.3f} is over {most:g}")


@dataclass
class Stage:
    platform: Platform
    load: Load
    notes: Notes = field(default_factory=Notes)

    def any_host(self) -> Machine:
        return next(iter(self.platform.hosts.values()))

    def out_s(self, name: str, began: float) -> float:
        """Until no front hands a request to host ``name``; seconds since ``began``, a moment of
        ``time.monotonic``."""
        fronts = self.platform.fronts.values()
        until(
            lambda: all(name not in front.in_pool() for front in fronts),
            _CLOSED_S,
            f"{name} out of the pool of every front",
        )
        return time.monotonic() - began

    def back_s(self, *names: str) -> float:
        """Until every front hands requests to all of ``names``."""
        fronts = self.platform.fronts.values()
        return until(
            lambda: all(set(names) <= front.in_pool() for front in fronts),
            _BACK_S,
            f"{', '.join(names)} back in the pool of every front",
        )

    def draw_on(self) -> None:
        self.load.until_answered(_MORE, 120.0)


def host_dropped(stage: Stage) -> None:
    """A host falls silent, as behind a dead switch, and comes back."""
    _cut_off(stage, "both")


def one_way(stage: Stage) -> None:
    """What a host is sent is lost, what it sends arrives; then the other way round."""
    _cut_off(stage, "in")
    stage.draw_on()
    _cut_off(stage, "out")


def _cut_off(stage: Stage, direction: Direction) -> None:
    host, began = stage.any_host(), time.monotonic()
    host.namespace.drop(direction)
    try:
        out_s = stage.out_s(host.name, began)
        stage.notes.at_most(f"out of the pool ({direction}), s", out_s, OUT_S)
        stage.draw_on()
    finally:
        host.namespace.heal()
    stage.notes.measured[f"back ({direction}), s"] = round(stage.back_s(host.name), 3)


def host_killed(stage: Stage) -> None:
    """A host loses its power, and boots again."""
    host, began = stage.any_host(), time.monotonic()
    host.namespace.unplug()
    stage.notes.at_most("out of the pool, s", stage.out_s(host.name, began), OUT_S)
    host.namespace.kill_all()
    stage.draw_on()
    host.boot()
    stage.back_s(host.name)


def front_killed(stage: Stage) -> None:
    """The front that has the address loses its power: the address moves."""
    platform = stage.platform
    lost = platform.front_with_the_address()
    stage.load.asks_again = True
    began = time.monotonic()
    lost.lose_power()
    until(lambda: platform.front_with_the_address() is not lost, 20.0, "the address on another")
    until(lambda: _answers(platform.url), 20.0, "an answer at the address")
    stage.notes.at_most("the address answers again after, s", time.monotonic() - began, 5.0)
    stage.draw_on()
    lost.boot()
    platform.share_the_address(lost.name)
    stage.back_s(*platform.hosts)


def _answers(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{url}/healthz", timeout=1.0).status_code == 200
    return False


def primary_lost(stage: Stage) -> None:
    """The primary is gone for five seconds before its standby is promoted."""
    stage.platform.database.lose_the_primary()
    stage.load.until_answered(_MORE, 120.0)
    time.sleep(5.0)
    stage.platform.database.promote()
    stage.draw_on()
    until(lambda: _gallery_answers(stage), 30.0, "the gallery")


def store_stopped(stage: Stage) -> None:
    """The store is killed; pictures spool, drawing goes on; it comes back and has them all."""
    store = stage.platform.store
    store.kill()
    stage.draw_on()
    time.sleep(2.0)
    store.start()
    stage.draw_on()
    until(lambda: _gallery_answers(stage), 30.0, "the gallery")
    until(lambda: not _spooled(stage.platform), 60.0, "all spooled pictures in the store")


def _spooled(platform: Platform) -> list[str]:
    found = (machine.folder / "var" / "spool" for machine in platform.hosts.values())
    return [str(file) for folder in found for file in folder.rglob("*.png")]


def _gallery_answers(stage: Stage) -> bool:
    headers = {"Authorization": f"Bearer {stage.platform.key}"}
    with contextlib.suppress(httpx.HTTPError):
        answer = httpx.get(f"{stage.platform.url}/v1/images", headers=headers, timeout=5.0)
        return answer.status_code == 200 and bool(answer.json()["data"])
    return False


def host_full(stage: Stage) -> None:
    """One host has no room left: others take what it would have refused."""
    host = stage.any_host()
    with _filled(stage, host):
        stage.draw_on()
    stage.notes.expect(not stage.load.refused, f"{len(stage.load.refused)} refused")


@contextlib.contextmanager
def _filled(stage: Stage, host: Machine) -> Iterator[None]:
    """Requests straight to ``host``, until it refuses, and again and again."""
    url = f"http://{host.address}:7860"
    own = Load(url, stage.platform.key, waiting=80, following=0, steps=16, may_be_refused=True)
    with own.running():
        until(lambda: bool(own.refused), 60.0, f"{host.name} full")
        yield
    stage.notes.measured["refused by the full host"] = len(own.refused)
    stage.notes.expect(not own.lost, f"{len(own.lost)} lost at the full host itself")


def drained(stage: Stage) -> None:
    """All hosts but one are drained, one after the other, and come back."""
    *others, last = stage.platform.hosts
    for name in others:
        stage.platform.first.zimage("hosts", "drain", name)
        stage.notes.expect(
            all(name not in front.in_pool() for front in stage.platform.fronts.values()),
            f"{name} in the pool after its drain",
        )
    since = time.time()
    stage.draw_on()
    began_since = [r for r in stage.load.records if r.at > since]
    stage.notes.expect(bool(began_since), "nothing drawn while all but one were drained")
    for name in others:
        stage.platform.first.zimage("hosts", "undrain", name)
    stage.back_s(*others, last)


def poison(stage: Stage) -> None:
    """A request that kills every worker which draws it: few die, on one host or another."""
    before = _deaths(stage.platform)
    headers = {"Authorization": f"Bearer {stage.platform.key}"}
    body = {"prompt": "fault:exit", "size": "64x64"}
    url = f"{stage.platform.url}/v1/images/generations"
    answer = httpx.post(url, json=body, headers=headers, timeout=120.0)
    stage.notes.expect(
        400 <= answer.status_code < 500, f"answered {answer.status_code}: {answer.text[:200]}"
    )
    stage.draw_on()
    deaths = _deaths(stage.platform) - before
    stage.notes.at_most("workers that it killed", deaths, 3)
    again = httpx.post(url, json=body, headers=headers, timeout=120.0)
    stage.notes.expect(400 <= again.status_code < 500, f"again: {again.status_code}")


def _deaths(platform: Platform) -> int:
    return sum(
        worker["restarts"]
        for machine in platform.hosts.values()
        for worker in machine.cell()["workers"]
    )


def joining(stage: Stage) -> None:
    """A new host joins, draws, is drained and leaves."""
    platform = stage.platform
    host = platform.join("d", "host")
    stage.back_s("d")
    since, before = time.monotonic(), _steps_of(host)
    first_s = until(lambda: _steps_of(host) > before, 60.0, "a step of the new host")
    stage.notes.measured["in the pool, its first step after, s"] = round(first_s, 3)
    platform.first.zimage("hosts", "drain", "d")
    platform.first.zimage("hosts", "remove", "d")
    stage.out_s("d", since)
    stage.draw_on()
    del platform.hosts["d"]
    host.namespace.kill_all()


def _steps_of(host: Machine) -> int:
    return sum(worker["steps"] for worker in host.cell()["workers"])


Scenario = Callable[[Stage], None]

SCENARIOS: dict[str, Scenario] = {
    "host-dropped": host_dropped,
    "one-way": one_way,
    "host-killed": host_killed,
    "host-full": host_full,
    "drained": drained,
    "poison": poison,
    "joining": joining,
    "store-stopped": store_stopped,
    "front-killed": front_killed,
    "primary-lost": primary_lost,
}
"""By name, in an order in which each leaves the cluster whole for the next; the last does not."""
