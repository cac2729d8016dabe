"""Users of a cluster: some wait for their picture, some follow its steps; every one is checked."""

import itertools
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from requests.adapters import HTTPAdapter

from loadtest.auth import Entry
from loadtest.checks import Checker
from loadtest.client import Client, session_of
from loadtest.record import Record
from loadtest.waiting import until

_KEEP_ALIVE = [
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 2),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
]
_END_S = 180.0
_PAUSE_S = 0.5


class _Watchful(HTTPAdapter):
    """Asks every two seconds whether the other side is still there, as a waiting browser does, less
    often: a front that lost its power says nothing any more."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs, socket_options=_KEEP_ALIVE)


@dataclass
class Load:
    """``waiting`` users ask and wait, ``following`` ones take streams. ``asks_again``: whose
    connection breaks asks once more, as browsers and SDKs do; for losses of a front, which holds
    the connections. Streams are resumed always, and counted."""

    url: str
    key: str
    waiting: int = 16
    following: int = 4
    asks_again: bool = False
    size: str = "128x128"
    steps: int = 8
    may_be_refused: bool = False
    """Then whoever is refused comes again when he is told to. Otherwise a refusal is no answer:
    there was room."""
    most_refusals: int = 5
    """Whoever comes each time that he is told to is let in by then, or is lost."""
    records: list[Record] = field(default_factory=list)
    """Of each request what came of it in the end."""
    refusals: list[Record] = field(default_factory=list)
    """Each of them, whatever came after it."""
    asked_again: int = 0
    _over: threading.Event = field(default_factory=threading.Event)

    @property
    def lost(self) -> list[Record]:
        return [record for record in self.records if record.result in ("failed", "refused")]

    @property
    def came_again(self) -> list[Record]:
        """Who was refused honestly: told when to come again, and served when he did."""
        return [record for record in self.records if record.refused and record.result == "ok"]

    @property
    def resumed(self) -> int:
        return sum(record.resumed for record in self.records)

    @property
    def answers_by_worker(self) -> Counter[str]:
        return Counter(record.worker for record in self.records if record.result == "ok")

    @contextmanager
    def running(self) -> Iterator["Load"]:
        users = [
            threading.Thread(target=self._use, args=(n,), name=f"user {n}")
            for n in range(self.users)
        ]
        for user in users:
            user.start()
        try:
            yield self
        finally:
            self.end()
            end = time.monotonic() + _END_S
            for user in users:
                user.join(max(0.0, end - time.monotonic()))
            left = [user.name for user in users if user.is_alive()]
            why = f"still without an answer {_END_S:g} s after the end"
            self.records += [Record(time.time(), name, "draw", error=why) for name in left]

    def end(self) -> None:
        """Nobody asks for more."""
        self._over.set()

    @property
    def users(self) -> int:
        return self.waiting + self.following

    def until_answered(self, more: int, timeout_s: float = 60.0) -> None:
        """Return once so many more requests have been answered."""
        goal = len(self.records) + more
        until(lambda: len(self.records) >= goal, timeout_s, f"{more} more answers")

    def _use(self, number: int) -> None:
        with session_of(Entry(key=self.key)) as session:
            session.mount("http://", _Watchful())
            client = Client(self.url, Checker("synthetic"), f"user {number}", session)
            ask = client.draw if number < self.waiting else client.stream
            for turn in itertools.count():
                if self._over.is_set():
                    return
                body = {
                    "prompt": f"user {number} turn {turn} {time.time():.6f}",
                    "size": self.size,
                    "steps": self.steps,
                }
                self.records.append(self.answered(ask, body))

    def answered(self, ask: Callable[[dict[str, Any]], Record], body: dict[str, Any]) -> Record:
        """What comes of ``body`` in the end."""
        for refused in range(self.most_refusals + 1):
            record = ask(body)
            if self.asks_again and record.status == 0 and record.error:
                self.asked_again += 1
                time.sleep(_PAUSE_S)
                record = ask(body)
            record.refused = refused
            if record.retry_after_s is None:
                break
            self.refusals.append(record)
            if not self.may_be_refused:
                break
            time.sleep(record.retry_after_s)
        return record
