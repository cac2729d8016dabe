"""What may happen to a cluster. Each scenario plays under load and notes what was seen of it."""

import contextlib
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import httpx

from deploy import links
from loadtest import waiting
from loadtest.cluster.load import Load
from loadtest.cluster.machines import PORT, Machine, until
from loadtest.cluster.network import Direction
from loadtest.cluster.platform import JOINING, MODEL, QUEUED, Platform
from loadtest.cluster.visitor import Visitor
from loadtest.cluster.wheels import BROKEN, MIGRATING

OUT_S = 1.0
"""So soon a lost host is out of the pool."""
_CLOSED_S = 20.0
_BACK_S = 120.0
_UPGRADE_S = 600.0
_ROTATION_S = 400.0
_HAS_TABLE = "SELECT to_regclass(%s) IS NOT NULL"
_DRAWN = "SELECT count(*) FROM images WHERE prompt LIKE %s"
_ITEMS = 60
_DOUBT_S = 3.0
"""Of a busy machine, which takes its time to compare two clocks."""
_REFUSALS = 10
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

    def client(self) -> httpx.Client:
        """Somebody with a key, at the address of the fronts."""
        headers = {"Authorization": f"Bearer {self.platform.key}"}
        return httpx.Client(base_url=self.platform.url, headers=headers, timeout=120.0)

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
    fronts = stage.platform.fronts.values()
    with _crowded(stage, [host], _keys(stage, "of-one", 6), users=84, steps=16):
        until(
            lambda: all(front.hosts()[host.name]["state"] == "full" for front in fronts),
            60.0,
            f"{host.name} full",
        )
        stage.draw_on()
    stage.notes.expect(not stage.load.refusals, f"{len(stage.load.refusals)} refused")


def _keys(stage: Stage, name: str, count: int) -> list[str]:
    """Of so many owners: a queue leaves room for others than those whose requests wait there."""
    return [stage.platform.make_key(f"{name}-{number}") for number in range(count)]


