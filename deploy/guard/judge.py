"""What is to be done about a worker, from what was seen of it. No clock, files or processes here.

===============================  ==========================================================
seen                             done
===============================  ==========================================================
200                              in
503                              out, never killed for it
refused, missing, ended          out at once
silent for ``silence_s``         out while another is in, and in again with the next 200
phase over its allowance         out and killed, whatever it answers
idle and silent                  killed after ``idle_allowance_s``
idle, its thread stands still    killed ``idle_allowance_s`` after its heartbeat was due
drawing and silent               killed after the longest allowance of the calls in which it was
no heartbeat since its start     killed after ``boot_allowance_s``
past loading, nobody listens     killed after ``deaf_allowance_s``
ended in order, still there      killed after ``ended_allowance_s``
===============================  ==========================================================

Half or more silent together, or the guard itself late: no kills for ``mass_silence_hold_s``.
"""

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from math import inf
from typing import Literal

from deploy.guard.probe import Answer
from deploy.guard.settings import Rules
from worker.coordination.heartbeat import DRAWING, Heartbeat, KillCause, Phase

State = Literal[
    "loading", "ready", "busy", "draining", "drained", "stuck", "silent", "dead", "backoff", "fatal"
]

# Imports, loading and compilation hold the GIL: silence says nothing then.
EXCUSED = frozenset({Phase.BOOT, Phase.LOAD, Phase.COMPILE})

DOING = {
    Phase.BOOT: "at its start",
    Phase.LOAD: "loading the model",
    Phase.COMPILE: "compiling",
    Phase.IDLE: "idle",
    Phase.ENCODE: "encoding text",
    Phase.STEP: "in a step",
    Phase.DECODE: "decoding",
}
"""What a worker does in a phase, for people."""


# "spare": close it unless it is the last open one. A request that waits for a silent worker may
# still be drawn; without an open gate it certainly fails.
GateVerdict = Literal["open", "close", "spare", "keep"]


# Why it goes out, for counting. The first four are seen from outside, the next it says itself.
Cause = Literal[
    "drained",
    "hung",
    "gone",
    "silent",
    "loading",
    "warming",
    "draining",
    "stuck",
    "broken",
    "other",
]


@dataclass(frozen=True)
class Observation:
    """One worker at one moment. Seconds are durations up to that moment."""

    heartbeat: Heartbeat | None = None
    alive: bool = False
    """The process of ``heartbeat`` is there and is this worker."""
    answer: Answer | None = None
    """The last answer of this process."""
    silent_s: float = 0.0
    """Since it was last heard (answered or refused), or the guard began to listen."""
    worked_s: float = inf
    """Since it was last seen in another phase than idle. An idle worker's thread beats on, also
    when its event loop stands still: a young heartbeat does not say that it serves."""
    allowed_s: float = 0.0
    """The longest allowance of the phases it was seen in since it was last heard: a call that keeps
    the interpreter to itself is silent as long as it lasts, and the next one may be short."""
    excused_s: float = inf
    """Since it was last seen in a phase in which silence is excused."""
    refused_s: float | None = None
    """Since when nobody listens; None while somebody does."""
    beatless_s: float = 0.0
    """Since supervisor started a process that has not written its first heartbeat."""
    program: str = "UNKNOWN"
    """Supervisor's state of the program."""
    drained: bool = False
    """An operator wants it out of the pool."""


@dataclass(frozen=True)
class Verdict:
    gate: GateVerdict
    why: str
    state: State
    kill: str | None = None
    """Why it must be killed; None: let it live."""
    kill_cause: KillCause = "other"
    """Who is to blame for that: see ``worker.coordination.poison_requests``."""
    cause: Cause = "other"
    """``why`` in one of few words."""


def judge(seen: Observation, now: float, rules: Rules) -> Verdict:
    """``now`` is on the clock of ``Heartbeat.since``."""
    kill, kill_cause = _kill_reason(seen, now, rules)
    gate, why, cause = _gate(seen, kill, rules)
    return Verdict(gate, why, _state(seen, kill, rules), kill, kill_cause, cause)


def _kill_reason(seen: Observation, now: float, rules: Rules) -> tuple[str | None, KillCause]:
    if not seen.alive or seen.heartbeat is None:
        if seen.beatless_s > rules.boot_allowance_s:
            return f"no heartbeat {seen.beatless_s:.0f} s after its start", "other"
        return None, "other"
    heartbeat, age_s = seen.heartbeat, seen.heartbeat.age_s(now)
    if heartbeat.phase is Phase.ENDED:
        late = age_s > rules.ended_allowance_s
        return f"still there {age_s:.0f} s after its orderly end" if late else None, "other"
    # Where a thread stands still that draws nothing, no request is to blame.
    if heartbeat.phase is Phase.IDLE and age_s > heartbeat.allowance_s + rules.idle_allowance_s:
        return f"hung while idle: no heartbeat for {age_s:.1f} s", "other"
    if heartbeat.phase is not Phase.IDLE and heartbeat.overdue(now):
        where = DOING.get(heartbeat.phase, "")
        return f"hung {where}: {age_s:.1f} s (limit {heartbeat.allowance_s:.1f} s)", "overdue"
    if heartbeat.phase in EXCUSED:
        return None, "other"
    if silence := _silence_reason(seen, heartbeat, rules):
        return silence, "silent"
    return _deaf_reason(seen, rules), "other"


