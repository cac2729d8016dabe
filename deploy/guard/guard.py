"""The guard's life: one task asks each worker, one judges them all ten times a second."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

from deploy.guard import exposition, housekeeping, state
from deploy.guard.gate import make_closed_socket
from deploy.guard.gpus import Gpus
from deploy.guard.journal import Journal
from deploy.guard.judge import EXCUSED, KillHold, Observation, Verdict, judge
from deploy.guard.keeping import Keeping
from deploy.guard.metrics import GuardMetrics
from deploy.guard.observer import Observer
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
from deploy.guard.troubles import Troubles
from deploy.guard.watch import Watch, Word
from deploy.layout import Layout
from worker.coordination.heartbeat import Kill, KillCause, Phase, write_kill

_TICK_S = 0.1
_STATE_INTERVAL_S = 1.0
_SUPERVISOR_INTERVAL_S = 2.0  # a death asks at once
_CHORES_INTERVAL_S = 10.0
_DEATH_TIMEOUT_S = 2.0  # a killed process that is there for longer cannot be killed
_EMPTY_POOL_S = 10.0
_STOP_REMINDER_S = 2.0
_REPLY_TTL_S = 15.0  # nginx opens an answer's file within milliseconds
_SUPERVISOR_AWAY_S = 3.0
_CERTIFICATE_DAYS = 14.0  # certbot has tried to renew it for two weeks by then


class Guard:
    def __init__(self, settings: GuardSettings) -> None:
        self._settings = settings
        self._rules = settings.guard
        self._layout = Layout(settings.var_dir, settings.run_dir, short_link=settings.short_link)
        self._journal = Journal()
        self._troubles = Troubles(self._journal)
        self._keeping = Keeping(self._layout)
        self._watches = [Watch(w, settings, self._layout) for w in settings.workers]
        self._gpus = Gpus(watch.device for watch in self._watches)
        self._metrics = GuardMetrics(self._watches, self._journal, self._gpus, settings.var_dir)
        self._observer = Observer(self._watches, self._gpus, self._layout, self._metrics.registry)
        self._hold = KillHold(self._rules)
        self._supervisor = Supervisor(self._layout.supervisor_socket)
        self._restarts = Restarts(self._rules.max_start_backoff_s)
        self._programs: dict[str, Program] = {}
        self._poked = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._written_at = 0.0
        self._open_at: float | None = None

    async def run(self, settings_path: Path) -> None:
        """Guard until ``settings_path`` vanishes, which is how a removed cell looks."""
        self._keeping.lock()
        make_closed_socket(self._layout.closed_socket)
        for watch in self._watches:
            with self._troubles.survived("preparing the gate", watch.name):
                watch.gate.prepare()
        self._gpus.start()
        self._journal.event("guard started")
        async with (
            exposition.serving(self._layout.guard_socket, self._metrics.render),
            asyncio.TaskGroup() as tasks,
        ):
            for_ever: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
                "judging": self._judge_for_ever,
                "asking supervisor": self._supervise,
                "housekeeping": self._do_chores,
                "keeping the short name": self._keep_the_short_link,
                "keeping the history": self._observer.observe_for_ever,
                **{
                    f"asking {w.name}": partial(w.ask_for_ever, self._on_change)
                    for w in self._watches
                },
            }
            loops = [
                tasks.create_task(self._troubles.again_and_again(what, loop))
                for what, loop in for_ever.items()
            ]
            await _vanished(settings_path)
            for loop in loops:
                loop.cancel()

    # Judging

    async def _judge_for_ever(self) -> None:
        ticked_at = time.monotonic()
        while True:
            await asyncio.sleep(_TICK_S)
            now = time.monotonic()
            self._excuse_own_lag(now - ticked_at - _TICK_S, now)
            ticked_at = now
            self._judge_all(now)
            self._write_state(now)

    def _excuse_own_lag(self, lag_s: float, now: float) -> None:
        self._metrics.lag_seconds.observe(max(0.0, lag_s))
        if lag_s > _TICK_S:
            for watch in self._watches:
                watch.forgive(lag_s)
        self._hold.loop_was_late(lag_s, now)

    def _judge_all(self, now: float) -> None:
        seen: dict[Watch, Observation] = {}
        for watch in self._watches:
            with self._troubles.survived("looking", watch.name):
                seen[watch] = self._look(watch, now)
        self._hold.silences(*self._silences(seen), now)
        self._journal.set("mass_silence", self._hold.active(now), f"no kills: {self._hold.why}")
        for watch, sight in seen.items():
            with self._troubles.survived("judging", watch.name):
                self._judge_one(watch, sight, now)
        if not self._hold.kill_budget_exhausted(now):
            self._journal.clear("kill_rate")
        self._watch_pool(now)

    def _judge_one(self, watch: Watch, sight: Observation, now: float) -> None:
        verdict = judge(sight, now, self._rules)
        # First, for a gate that cannot be moved must not keep a hung worker alive.
        if verdict.kill:
            self._want_killed(watch, verdict.kill, verdict.kill_cause, now)
        self._apply(watch, verdict)
        self._pass_drain_on(watch, sight)
        self._remind_of_stop(watch, sight, now)

    def _look(self, watch: Watch, now: float) -> Observation:
        before = watch.process
        seen = watch.look(self._programs.get(watch.name), now)
        if watch.process != before:
            self._report_process(watch, before)
        return seen

    def _report_process(self, watch: Watch, before: Process | None) -> None:
        if before:
            self._journal.event(f"process {before.pid} is gone: {watch.last_exit}", watch.name)
            self._journal.clear("unkillable", watch.name)
            self._poked.set()
        if watch.process:
            self._journal.event(f"process {watch.pid} is there", watch.name)

    def _silences(self, seen: dict[Watch, Observation]) -> tuple[list[float], int]:
        serving = [w for w, s in seen.items() if w.was_ready and s.alive and _expected(s)]
        limit_s = self._rules.silence_s
        silent = [w.silent_since for w in serving if seen[w].silent_s >= limit_s]
        return silent, len(serving)

    def _on_change(self, watch: Watch) -> None:
        now = time.monotonic()
        with self._troubles.survived("judging", watch.name):
            self._apply(watch, judge(self._look(watch, now), now, self._rules))

    def _apply(self, watch: Watch, verdict: Verdict) -> None:
        if verdict.gate == "open" and not watch.gate.is_open:
            watch.gate.open()
            self._journal.event(f"in: {verdict.why}", watch.name)
        elif self._must_close(watch, verdict) and watch.gate.is_open:
            watch.gate.close()
            watch.ejections[verdict.cause] += 1
            self._journal.event(f"out: {verdict.why}", watch.name)
        if watch.enter(verdict.state):
            self._journal.news = True
        self._observer.look(watch)

    def _must_close(self, watch: Watch, verdict: Verdict) -> bool:
        return verdict.gate == "close" or (verdict.gate == "spare" and self._another_is_open(watch))

    def _another_is_open(self, watch: Watch) -> bool:
        return any(other.gate.is_open for other in self._watches if other is not watch)

    def _watch_pool(self, now: float) -> None:
        if any(watch.gate.is_open for watch in self._watches):
            self._open_at = now
        empty = self._open_at is not None and now - self._open_at > _EMPTY_POOL_S
        self._journal.set("pool_empty", empty, f"no worker has been in for {_EMPTY_POOL_S:g} s")

    # Killing

    def _want_killed(self, watch: Watch, why: str, cause: KillCause, now: float) -> None:
        if watch.being_killed or self._hold.active(now):
            return
        if self._hold.kill_budget_exhausted(now):
            limit = self._rules.max_kills_per_minute
            self._journal.alarm("kill_rate", f"{limit} kills in a minute: no more for now")
            return
        self._hold.count_kill(now)
        watch.being_killed = True
        self._spawn("killing", watch, self._kill(watch, why, cause))

    async def _kill(self, watch: Watch, why: str, cause: KillCause) -> None:
        try:
            process = watch.process or self._beatless(watch)
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

    def _beatless(self, watch: Watch) -> Process | None:
        program = self._programs.get(watch.name)
        return find_worker(program.pid, watch.name, self._settings.run_dir) if program else None

    async def _await_death(self, watch: Watch, process: Process) -> None:
        patience = time.monotonic() + _DEATH_TIMEOUT_S
        while time.monotonic() < patience:
            if not process.alive:
                break
            await asyncio.sleep(0.005)
        text = f"process {process.pid} survives SIGKILL in state {process.state or '-'}"
        if process.alive:
            self._journal.alarm("unkillable", text, watch.name)
        self._look(watch, time.monotonic())
        self._poked.set()

    # Draining

    def _pass_drain_on(self, watch: Watch, seen: Observation) -> None:
        if not watch.pid or seen.answer is None:
            return
        word = self._word_for(watch, seen)
        if watch.told == (watch.pid, word):
            return
        # Without a flag a worker drains on SIGTERM, too: only one that nobody stops is told.
        left_over = seen.answer.reason == "draining" and seen.program in {"STARTING", "RUNNING"}
        if seen.drained or left_over:
            watch.told = watch.pid, word
            self._spawn("telling", watch, self._tell(watch, word))

    def _word_for(self, watch: Watch, seen: Observation) -> Word:
        if not seen.drained:
            return "go on"
        # Where nobody else takes requests, what it accepted would be refused. Whoever was told to
        # hand its queue back has none to finish.
        drains = self._another_is_open(watch) or watch.told == (watch.pid, "drain")
        return "drain" if drains else "finish"

    async def _tell(self, watch: Watch, word: Word) -> None:
        if await watch.tell(word):
            self._journal.event(f"told to {word}", watch.name)
        else:
            watch.told = None

    def _remind_of_stop(self, watch: Watch, seen: Observation, now: float) -> None:
        # A stop that reaches a child between fork and exec is lost: supervisor would wait for it
        # until it kills the worker, drawings and all.
        serves = seen.answer is not None and seen.answer.status == 200
        if seen.program != "STOPPING" or not serves or watch.process is None:
            watch.ignores_stop_since = None
        elif watch.ignores_stop_since is None:
            watch.ignores_stop_since = now
        elif now - watch.ignores_stop_since > _STOP_REMINDER_S:
            watch.ignores_stop_since = now
            self._journal.event("asked again to stop", watch.name)
            watch.process.terminate()

    # Supervisor

    async def _supervise(self) -> None:
        answered_at = time.monotonic()
        while True:
            try:
                before = self._programs
                self._programs = await asyncio.to_thread(self._supervisor.programs)
                if _somebody_ended(before, self._programs):
                    self._explain_exits(await asyncio.to_thread(self._supervisor.exits))
                await self._start_what_is_down()
                answered_at = time.monotonic()
                self._journal.clear("supervisor_away")
            except SupervisorEnds:
                self._programs = {}
            except SupervisorAway as error:
                self._programs = {}
                if time.monotonic() - answered_at > _SUPERVISOR_AWAY_S:
                    self._journal.alarm("supervisor_away", str(error))
            await self._poke_or_interval()

    async def _poke_or_interval(self) -> None:
        try:
            async with asyncio.timeout(_SUPERVISOR_INTERVAL_S):
                await self._poked.wait()
        except TimeoutError:
            return
        self._poked.clear()

    def _explain_exits(self, exits: list[Exit]) -> None:
        newest = {end.name: end for end in exits}
        for watch in self._watches:
            if watch.name in newest:
                watch.exited(newest[watch.name])

    async def _start_what_is_down(self) -> None:
        for name in (*(watch.name for watch in self._watches), *self._settings.programs):
            program = self._programs.get(name)
            if program is None:
                continue
            text = f"supervisor gave up on {name}: {program.spawn_error or 'it ends at once'}"
            self._journal.set("fatal", program.state == "FATAL", text, name)
            if self._restarts.due(program, time.monotonic()):
                self._journal.event(f"start it: supervisor has it in {program.state}", name)
                await asyncio.to_thread(self._supervisor.start, program)

    # Chores

    def _write_state(self, now: float) -> None:
        if not self._journal.news and now - self._written_at < _STATE_INTERVAL_S:
            return
        self._written_at = now
        self._journal.news = False
        try:
            seen = state.snapshot(self._settings.cell, self._watches, self._journal, self._gpus)
            state.write(self._layout.cell_json, seen)
        except OSError as error:
            logging.getLogger("guard").error("cannot write the cell's state: %s", error)

    async def _do_chores(self) -> None:
        layout = self._layout
        chores: dict[str, Callable[[], object]] = {
            "keeping the run directory": self._keeping.touch,
            "pruning strikes": partial(
                housekeeping.prune, layout.strikes_dir, self._rules.strike_ttl_s
            ),
            "pruning answers": partial(housekeeping.prune, layout.replies_dir, _REPLY_TTL_S),
            "rotating logs": self._rotate_logs,
            "watching the certificate": self._watch_certificate,
        }
        while True:
            for what, chore in chores.items():
                with self._troubles.survived(what):
                    chore()
            await asyncio.sleep(_CHORES_INTERVAL_S)

    def _rotate_logs(self) -> None:
        layout, size, keep = self._layout, self._settings.log_max_bytes, self._settings.log_keep
        logs = (layout.access_log, layout.nginx_error_log)
        moved = [housekeeping.rotate(log, size, keep) for log in logs]
        if any(moved):
            housekeeping.reopen_logs(layout.nginx_pid, layout.nginx_conf)

    async def _keep_the_short_link(self) -> None:
        while True:
            with self._troubles.survived("making the short name again"):
                self._keeping.again()
            await asyncio.sleep(_STATE_INTERVAL_S)

    def _watch_certificate(self) -> None:
        days = housekeeping.days_of_certificate(self._layout.certificate_json)
        ends_soon = days is not None and days < _CERTIFICATE_DAYS
        text = f"the certificate of HTTPS ends in {days or 0:.0f} days: zimage doctor"
        self._journal.set("certificate", ends_soon, text)

    def _spawn(self, what: str, watch: Watch, work: Coroutine[None, None, None]) -> None:
        async def survived() -> None:
            with self._troubles.survived(what, watch.name):
                await work

        task = asyncio.create_task(survived())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _somebody_ended(before: dict[str, Program], now: dict[str, Program]) -> bool:
    pids = {name: program.pid for name, program in now.items()}
    return 0 in pids.values() or pids != {name: program.pid for name, program in before.items()}


async def _vanished(path: Path) -> None:
    while True:
        await asyncio.sleep(1.0)
        if not await asyncio.to_thread(path.exists):
            return


def _expected(seen: Observation) -> bool:
    """Whether the worker should be answering now."""
    return seen.heartbeat is not None and seen.heartbeat.phase not in EXCUSED | {Phase.ENDED}
