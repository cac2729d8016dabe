"""Ends workers that must be ended: at most so many a minute, and none after a mass silence."""

import asyncio
import logging
import time

from deploy.guard.journal import Journal
from deploy.guard.judge import KillHold
from deploy.guard.process import Process
from deploy.guard.programs import Programs
from deploy.guard.settings import Rules
from deploy.guard.watch import Watch
from deploy.layout import Layout
from worker.coordination.heartbeat import Kill, KillCause, write_kill

_DEATH_TIMEOUT_S = 2.0  # a killed process that is there for longer cannot be killed


class Killer:
    def __init__(
        self, hold: KillHold, rules: Rules, programs: Programs, layout: Layout, journal: Journal
    ) -> None:
        self._hold = hold
        self._rules = rules
        self._programs = programs
        self._layout = layout
        self._journal = journal

    def may_kill(self, watch: Watch, now: float) -> bool:
        """Whether ``watch`` is to be killed ``now`` that it must be; if so, it counts."""
        if watch.being_killed or self._hold.active(now):
            return False
        if self._hold.kill_budget_exhausted(now):
            limit = self._rules.max_kills_per_minute
            self._journal.alarm("kill_rate", f"{limit} kills in a minute: no more for now")
            return False
        self._hold.count_kill(now)
        watch.being_killed = True
        return True

    async def kill(self, watch: Watch, why: str, cause: KillCause) -> None:
        """End its process, and see it gone."""
        try:
            process = watch.process or self._programs.beatless(watch)
            if process is None:
                return
            watch.killing(why)
            self._journal.event(f"kill {process.pid}: {why}", watch.name, logging.WARNING)
            self._leave_word(watch, process, cause)
            process.kill()
            await self._await_death(watch, process)
        finally:
            watch.being_killed = False

    def _leave_word(self, watch: Watch, process: Process, cause: KillCause) -> None:
        """For whoever asks what the requests inside have to do with it."""
        if watch.heartbeat is None or watch.heartbeat.pid != process.pid:
            return
        # Somebody has stopped it: no request does that.
        cause = "other" if process.state in {"T", "t"} else cause
        kill = Kill(process.pid, watch.heartbeat.since, cause)
        try:
            write_kill(self._layout.heartbeat(watch.name), kill)
        except OSError as error:
            self._journal.event(f"cannot say why it is killed: {error}", watch.name)

    async def _await_death(self, watch: Watch, process: Process) -> None:
        patience = time.monotonic() + _DEATH_TIMEOUT_S
        while time.monotonic() < patience:
            if not process.alive:
                break
            await asyncio.sleep(0.005)
        text = f"process {process.pid} survives SIGKILL in state {process.state or '-'}"
        if process.alive:
            self._journal.alarm("unkillable", text, watch.name)
        self._programs.look(watch, time.monotonic())
        self._programs.poke()