def _silence_reason(seen: Observation, heartbeat: Heartbeat, rules: Rules) -> str | None:
    silent_s = min(seen.silent_s, seen.excused_s)
    if heartbeat.phase is Phase.IDLE and min(silent_s, seen.worked_s) > rules.idle_allowance_s:
        return f"idle and silent for {silent_s:.1f} s"
    # Its thread still steps, but nobody would ever get the pictures. Where it is one call that
    # stands still, its silence began a moment before: by then that call is overdue.
    allowed_s = max(seen.allowed_s, heartbeat.allowance_s) + rules.silence_s
    if heartbeat.phase in DRAWING and silent_s > allowed_s:
        return f"drawing and silent for {silent_s:.1f} s"
    return None


def _deaf_reason(seen: Observation, rules: Rules) -> str | None:
    # A worker that supervisor stops closes its socket first: that one is left to supervisor.
    refused_s = min(seen.refused_s or 0.0, seen.excused_s)
    if refused_s > rules.deaf_allowance_s and seen.program == "RUNNING":
        return f"alive, but nobody listens for {refused_s:.1f} s"
    return None


def _gate(seen: Observation, kill: str | None, rules: Rules) -> tuple[GateVerdict, str, Cause]:
    if seen.drained:
        return "close", "drained", "drained"
    if kill is not None:
        return "close", kill, "hung"
    if seen.refused_s is not None:
        return "close", "nobody listens", "gone"
    if seen.silent_s >= rules.silence_s:
        return "spare", f"silent for {seen.silent_s:.1f} s", "silent"
    if seen.answer is None:
        return "keep", "not heard yet", "other"
    if seen.answer.status == 200:
        return "open", "ready", "other"
    reason = seen.answer.reason
    return "close", reason or f"answered {seen.answer.status}", _SAID.get(reason, "other")


_SAID: dict[str, Cause] = {
    "loading": "loading",
    "warming": "warming",
    "draining": "draining",
    "stuck": "stuck",
    "broken": "broken",
}


def _state(seen: Observation, kill: str | None, rules: Rules) -> State:
    if seen.program == "FATAL":
        return "fatal"
    if seen.program == "BACKOFF":
        return "backoff"
    if seen.drained:
        return "drained" if seen.refused_s is not None or _at_rest(seen.answer) else "draining"
    if kill is not None:
        return "stuck"
    return _state_by_answer(seen, rules)


def _state_by_answer(seen: Observation, rules: Rules) -> State:
    loading = seen.heartbeat is not None and seen.heartbeat.phase in EXCUSED
    if not seen.alive and seen.refused_s is not None:
        being_started = seen.beatless_s > 0 or seen.program == "STARTING"
        return "loading" if being_started else "dead"
    if seen.refused_s is not None:
        return "loading" if loading else "dead"
    if seen.silent_s >= rules.silence_s:
        return "loading" if loading else "silent"
    if seen.answer is None:
        return "loading"
    if seen.answer.status == 200:
        return "busy" if _has_work(seen.answer) else "ready"
    return _NOT_READY.get(seen.answer.reason, "loading" if loading else "stuck")


_NOT_READY: dict[str, State] = {"draining": "draining", "loading": "loading", "warming": "loading"}


def _at_rest(answer: Answer | None) -> bool:
    """Whether the worker itself says that it drains, and has nothing left to do."""
    return answer is not None and answer.reason == "draining" and not _has_work(answer)


def _has_work(answer: Answer | None) -> bool:
    return answer is not None and bool(answer.body.get("queued") or answer.body.get("running"))


class KillHold:
    """Whether anybody may be killed now: not after a mass silence, not too many a minute."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._until = -inf
        self._newest_onset = -inf
        self._kills: deque[float] = deque()
        self.why = ""

    def loop_was_late(self, lag_s: float, now: float) -> None:
        """The guard's own loop came ``lag_s`` late: the machine froze, not the workers."""
        if lag_s >= self._rules.late_loop_s:
            self._begin(now, f"the guard's own loop was {lag_s:.1f} s late")

    def silences(self, onsets: Collection[float], serving: int, now: float) -> None:
        """``onsets``: when the silent ones of ``serving`` workers fell silent."""
        newest = max(onsets, default=-inf)
        together = sum(onset >= newest - self._rules.mass_silence_window_s for onset in onsets)
        # Two at least: otherwise the hung worker of a small pool would be left to hang.
        if newest > self._newest_onset and together >= max(2, serving / 2):
            self._newest_onset = newest
            self._begin(now, f"{together} of {serving} workers fell silent together")

    def active(self, now: float) -> bool:
        return now < self._until

    def kill_budget_exhausted(self, now: float) -> bool:
        """Whether this minute's kills are used up."""
        while self._kills and self._kills[0] <= now - 60.0:
            self._kills.popleft()
        return len(self._kills) >= self._rules.max_kills_per_minute

    def count_kill(self, now: float) -> None:
        self._kills.append(now)

    def _begin(self, now: float, why: str) -> None:
        self._until = now + self._rules.mass_silence_hold_s
        self.why = why
