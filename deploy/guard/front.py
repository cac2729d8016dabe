"""A front's part of the guard: the hosts as the database lists them, a link and a task for each."""

import asyncio
import json
import logging
import re
import signal
import ssl
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from deploy import links
from deploy.config import patterns
from deploy.guard import host_probe, link_program
from deploy.guard.gate import Gate
from deploy.guard.host_judge import HostVerdict, judge
from deploy.guard.host_watch import HostRow, HostWatch
from deploy.guard.journal import Journal
from deploy.guard.programs import Programs
from deploy.guard.relinking import Relinking
from deploy.guard.settings import FrontSettings, GuardSettings
from deploy.guard.troubles import Troubles
from deploy.host import nginx_process
from deploy.layout import Layout
from deploy.links import GONE_AFTER_S, Link
from worker import whole_file

_READ_INTERVAL_S = 1.0
_TICK_S = 0.1
_EMPTY_S = 10.0
_MOST_WORKERS = 128
"""In the state file, which is written every second."""


class Front:
    """``programs`` starts and stops links, as ``wanted_programs`` says."""

    def __init__(
        self,
        settings: GuardSettings,
        rules: FrontSettings,
        layout: Layout,
        journal: Journal,
        troubles: Troubles,
        programs: Programs,
    ) -> None:
        self._rules = rules
        self._layout = layout
        self._journal = journal
        self._troubles = troubles
        self.programs = programs
        programs.links = self
        self._interval_s = settings.guard.probe_interval_s
        self._watches: dict[str, HostWatch] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._masters: dict[str, int] = {}
        self._soonest = _Soonest(layout)
        self._read: tuple[int, int] | None = None
        self._stored: dict[str, Link] = {}
        self._tls: ssl.SSLContext | None = None
        self._tls_of: tuple[int, ...] = ()
        self._open_at = time.monotonic()

    @property
    def watches(self) -> list[HostWatch]:
        """In the order of their links."""
        return [self._watches[link] for link in self._rules.links if link in self._watches]

    @property
    def wanted_programs(self) -> frozenset[str]:
        """Those that are to run."""
        return frozenset(links.program(link) for link in self._watches)

    @property
    def all_programs(self) -> frozenset[str]:
        return frozenset(links.program(link) for link in self._rules.links)

    @property
    def is_open(self) -> bool:
        """Whether any host takes requests."""
        return any(watch.reading.is_open for watch in self._watches.values())

    def prepare(self) -> None:
        """Take up what the guard before has left; its gates stay as they are."""
        self._layout.links_dir.mkdir(mode=0o700, exist_ok=True)
        for link, stored in links.read(self._layout).items():
            if link in self._rules.links:
                with self._troubles.survived("taking up a link", stored.host):
                    self._take(link, HostRow(stored.host, stored.address, stored.workers))
        for link in self._rules.links:
            if link not in self._watches:
                for gate in _gates(self._layout, link):
                    gate.prepare()
                    gate.close()
        self._soonest.prepare()

    async def _follow(self) -> None:
        """Read the list of hosts where it has changed, and ask each host."""
        try:
            while True:
                with self._troubles.survived("reading certificates"):
                    self._read_certificates()
                with self._troubles.survived("reading the list of hosts"):
                    self._read_hosts()
                self._release_gone()
                with self._troubles.survived("ending what is left of links"):
                    self._end_left()
                self._start_tasks()
                self._store()
                await asyncio.sleep(_READ_INTERVAL_S)
        finally:
            for task in self._tasks.values():
                task.cancel()
            self._tasks.clear()

    async def _judge_for_ever(self) -> None:
        judged_at = time.monotonic()
        while True:
            await asyncio.sleep(_TICK_S)
            now = time.monotonic()
            lag_s, judged_at = now - judged_at - _TICK_S, now
            if lag_s > _TICK_S:
                for watch in self._watches.values():
                    watch.forgive(lag_s)
            for watch in self.watches:
                with self._troubles.survived("judging a host", watch.row.id):
                    self._judge(watch)
            with self._troubles.survived("choosing the host that has room first"):
                self._soonest.lead_to(self.watches)
            self._watch_pool()

    @property
    def loops(self) -> dict[str, Callable[[], Coroutine[Any, Any, None]]]:
        """What goes on beside each other, by name."""
        return {
            "following the hosts": self._follow,
            "judging the hosts": self._judge_for_ever,
            "making links": Relinking(
                self._rules, self._layout, self._journal, lambda: self.watches
            ).follow,
        }

    def as_json(self) -> dict[str, Any]:
        """For the state file. The pool of a front is that of all hosts: their workers."""
        hosts = [watch.as_json() for watch in self.watches if not watch.row.gone]
        pool = {"open": sum(h["ready"] for h in hosts), "of": sum(h["workers"] for h in hosts)}
        return {
            "ready": self.is_open,
            "pool": pool,
            "hosts": hosts,
            "workers_of_hosts": self._workers_of_hosts(),
        }

    def _workers_of_hosts(self) -> list[dict[str, Any]]:
        """For people: of very many, those that are out come first, and the rest is left out."""
        here = (watch for watch in self.watches if not watch.row.gone)
        found = [worker for watch in here for worker in watch.workers_as_json()]
        if len(found) > _MOST_WORKERS:
            found.sort(key=lambda worker: bool(worker["open"]))
        return found[:_MOST_WORKERS]

    # The list of hosts

    def _read_hosts(self) -> None:
        path = self._layout.hosts_json
        try:
            status = path.stat()
        except FileNotFoundError:
            return  # until membership has written it, what was known stays
        if (status.st_mtime_ns, status.st_ino) == self._read:
            return
        told = json.loads(path.read_bytes())
        rows = rows_in(told)
        known = {watch.row.id: watch for watch in self._watches.values()}
        for row in rows.values():
            if row.id in known:
                self._update(known[row.id], row)
            elif not row.gone:
                self._admit(row)
        for id, watch in known.items():
            if id not in rows:  # a database that was restored lists nobody for a moment
                age_s = max(0.0, told["at"] - watch.row.at)
                watch.row = replace(watch.row, gone=True, age_s=age_s)
        self._read = status.st_mtime_ns, status.st_ino  # not before: a full disk may be in the way

    def _update(self, watch: HostWatch, row: HostRow) -> None:
        if row.address != watch.row.address:
            self._journal.event(f"its address is {row.address} now", row.id)
            self._write_conf(watch.link, row.address)
            self._end_link(watch, "its address has changed")
        watch.row = row

    def _admit(self, row: HostRow) -> None:
        free = [link for link in self._rules.links if link not in self._watches]
        if free:
            self._journal.event(f"host at {row.address}, by link {free[0]}", row.id)
            self._take(free[0], row)

    def _take(self, link: str, row: HostRow) -> None:
        if self._write_conf(link, row.address):
            # One of the guard before, which may have written it otherwise.
            pid, conf = self._layout.link_pid(link), self._layout.link_conf(link)
            nginx_process.tell(pid, conf, signal.SIGHUP)
        watch = HostWatch(link, row, self._layout, self._interval_s)
        watch.gate.prepare()
        watch.reading.prepare()
        self._watches[link] = watch
        self.programs.poke()

    def _write_conf(self, link: str, address: str) -> bool:
        """Whether it is another one."""
        text = link_program.configuration(self._layout, link, address)
        path = self._layout.link_conf(link)
        with suppress(FileNotFoundError):
            if path.read_text(encoding="utf-8") == text:
                return False
        whole_file.replace(path, text)
        return True

    def _release_gone(self) -> None:
        """Give back the links of hosts that nobody wants in, once what they had is finished."""
        for link, watch in list(self._watches.items()):
            out_s = time.time() - watch.out_since if watch.out_since else 0.0
            if watch.row.gone and out_s > GONE_AFTER_S:
                self._journal.event(f"gives link {link} back", watch.row.id)
                del self._watches[link]
                if link in self._tasks:
                    self._tasks.pop(link).cancel()
                self.programs.poke()

    def _end_left(self) -> None:
        for link in self._rules.links:
            pid, before = self.programs.pid(links.program(link)), self._masters.get(link, 0)
            if before and pid != before:
                link_program.end_left(self._layout, link, before)
            self._masters[link] = pid

    def _start_tasks(self) -> None:
        if self._tls is None:
            return
        for link, watch in self._watches.items():
            if link not in self._tasks or self._tasks[link].done():
                self._tasks[link] = asyncio.create_task(self._ask(watch))

    async def _ask(self, watch: HostWatch) -> None:
        with self._troubles.survived("asking a host", watch.row.id):
            await watch.ask_for_ever(self._context, self._judge)

    def _store(self) -> None:
        held = {
            watch.link: Link(watch.row.id, watch.row.address, watch.row.workers, watch.out_since)
            for watch in self.watches
        }
        if held != self._stored:
            with self._troubles.survived("writing down the links"):
                links.write(self._layout, held)
                self._stored = held

    # Certificates

    def _read_certificates(self) -> None:
        """Anew where they have changed: they are renewed."""
        layout = self._layout
        paths = (
            layout.authority_certificate,
            layout.revocation_list,
            layout.cluster_certificate("front"),
            layout.cluster_key("front"),
        )
        try:
            seen = tuple(path.stat().st_mtime_ns for path in paths)
            if seen != self._tls_of:
                self._tls, self._tls_of = host_probe.context(layout), seen
            self._journal.clear("front_certificate")
        except OSError as error:
            text = f"the front's certificate cannot be used: {error}"
            self._journal.alarm("front_certificate", text)

    def _context(self) -> ssl.SSLContext:
        assert self._tls is not None
        return self._tls

    # Judging

    def _judge(self, watch: HostWatch) -> None:
        others = [other for other in self._watches.values() if other is not watch]
        seen = watch.look(
            others_answer=any(other.answered_since(watch) for other in others),
            others_open=any(other.reading.is_open for other in others),
        )
        verdict = judge(seen, self._rules)
        if verdict.lost and not watch.freed:
            watch.freed = True
            watch.endings += 1
            self._end_link(watch, verdict.why)
        if watch.abandoned:
            self._end_requests(watch)
        self._apply(watch, verdict)

    def _apply(self, watch: HostWatch, verdict: HostVerdict) -> None:
        was_open = watch.reading.is_open
        self._set(watch.gate, verdict.gate, self._others(watch, "gate"))
        self._set(watch.reading, verdict.reading, self._others(watch, "reading"))
        is_open = watch.reading.is_open
        if is_open:
            watch.out_since = None
        elif watch.out_since is None:
            watch.out_since = round(time.time(), 1)
        if is_open != was_open:
            if was_open:
                watch.ejections[verdict.state] += 1
            self._journal.event(f"{'in' if is_open else 'out'}: {verdict.why}", watch.row.id)
        if watch.enter(verdict.state, verdict.why):
            self._journal.news = True
            if is_open and was_open:
                told = "" if verdict.why == verdict.state else f": {verdict.why}"
                self._journal.event(f"{verdict.state}{told}", watch.row.id)

    def _others(self, watch: HostWatch, gate: str) -> list[Gate]:
        return [getattr(w, gate) for w in self._watches.values() if w is not watch]

    def _set(self, gate: Gate, wanted: str, others: list[Gate]) -> None:
        if wanted == "open" and not gate.is_open:
            gate.open()
        elif gate.is_open and (
            wanted == "close" or (wanted == "spare" and any(other.is_open for other in others))
        ):
            gate.close()

    def _end_link(self, watch: HostWatch, why: str) -> None:
        """What is on its way to it goes to another host at once."""
        pid = self.programs.pid(links.program(watch.link))
        if link_program.end(self._layout, watch.link, pid):
            self._journal.event(f"link ended: {why}", watch.row.id, logging.WARNING)
        self.programs.poke()

    def _end_requests(self, watch: HostWatch) -> None:
        """The same though no other host may be there: its link goes on listening."""
        why, watch.abandoned = watch.abandoned, ""
        pid = self.programs.pid(links.program(watch.link))
        if link_program.end_requests(self._layout, watch.link, pid):
            watch.endings += 1
            self._journal.event(f"what waits at its link is sent again: {why}", watch.row.id)
        else:
            self._end_link(watch, why)

    def _watch_pool(self) -> None:
        now = time.monotonic()
        if self.is_open:
            self._open_at = now
        text = "no host takes requests" if self._watches else "this front knows no host"
        self._journal.set("no_hosts", now - self._open_at > _EMPTY_S, text)


