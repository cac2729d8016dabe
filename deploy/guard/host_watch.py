"""One host as a front's guard has seen it so far: its answers, its row, its link and both gates."""

import asyncio
import ssl
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from deploy import links
from deploy.guard import probe
from deploy.guard.gate import Gate
from deploy.guard.host_judge import HostObservation, HostState
from deploy.guard.host_probe import HostConnection, Untrusted
from deploy.guard.probe import Answer, NoAnswer, NobodyListens
from deploy.layout import Layout

_PROBE_TIMEOUT_S = 1.0
"""Then it is asked anew: a packet that was lost on the old connection is sent again ever later."""
_JITTER_S = 0.1
_STATE_EVERY = 5
"""Of so many questions one is for what the host says of its workers."""
_STALE_STATE_S = 5.0
"""What its guard has not written anew for so long tells nothing."""
_BOOT_S = 10.0
"""No machine boots in less: one that was silent for longer may know nothing of what it had."""
_MISSES = 5
"""So many questions in a row went unanswered: it was not the guard that stood still."""


@dataclass(frozen=True)
class HostRow:
    """What the database says of a host. ``at``: when it wrote last; ``age_s``: how long before the
    list was read. ``gone``: it is listed no more, or removed. ``pools``: of its models; None: it
    does not say."""

    id: str
    address: str
    workers: int
    wanted: bool = True
    gone: bool = False
    at: float = 0.0
    age_s: float = 0.0
    pools: tuple[str, ...] | None = None


@dataclass(frozen=True)
class _Said:
    """What a host's own guard says of its workers."""

    ready: int = 0
    wait_s: float | None = None
    full: bool = False
    workers: tuple[Mapping[str, Any], ...] = ()
    """As they stand in its state."""


