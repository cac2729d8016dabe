"""What supervisord says of the cell's programs; those that it keeps backing off are started."""

import asyncio
import time
from collections.abc import Sequence
from typing import Protocol

from deploy.guard.journal import Journal
from deploy.guard.judge import Observation
from deploy.guard.left_behind import LeftBehind
from deploy.guard.process import Process, find_worker
from deploy.guard.settings import GuardSettings
from deploy.guard.supervisor import (
    Exit,
    Program,
    Restarts,
    Supervisor,
    SupervisorAway,
    SupervisorEnds,
)
from deploy.guard.watch import Watch
from deploy.layout import Layout

_INTERVAL_S = 2.0  # a death asks at once
_SOON_S = 0.1
_DYING_S = 5.0
"""So long a killed process may take to be gone: a driver takes its memory of a card apart first."""
_AWAY_S = 3.0


class Links(Protocol):
    """The programs of a front's links, and which of them are to run now."""

    @property
    def all_programs(self) -> frozenset[str]: ...

    @property
    def wanted_programs(self) -> frozenset[str]: ...


class Programs:
    def __init__(
        self,
        watches: Sequence[Watch],
        settings: GuardSettings,
        layout: Layout,
        journal: Journal,
        left_behind: LeftBehind,
    ) -> None:
        self._watches = watches
        self._settings = settings
        self._journal = journal
        self._left_behind = left_behind
        self._supervisor = Supervisor(layout.supervisor_socket)
        self._restarts = Restarts(settings.guard.max_start_backoff_s)
        self._programs: dict[str, Program] = {}
        self._poked = asyncio.Event()
        self.links: Links | None = None
        self._ended: dict[int, float] = {}  # pids, and until when to hurry

    def poke(self, ended: int | None = None) -> None:
        """Ask supervisor now: somebody has ended. And again, until process ``ended`` is replaced:
        its main thread may be gone before the rest of it is, and supervisor sees only that."""
        if ended:
            self._ended[ended] = time.monotonic() + _DYING_S
        self._poked.set()

    def pid(self, name: str) -> int:
        """Of program ``name``, as supervisor said last; 0 where it has none."""
        program = self._programs.get(name)
        return program.pid if program else 0

    def look(self, watch: Watch, now: float) -> Observation:
        """Everything that is known of ``watch`` at ``now``."""
        before = watch.process
        seen = watch.look(self._programs.get(watch.name), now)
        if watch.process != before:
            self._report_process(watch, before)
        return seen

    def _report_process(self, watch: Watch, before: Process | None) -> None:
        if before:
            self._journal.event(f"process {before.pid} is gone: {watch.last_exit}", watch.name)
            self._journal.clear("unkillable", watch.name)
            self.poke(before.pid)
        if watch.process:
            self._journal.event(f"process {watch.pid} is there", watch.name)

    def beatless(self, watch: Watch) -> Process | None:
        """The process that supervisor started and that has not written a heartbeat."""
        program = self._programs.get(watch.name)
        return find_worker(program.pid, watch.name, self._settings.run_dir) if program else None

    async def follow(self) -> None:
        """For ever."""
        answered_at = time.monotonic()
        while True:
            try:
                before = self._programs
                self._programs = await asyncio.to_thread(self._supervisor.programs)
                if _somebody_ended(before, self._programs):
                    self._explain_exits(await asyncio.to_thread(self._supervisor.exits))
                await self._start_what_is_down()
                await self._start_links()
                answered_at = time.monotonic()
                self._journal.clear("supervisor_away")
            except SupervisorEnds:
                self._programs = {}
            except SupervisorAway as error:
                self._programs = {}
                if time.monotonic() - answered_at > _AWAY_S:
                    self._journal.alarm("supervisor_away", str(error))
            await self._poke_or_interval()

    async def _poke_or_interval(self) -> None:
        try:
            async with asyncio.timeout(_SOON_S if self._hurries() else _INTERVAL_S):
                await self._poked.wait()
        except TimeoutError:
            return
        self._poked.clear()

    def _hurries(self) -> bool:
        """Whether supervisor has yet to see that somebody has ended, or to start it again."""
        pids = {program.pid for program in self._programs.values()}
        starts = any(program.state == "EXITED" for program in self._programs.values())
        now = time.monotonic()
        self._ended = {
            pid: until
            for pid, until in self._ended.items()
            if now < until and (starts or pid in pids)
        }
        return bool(self._ended)

    def _explain_exits(self, exits: list[Exit]) -> None:
        newest = {end.name: end for end in exits}
        for watch in self._watches:
            if watch.name in newest:
                watch.exited(newest[watch.name])

    async def _start_what_is_down(self) -> None:
        left = self._left_behind.stopped()
        for name in (*(watch.name for watch in self._watches), *self._settings.programs):
            program = self._programs.get(name)
            if program is None:
                continue
            text = f"supervisor gave up on {name}: {program.spawn_error or 'it ends at once'}"
            self._journal.set("fatal", program.state == "FATAL", text, name)
            if program.state == "STOPPED" and name in left:
                self._journal.event("start it: the command that had stopped it is gone", name)
                await asyncio.to_thread(self._supervisor.start, program)
            elif self._restarts.due(program, time.monotonic()):
                self._journal.event(f"start it: supervisor has it in {program.state}", name)
                await asyncio.to_thread(self._supervisor.start, program)

    async def _start_links(self) -> None:
        """And stop those that lead to nobody any more."""
        wanted = self.links.wanted_programs if self.links else frozenset()
        for name in sorted(self.links.all_programs if self.links else ()):
            program = self._programs.get(name)
            if program is None:
                continue
            if name not in wanted and program.state in {"STARTING", "RUNNING"}:
                await asyncio.to_thread(self._supervisor.stop, program)
            elif name in wanted and (
                program.state == "STOPPED" or self._restarts.due(program, time.monotonic())
            ):
                await asyncio.to_thread(self._supervisor.start, program)


def _somebody_ended(before: dict[str, Program], now: dict[str, Program]) -> bool:
    pids = {name: program.pid for name, program in now.items()}
    return 0 in pids.values() or pids != {name: program.pid for name, program in before.items()}