class _Soonest:
    """The gate to the host that will have room first, for requests that no gate has taken."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._link = layout.gate(links.SOONEST)
        self._target: Path | None = None

    def prepare(self) -> None:
        with suppress(OSError):
            self._target = self._link.readlink()
        if self._target is None:
            self._lead(self._layout.closed_socket)

    def lead_to(self, watches: list[HostWatch]) -> None:
        open_ones = [watch for watch in watches if watch.reading.is_open]
        if not open_ones:
            self._lead(self._layout.closed_socket)
            return
        best = min(open_ones, key=lambda watch: watch.said.wait_s or 0.0)
        self._lead(self._layout.link_socket(best.link))

    def _lead(self, target: Path) -> None:
        if target == self._target:
            return
        fresh = self._link.with_name(f".{self._link.name}.new")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(target)
        fresh.replace(self._link)
        self._target = target


def rows_in(told: dict[str, Any]) -> dict[str, HostRow]:
    """The hosts that draw, of what membership has written; ValueError where it is something else.
    One whose address is none is left out: another host may have written anything."""
    try:
        found = [_row(host, told["at"]) for host in told["hosts"] if host["role"] != "front"]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a list of hosts: {error!r}") from error
    return {row.id: row for row in found if row.address and _ADDRESS.fullmatch(row.address)}


_ADDRESS = re.compile(patterns.HOST_AND_PORT)


def _row(host: dict[str, Any], at: float) -> HostRow:
    return HostRow(
        str(host["id"]),
        str(host["address"]),
        int(host["workers"]),
        wanted=host["wanted"] == "in",
        gone=host["wanted"] == "removed",
        at=float(host["at"]),
        age_s=max(0.0, at - float(host["at"])),
        pools=links.pools_in(host),
    )


def _gates(layout: Layout, link: str) -> tuple[Gate, Gate]:
    entrance, closed = layout.link_socket(link), layout.closed_socket
    reading = Gate(layout.gate(links.reading(link)), entrance, closed)
    return Gate(layout.gate(link), entrance, closed), reading