@contextlib.contextmanager
def _crowded(
    stage: Stage, hosts: Sequence[Machine], keys: Sequence[str], users: int, steps: int
) -> Iterator[None]:
    """So many users of each of ``hosts`` itself, of all ``keys``, who come again when they are told
    to."""
    loads = {host.name: [_crowd(host, key, users // len(keys), steps) for key in keys]
             for host in hosts}  # fmt: skip
    with contextlib.ExitStack() as running:
        for load in itertools.chain.from_iterable(loads.values()):
            running.enter_context(load.running())
        yield
        for load in itertools.chain.from_iterable(loads.values()):
            load.end()
    for name, own in loads.items():
        measured, lost = stage.notes.measured, sum(len(load.lost) for load in own)
        measured[f"refusals by {name}"] = sum(len(load.refusals) for load in own)
        measured[f"served later by {name}"] = sum(len(load.came_again) for load in own)
        stage.notes.expect(not lost, f"{lost} lost at {name} itself")


def _crowd(host: Machine, key: str, users: int, steps: int) -> Load:
    url = f"http://{host.address}:{PORT}"
    return Load(
        url, key, waiting=users, following=0, steps=steps, may_be_refused=True, most_refusals=1000
    )


def all_full(stage: Stage) -> None:
    """No host has room: who comes hears of the one that has room first, and is drawn later."""
    stage.load.may_be_refused, stage.load.most_refusals = True, 1000
    hosts = list(stage.platform.hosts.values())
    with _small_and_slow(hosts):
        stage.draw_on()
        with _crowded(stage, hosts, _keys(stage, "of-all", 2), users=24, steps=50):
            told = _refusals_told(stage)
        stage.back_s(*stage.platform.hosts)
        stage.draw_on()
    stage.back_s(*stage.platform.hosts)
    stage.notes.measured["told to come again in, s, at least"] = min(told, default=0)
    stage.notes.measured["told to come again in, s, at most"] = max(told, default=0)
    stage.notes.expect(bool(stage.load.came_again), "nobody was refused and served later")


@contextlib.contextmanager
def _small_and_slow(hosts: Sequence[Machine]) -> Iterator[None]:
    """Queues of two requests, which stay full for seconds; the last host is the fastest."""
    before = {host: host.config_path.read_text(encoding="utf-8") for host in hosts}
    try:
        for host in hosts:
            step_ms = 50 if host is hosts[-1] else 100
            text = before[host].replace(QUEUED, "max_queued_requests = 2")
            text = text.replace(MODEL, f"synthetic:step_ms={step_ms}")
            host.config_path.write_text(text, encoding="utf-8")
            host.up()
        yield
    finally:
        for host, text in before.items():
            host.config_path.write_text(text, encoding="utf-8")
            host.up()


def _refusals_told(stage: Stage) -> list[int]:
    """What clients of the front are told while all are full, in seconds. Each time it is the host
    with the shortest wait that says so."""
    front, told = stage.platform.front_with_the_address(), []
    body = {"prompt": "one more", "size": "128x128", "steps": 8}

    def ask_once_more(client: httpx.Client) -> bool:
        before = _soonest(front)
        answer = client.post("/v1/images/generations", json=body)
        if answer.status_code == 503 and before and _soonest(front) == before:
            told.append(int(answer.headers["Retry-After"]))
            by = _answered_by(stage, answer.headers["X-Request-ID"])
            stage.notes.expect(by == before, f"refused by {by}, and {before} has room first")
        return len(told) >= _REFUSALS

    with stage.client() as client:
        what = f"{_REFUSALS} refusals of full hosts"
        waiting.until(lambda: ask_once_more(client), 120.0, what, pause_s=0.2)
    return told


def _soonest(front: Machine) -> str:
    """The host that has room first while no host takes drawings; empty where one does, or where the
    front has just heard otherwise."""
    hosts = front.hosts()
    if front.in_pool() or any(host["state"] != "full" for host in hosts.values()):
        return ""
    first = min(hosts, key=lambda name: float(hosts[name]["wait_s"]))
    led_to = front.layout.gate(links.SOONEST).readlink()
    return first if led_to == front.layout.link_socket(hosts[first]["link"]) else ""


def _answered_by(stage: Stage, request_id: str) -> str:
    """The host that was asked last: several may have refused a request."""
    ends: dict[str, float] = {}

    def find() -> bool:
        for name, host in stage.platform.hosts.items():
            with host.layout.access_log.open(encoding="utf-8") as log:
                lines = [line for line in log if request_id in line]
            if lines:
                ends[name] = json.loads(lines[-1])["end"]
        return bool(ends)

    until(find, 10.0, "the request in a host's log")
    return max(ends, key=ends.__getitem__)


def drained(stage: Stage) -> None:
    """All hosts but one are drained, one after the other, and come back."""
    stage.load.may_be_refused = True  # by the last one, while the queues of all come to it
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
    host = platform.join(JOINING, "host")
    stage.back_s(JOINING)
    since, before = time.monotonic(), _steps_of(host)
    first_s = until(lambda: _steps_of(host) > before, 60.0, "a step of the new host")
    stage.notes.measured["in the pool, its first step after, s"] = round(first_s, 3)
    platform.first.zimage("hosts", "drain", JOINING)
    platform.first.zimage("hosts", "remove", JOINING)
    stage.out_s(JOINING, since)
    stage.draw_on()
    del platform.hosts[JOINING]
    host.namespace.kill_all()


def _steps_of(host: Machine) -> int:
    return sum(worker["steps"] for worker in host.cell()["workers"])


def rolling_upgrade(stage: Stage) -> None:
    """All machines go to a version that adds to the database, one after the other."""
    platform = stage.platform
    assert platform.wheels is not None
    platform.wheels[MIGRATING]
    began = time.monotonic()
    platform.first.zimage("hosts", "upgrade", MIGRATING, timeout_s=_UPGRADE_S)
    stage.notes.measured["all machines upgraded, s"] = round(time.monotonic() - began)
    _expect_all_at(MIGRATING, stage)
    stage.notes.expect(platform.database.value(_HAS_TABLE, "of_1_2_0"), "the database is as before")
    stage.draw_on()


def broken_upgrade(stage: Stage) -> None:
    """A version whose workers do not warm up: the first host takes it back, and nobody follows."""
    platform = stage.platform
    assert platform.wheels is not None
    platform.wheels[BROKEN]
    before = _versions(platform)
    told = platform.first.refused("hosts", "upgrade", BROKEN, timeout_s=_UPGRADE_S)
    stage.notes.expect(f"did not take {BROKEN}" in told, f"{BROKEN}: {told}")
    stage.notes.expect("stopped here" in told, f"{BROKEN}: {told}")
    stage.notes.expect(_versions(platform) == before, f"not as before: {_versions(platform)}")
    stage.back_s(*platform.hosts)
    stage.draw_on()


def _expect_all_at(version: str, stage: Stage) -> None:
    found = _versions(stage.platform)
    stage.notes.expect(set(found.values()) == {version}, f"not all at {version}: {found}")


def _versions(platform: Platform) -> dict[str, str]:
    told = json.loads(platform.first.zimage("hosts", "--json"))["hosts"]
    return {host["id"]: host["version"] for host in told if host["wanted"] != "removed"}


def clock_skewed(stage: Stage) -> None:
    """A host's clock is five minutes ahead, then five behind."""
    host = stage.any_host()
    for ahead_s in (300, -300):
        _boot_at(stage, host, ahead_s)
        before = _steps_of(host)
        _draw_job(stage, f"clock {ahead_s:+d}")
        _draw_in_time(stage)
        stage.draw_on()
        stage.notes.expect(_steps_of(host) > before, f"at {ahead_s:+d} s it drew nothing")
        _look_at(stage, host)
        _see_skew(stage, host, ahead_s)
    _boot_at(stage, host, 0)


def _boot_at(stage: Stage, host: Machine, ahead_s: int) -> None:
    host.lose_power()
    host.set_clock(ahead_s)
    host.boot()
    stage.back_s(host.name)


def _draw_job(stage: Stage, name: str) -> None:
    """Each item of a job once, whoever leases it."""
    body = {"prompts": [f"{name} item {n}" for n in range(_ITEMS)], "size": "64x64", "steps": 8}
    with stage.client() as client:
        job = client.post("/v1/jobs", json=body).raise_for_status().json()["id"]
        until(lambda: client.get(f"/v1/jobs/{job}").json()["finished_at"], 120.0, "the job's end")
        counts = client.get(f"/v1/jobs/{job}").json()["counts"]
    stage.notes.expect(counts["done"] == _ITEMS, f"{name}: {counts}")
    drawn = stage.platform.database.value(_DRAWN, f"{name} item %")
    stage.notes.expect(drawn == _ITEMS, f"{name}: {drawn} pictures of {_ITEMS} items")


def _draw_in_time(stage: Stage) -> None:
    """Whoever allows a minute gets a picture, of whichever host."""
    body = {"prompt": "in time", "size": "64x64", "timeout_s": 60}
    with stage.client() as client:
        answers = [client.post("/v1/images/generations", json=body) for _ in range(12)]
    late = [answer.text[:200] for answer in answers if answer.status_code != 200]
    stage.notes.expect(not late, f"{len(late)} of 12 not within a minute: {late[:1]}")


def _look_at(stage: Stage, host: Machine) -> None:
    """A link that another host has signed leads to its picture on ``host``, too."""
    body = {"prompt": "a link", "size": "64x64", "response_format": "url"}
    with stage.client() as client:
        for _ in range(6):
            answer = client.post("/v1/images/generations", json=body).raise_for_status()
            link = httpx.URL(answer.json()["data"][0]["url"])
            there = f"http://{host.address}:7860{link.raw_path.decode()}"
            seen = httpx.get(there, timeout=10.0)
            stage.notes.expect(
                seen.status_code == 200, f"link: {seen.status_code} {seen.text[:99]}"
            )


def _see_skew(stage: Stage, host: Machine, ahead_s: int) -> None:
    """Everybody who should know of a wrong clock does."""
    first = stage.platform.first
    told = json.loads(first.zimage("hosts", "--json"))["hosts"]
    skew_s = next(each["skew_s"] for each in told if each["id"] == host.name)
    stage.notes.expect(abs(skew_s - ahead_s) < _DOUBT_S, f"zimage hosts says {skew_s:+.1f} s")
    way = "ahead of" if ahead_s > 0 else "behind"
    stage.notes.expect(f"clock is {way} the database's" in first.zimage("hosts"), "no note of it")
    diagnosis = host.refused("doctor")
    stage.notes.expect("clock" in diagnosis, f"zimage doctor: {diagnosis}")
    metrics = first.layout.membership_metrics.read_text(encoding="utf-8")
    line = f'zimage_cluster_host_skew_seconds{{host="{host.name}"}} '
    stage.notes.expect(line in metrics, f"no metric {line}")
    value = float(metrics.partition(line)[2].split("\n")[0] or 0)
    stage.notes.expect(abs(value - ahead_s) < _DOUBT_S, f"its metric says {value:+.1f}")


def secrets_rotated(stage: Stage) -> None:
    """All machines sign with a new secret."""
    _rotate(stage, "secret")


def authority_rotated(stage: Stage) -> None:
    """A new authority, and new certificates for all machines."""
    _rotate(stage, "authority")


def _rotate(stage: Stage, what: str) -> None:
    first, visitor = stage.platform.first, Visitor(stage.platform.url, stage.platform.key)
    with visitor.looking():
        began = time.monotonic()
        first.zimage("cluster", "rotate", what, timeout_s=_ROTATION_S)
        stage.notes.measured[f"new {what}, s"] = round(time.monotonic() - began)
        stage.draw_on()
    stage.notes.measured["looks of somebody signed in"] = visitor.looks
    stage.notes.expect(visitor.looks > 0, "nobody looked")
    stage.notes.failures += visitor.failures[:3]


Scenario = Callable[[Stage], None]

SCENARIOS: dict[str, Scenario] = {
    "host-dropped": host_dropped,
    "one-way": one_way,
    "host-killed": host_killed,
    "host-full": host_full,
    "all-full": all_full,
    "drained": drained,
    "poison": poison,
    "joining": joining,
    "clock-skewed": clock_skewed,
    "secrets-rotated": secrets_rotated,
    "authority-rotated": authority_rotated,
    "rolling-upgrade": rolling_upgrade,
    "broken-upgrade": broken_upgrade,
    "store-stopped": store_stopped,
    "front-killed": front_killed,
    "primary-lost": primary_lost,
}
"""By name, in an order in which each leaves the cluster whole for the next; the last does not."""