class HostWatch:
    """``link`` names its program, socket and gates."""

    def __init__(self, link: str, row: HostRow, layout: Layout, interval_s: float) -> None:
        self.link = link
        self.row = row
        entrance, closed = layout.link_socket(link), layout.closed_socket
        self.gate = Gate(layout.gate(link), entrance, closed)
        self.reading = Gate(layout.gate(links.reading(link)), entrance, closed)
        self.state: HostState = "unknown"
        self.why = "not heard yet"
        self.since = time.time()
        self.out_since: float | None = time.time()
        self.freed = False
        """Its link was ended since it was last heard: nothing waits for it any more."""
        self.ejections: Counter[HostState] = Counter()
        self.endings = 0
        """Of its link, because it was lost."""
        self.abandoned = ""
        """Why what waits behind its link may wait for nothing; empty where it does not."""
        self.said = _Said()
        self._connection = HostConnection()
        self._entrance = entrance
        self._interval_s = interval_s
        self._answer: Answer | None = None
        self._began = self._heard_at = time.monotonic()
        self._unreachable = self._untrusted = ""
        self._misses = self._link_misses = 0
        self._written: tuple[object, float] = (None, self._began)
        """The time that stood in its state, by its own clock, and when that was new here."""

    @property
    def silent_s(self) -> float:
        return time.monotonic() - self._heard_at

    @property
    def ever_heard(self) -> bool:
        return self._answer is not None

    def answered_since(self, other: "HostWatch") -> bool:
        """Whether it has answered since ``other`` failed to. Hosts that fall silent at the same
        moment were heard last up to an interval apart."""
        late_s = self._interval_s + _JITTER_S
        return self.ever_heard and self._heard_at > other._heard_at + late_s

    async def ask_for_ever(
        self, tls: Callable[[], ssl.SSLContext], on_change: Callable[["HostWatch"], None]
    ) -> None:
        """Ask ``/readyz`` again and again; ``on_change`` when the answer is another one."""
        count = 0
        try:
            while True:
                before, asked_at = self._outcome(), time.monotonic()
                if (count % _STATE_EVERY and not self._unreachable) or await self._has_link():
                    await self._ask(tls())
                if count % _STATE_EVERY == 0 and self._heard_at >= asked_at:
                    await self._ask_state(tls())
                count += 1
                if self._outcome() != before:
                    on_change(self)
                await asyncio.sleep(max(0.0, self._interval_s - (time.monotonic() - asked_at)))
        finally:
            self._connection.close()

    def look(self, *, others_answer: bool, others_open: bool) -> HostObservation:
        return HostObservation(
            status=self._answer.status if self._answer else None,
            reason=self._answer.reason if self._answer else "",
            silent_s=self.silent_s,
            unreachable=self._unreachable,
            untrusted=self._untrusted,
            full=self.said.full,
            wanted=self.row.wanted,
            row_age_s=self.row.age_s,
            others_answer=others_answer,
            others_open=others_open,
        )

    def forgive(self, seconds: float) -> None:
        """Do not count ``seconds`` in which the guard itself could not listen."""
        self._heard_at = min(self._heard_at + seconds, time.monotonic())

    def enter(self, state: HostState, why: str) -> bool:
        """Whether ``state`` is new."""
        self.why = why
        if state == self.state:
            return False
        self.state, self.since = state, time.time()
        return True

    def as_json(self) -> dict[str, Any]:
        """For the state file; times are seconds."""
        return {
            "id": self.row.id,
            "name": self.row.id,
            "address": self.row.address,
            "link": self.link,
            "state": self.state,
            "open": self.gate.is_open,
            "why": self.why,
            "silent_s": round(self.silent_s, 3) if self.ever_heard else None,
            "since": round(self.since, 3),
            "wait_s": self.said.wait_s,
            "workers": self.row.workers,
            "ready": self.said.ready if self.reading.is_open else 0,
        }

    def workers_as_json(self) -> list[dict[str, Any]]:
        """Its workers as its own guard sees them, by names that no other host has."""
        host = self.row.id
        return [{**w, "name": f"{host}/{w.get('name', '?')}"} for w in self.said.workers]

    def _outcome(self) -> tuple[int | None, bool, bool]:
        status = self._answer.status if self._answer else None
        return status, bool(self._unreachable), self.said.full

    async def _has_link(self) -> bool:
        """Whether its link answers: a host that does is of no use without."""
        try:
            await probe.ask(self._entrance, links.ALIVE, timeout_s=_PROBE_TIMEOUT_S)
        except NobodyListens as error:
            self._unreachable, self._link_misses = f"its link does not run ({error})", 0
            return False
        except NoAnswer:  # it listens, and whoever is behind it might wait for hours
            self._unreachable = "its link does not answer"
            self._link_misses += 1
            if self._link_misses >= _MISSES:
                self.abandoned, self._link_misses = "it hangs", 0
            return False
        self._link_misses = 0
        return True

    async def _ask(self, tls: ssl.SSLContext) -> None:
        address = self.row.address
        try:
            answer = await self._connection.ask(address, "/readyz", tls, _PROBE_TIMEOUT_S)
        except NobodyListens as error:
            self._unreachable, self._untrusted = f"cannot be reached ({error})", ""
            self._misses += 1
        except Untrusted as error:
            self._untrusted = f"its certificate is refused: {error}"
        except NoAnswer:
            self._untrusted = ""
            self._misses += 1
        else:
            if not self.freed and self._misses >= _MISSES and self.silent_s > _BOOT_S:
                self.abandoned = f"its host was away for {self.silent_s:.0f} s"
            self._answer, self._unreachable, self._untrusted = answer, "", ""
            self._heard_at, self.freed, self._misses = time.monotonic(), False, 0

    async def _ask_state(self, tls: ssl.SSLContext) -> None:
        try:
            answer = await self._connection.ask(
                self.row.address, "/cell.json", tls, _PROBE_TIMEOUT_S
            )
        except (NobodyListens, NoAnswer, Untrusted):
            return  # the next question will tell
        now, at = time.monotonic(), answer.body.get("at")
        if at != self._written[0]:
            self._written = at, now
        fresh = now - self._written[1] < _STALE_STATE_S
        self.said = said_in(answer.body) if fresh else _Said()


def said_in(state: Mapping[str, Any]) -> _Said:
    """What a host's ``cell.json`` says of it; nothing, where it is none."""
    try:
        workers = tuple(state["workers"])
        drawing = [worker for worker in workers if worker["open"]]
        waits = [float(worker["predicted_wait_s"] or 0.0) for worker in drawing]
        full = bool(drawing) and all(worker.get("full") for worker in drawing)
        return _Said(len(drawing), round(min(waits), 3) if waits else None, full, workers)
    except (KeyError, TypeError, ValueError):
        return _Said()
