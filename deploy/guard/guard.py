"""The guard's life: one task asks each worker, one judges them all ten times a second."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

from deploy.guard import exposition, state
from deploy.guard.chores import Chores
from deploy.guard.empty_models import EmptyModels
from deploy.guard.front import Front
from deploy.guard.gate import make_closed_socket
from deploy.guard.gpus import Gpus
from deploy.guard.host_metrics import HostMetrics
from deploy.guard.journal import Journal
from deploy.guard.judge import EXCUSED, KillHold, Observation, Verdict, judge
from deploy.guard.keeping import Keeping
from deploy.guard.killer import Killer
from deploy.guard.left_behind import LeftBehind
from deploy.guard.metrics import GuardMetrics
from deploy.guard.observer import Observer
from deploy.guard.programs import Programs
from deploy.guard.settings import GuardSettings
from deploy.guard.troubles import Troubles
from deploy.guard.watch import Watch, Word
from deploy.layout import Layout
from worker.coordination.heartbeat import Phase

_TICK_S = 0.1
_STATE_INTERVAL_S = 1.0
_EMPTY_POOL_S = 10.0
_STOP_REMINDER_S = 2.0


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
        self._observer = Observer(
            self._watches,
            self._gpus,
            self._layout,
            self._metrics.registry,
            settings.guard.history_interval_s,
        )
        self._hold = KillHold(self._rules)
        self._left_behind = LeftBehind(self._layout, self._journal, self._troubles)
        self._programs = Programs(
            self._watches, settings, self._layout, self._journal, self._left_behind
        )
        self._killer = Killer(self._hold, self._rules, self._programs, self._layout, self._journal)
        self._chores = Chores(self._keeping, settings, self._layout, self._journal, self._troubles)
        self._front = self._front_of(settings)
        self._tasks: set[asyncio.Task[None]] = set()
        self._written_at = 0.0
        self._open_at: float | None = None
        self._models = EmptyModels(self._journal, _EMPTY_POOL_S)

    def _front_of(self, settings: GuardSettings) -> Front | None:
        if settings.front is None:
            return None
        rules, journal, troubles = settings.front, self._journal, self._troubles
        front = Front(settings, rules, self._layout, journal, troubles, self._programs)
        self._metrics.registry.register(HostMetrics(front))
        return front

    async def run(self, settings_path: Path) -> None:
        """Guard until ``settings_path`` vanishes, which is how a removed cell looks."""
        self._keeping.lock()
        make_closed_socket(self._layout.closed_socket)
        for watch in self._watches:
            with self._troubles.survived("preparing the gate", watch.name):
                watch.gate.prepare()
        if self._front:
            with self._troubles.survived("preparing the links to hosts"):
                self._front.prepare()
        self._gpus.start()
        self._journal.event("guard started")
        async with (
            exposition.serving(self._layout.guard_socket, self._metrics.render),
            asyncio.TaskGroup() as tasks,
        ):
            for_ever: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
                "judging": self._judge_for_ever,
                "asking supervisor": self._programs.follow,
                "housekeeping": self._chores.do_for_ever,
                "keeping the short name": self._chores.keep_the_short_link,
                "clearing what dead commands left": self._left_behind.clear_for_ever,
                "keeping the history": self._observer.observe_for_ever,
                **(self._front.loops if self._front else {}),
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
                seen[watch] = self._programs.look(watch, now)
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
        if verdict.kill and self._killer.may_kill(watch, now):
            self._spawn(
                "killing", watch, self._killer.kill(watch, verdict.kill, verdict.kill_cause)
            )
        self._apply(watch, verdict)
        self._pass_drain_on(watch, sight)
        self._remind_of_stop(watch, sight, now)

    def _silences(self, seen: dict[Watch, Observation]) -> tuple[list[float], int]:
        serving = [w for w, s in seen.items() if w.was_ready and s.alive and _expected(s)]
        limit_s = self._rules.silence_s
        silent = [w.silent_since for w in serving if seen[w].silent_s >= limit_s]
        return silent, len(serving)

    def _on_change(self, watch: Watch) -> None:
        now = time.monotonic()
        with self._troubles.survived("judging", watch.name):
            self._apply(watch, judge(self._programs.look(watch, now), now, self._rules))

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
        """For what ``watch`` draws: one with another model is none."""
        alike = (other for other in self._watches if other.model == watch.model)
        return any(other.gate.is_open for other in alike if other is not watch)

    def _watch_pool(self, now: float) -> None:
        self._models.look(self._watches, now)
        if any(watch.gate.is_open for watch in self._watches):
            self._open_at = now
        empty = self._open_at is not None and now - self._open_at > _EMPTY_POOL_S
        self._journal.set("pool_empty", empty, f"no worker has been in for {_EMPTY_POOL_S:g} s")

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

    def _write_state(self, now: float) -> None:
        if not self._journal.news and now - self._written_at < _STATE_INTERVAL_S:
            return
        self._written_at = now
        self._journal.news = False
        try:
            seen = state.snapshot(self._settings, self._watches, self._journal, self._gpus)
            if self._front:
                seen |= self._front.as_json()
            state.write(self._layout.cell_json, seen)
        except OSError as error:
            logging.getLogger("guard").error("cannot write the cell's state: %s", error)

    def _spawn(self, what: str, watch: Watch, work: Coroutine[None, None, None]) -> None:
        async def survived() -> None:
            with self._troubles.survived(what, watch.name):
                await work

        task = asyncio.create_task(survived())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _vanished(path: Path) -> None:
    while True:
        await asyncio.sleep(1.0)
        if not await asyncio.to_thread(path.exists):
            return


def _expected(seen: Observation) -> bool:
    """Whether the worker should be answering now."""
    return seen.heartbeat is not None and seen.heartbeat.phase not in EXCUSED | {Phase.ENDED}
