"""One worker as the guard has seen it so far: its answers, heartbeat, process and gate."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from math import inf
from typing import Literal

from deploy.guard import probe
from deploy.guard.gate import Gate
from deploy.guard.judge import DOING, EXCUSED, Cause, Observation, State
from deploy.guard.probe import Answer, NoAnswer, NobodyListens
from deploy.guard.process import Process, find_worker
from deploy.guard.settings import GuardSettings, WorkerSettings
from deploy.guard.supervisor import Exit, Program
from deploy.layout import Layout
from worker.coordination.heartbeat import DRAWING, Heartbeat, Phase, read_heartbeat

# One question stays open for long: a stopped worker is not given a heap of them to answer later,
# and answers within the moment in which it goes on.
_PROBE_TIMEOUT_S = 5.0

Word = Literal["drain", "finish", "go on"]
"""What a worker is told: to hand back what waits, to draw it first, or to take requests again."""
_PATHS: dict[Word, str] = {
    "drain": "/admin/drain",
    "finish": "/admin/drain?finish=1",
    "go on": "/admin/undrain",
}
FAULTS = ("killed", "died")
"""By the guard; or of itself, by the kernel or a stranger."""


class Watch:
    def __init__(self, worker: WorkerSettings, settings: GuardSettings, layout: Layout) -> None:
        self.name = worker.name
        self.device = worker.device
        self.device_name = worker.device_name
        self.model = worker.model
        self.gate = Gate(layout.gate(self.name), layout.socket(self.name), layout.closed_socket)
        self.heartbeat: Heartbeat | None = None
        self.process: Process | None = None
        self.answer: Answer | None = None
        self.state: State = "loading"
        self.since = time.time()
        self.restarts = 0
        self.last_exit: str | None = None
        self.last_fault: dict[str, object] | None = None
        self.faults: Counter[str] = Counter()
        self.ejections: Counter[Cause] = Counter()
        self.being_killed = False
        self.was_ready = False
        """This process has answered 200 before: only then does its silence mean anything."""
        self.told: tuple[int, Word] | None = None
        """The pid that was last told something, and what."""
        self.ignores_stop_since: float | None = None
        """Supervisor stops it and it goes on answering 200; monotonic seconds."""
        self._had_process = False
        self._last_end: Exit | None = None
        self._killed_because: str | None = None
        self._socket = layout.socket(self.name)
        self._beat_path = layout.heartbeat(self.name)
        self._flag = layout.drained_flag(self.name)
        self._run_dir = settings.run_dir
        self._interval_s = settings.guard.probe_interval_s
        self._heard_at = time.monotonic()
        self._worked_at = -inf
        self._excused_at = -inf
        self._allowed_s = 0.0
        self._refused_at: float | None = None

    @property
    def pid(self) -> int:
        """0 while there is no process."""
        return self.process.pid if self.process else 0

    @property
    def drain_wanted(self) -> bool:
        return self._flag.exists()

    @property
    def silent_since(self) -> float:
        return max(self._heard_at, self._excused_at)

    async def ask_for_ever(self, on_change: Callable[["Watch"], None]) -> None:
        """Ask ``/readyz`` again and again; ``on_change`` when the answer is another one."""
        while True:
            before, asked_at = self._outcome(), time.monotonic()
            await self._ask()
            if self._outcome() != before:
                on_change(self)
            await asyncio.sleep(max(0.0, self._interval_s - (time.monotonic() - asked_at)))

    async def tell(self, word: Word) -> bool:
        """Whether the worker took it."""
        with suppress(NobodyListens, NoAnswer):
            answer = await probe.ask(self._socket, _PATHS[word], method="POST", timeout_s=2.0)
            return answer.status < 300
        return False

    def look(self, program: Program | None, now: float) -> Observation:
        """Read heartbeat and process; everything that is known at ``now``."""
        # Torn for as long as its writer is off the processor: that is no missing heartbeat.
        self.heartbeat = read_heartbeat(self._beat_path) or self.heartbeat
        self._follow_process(now)
        if self.process and self.heartbeat and self.heartbeat.phase is not Phase.IDLE:
            self._worked_at = now
            self._excused_at = now if self.heartbeat.phase in EXCUSED else self._excused_at
        return Observation(
            heartbeat=self.heartbeat,
            alive=self.process is not None,
            answer=self.answer,
            silent_s=now - self._heard_at,
            worked_s=now - self._worked_at,
            allowed_s=self._longest_allowance_s(),
            excused_s=now - self._excused_at,
            refused_s=None if self._refused_at is None else now - self._refused_at,
            beatless_s=self._beatless_s(program),
            program=program.state if program else "UNKNOWN",
            drained=self.drain_wanted,
        )

    def forgive(self, seconds: float) -> None:
        """Do not count ``seconds`` in which the guard itself could not listen."""
        self._heard_at = min(self._heard_at + seconds, time.monotonic())

    def enter(self, state: State) -> bool:
        """Whether ``state`` is new."""
        if state == self.state:
            return False
        self.state, self.since = state, time.time()
        return True

    @property
    def lane(self) -> str:
        """What the history calls it: ``in`` the pool, or out and why."""
        return "in" if self.gate.is_open else self.state

    @property
    def predicted_wait_s(self) -> float:
        said = self.answer.body.get("predicted_wait_s") if self.answer else None
        return float(said) if isinstance(said, int | float) else 0.0

    def resident_bytes(self) -> int:
        """Memory of its process; 0 without one."""
        return self.process.resident_bytes() if self.process else 0

    def fault(self, kind: str, what: str) -> None:
        """``kind`` is one of ``FAULTS``."""
        self.faults[kind] += 1
        self.last_fault = {"at": round(time.time(), 3), "what": what}

    def exited(self, end: Exit) -> None:
        """Supervisor knows how a process of this worker has ended."""
        if end == self._last_end:
            return
        self._last_end = end
        if self._killed_because:
            self.last_exit, self._killed_because = f"killed: {self._killed_because}", None
        else:
            self.last_exit = end.meaning

    def killing(self, why: str) -> None:
        """The guard itself ends the process."""
        self._killed_because = why
        self.last_exit = f"killed: {why}"
        self.fault("killed", why)

    def _outcome(self) -> tuple[int | None, bool]:
        return self.answer.status if self.answer else None, self._refused_at is None

    async def _ask(self) -> None:
        try:
            self.answer = await probe.ask(self._socket, "/readyz", timeout_s=_PROBE_TIMEOUT_S)
            self.was_ready |= self.answer.status == 200
            self._refused_at = None
            self._heard(time.monotonic())
        except NobodyListens:
            self._nobody_listens(time.monotonic())
        except NoAnswer:
            return

    def _longest_allowance_s(self) -> float:
        """Of the phases since it was last heard."""
        if self.heartbeat and self.heartbeat.phase in DRAWING:
            self._allowed_s = max(self._allowed_s, self.heartbeat.allowance_s)
        return self._allowed_s

    def _heard(self, now: float) -> None:
        self._heard_at, self._allowed_s = now, 0.0

    def _nobody_listens(self, now: float) -> None:
        self.answer = None
        self._heard(now)
        self._refused_at = now if self._refused_at is None else self._refused_at

    def _follow_process(self, now: float) -> None:
        if self.process and not self.process.alive:
            self._ended(now)
        if self.heartbeat and self.process is None:
            self.process = find_worker(self.heartbeat.pid, self.name, self._run_dir)
            if self.process:
                self.restarts += self._had_process
                self._had_process = True
                self._heard(now)

    def _ended(self, now: float) -> None:
        phase = self.heartbeat.phase if self.heartbeat and self.heartbeat.pid == self.pid else None
        orderly = phase is Phase.ENDED
        where = f"died {DOING[phase]}" if phase in DOING else "died"
        if self._killed_because is None:
            self.last_exit = "ended in order" if orderly else where
            if not orderly:
                self.fault("died", where)
        self.process = None
        self.was_ready = False
        self._nobody_listens(now)

    def _beatless_s(self, program: Program | None) -> float:
        if (
            program is None
            or not program.pid
            or (self.heartbeat and self.heartbeat.pid == program.pid)
        ):
            return 0.0
        return program.uptime_s
