from dataclasses import replace
from math import inf

import pytest

from deploy.guard.judge import KillHold, Observation, judge
from deploy.guard.probe import Answer
from deploy.guard.settings import Rules
from worker.coordination.heartbeat import Heartbeat, Phase

RULES = Rules()
NOW = 10_000.0
READY = Answer(200, {"queued": 0, "running": 0})
BUSY = Answer(200, {"queued": 2, "running": 1})
LAST_WORK = Answer(503, {"reason": "draining", "running": 1})


def in_phase(phase: Phase, age_s: float, allowance_s: float = inf) -> Heartbeat:
    return Heartbeat(42, phase, NOW - age_s, allowance_s, 7, False, ())


IDLE = in_phase(Phase.IDLE, 100.0)
SERVING = Observation(heartbeat=IDLE, alive=True, answer=READY, program="RUNNING")


def refusal(reason: str) -> Answer:
    return Answer(503, {"reason": reason})


@pytest.mark.parametrize(
    ("seen", "gate", "state"),
    [
        (SERVING, "open", "ready"),
        (replace(SERVING, answer=BUSY), "open", "busy"),
        (replace(SERVING, silent_s=0.49), "open", "ready"),
        (replace(SERVING, silent_s=0.5), "spare", "silent"),
        (replace(SERVING, answer=refusal("stuck")), "close", "stuck"),
        (replace(SERVING, answer=refusal("broken")), "close", "stuck"),
        (replace(SERVING, answer=refusal("draining")), "close", "draining"),
        (replace(SERVING, answer=refusal("warming")), "close", "loading"),
        (replace(SERVING, answer=Answer(500)), "close", "stuck"),
        (replace(SERVING, answer=None), "keep", "loading"),
        (replace(SERVING, answer=None, refused_s=0.0), "close", "dead"),
        # Drained is what drains by its own word and has nothing left.
        (replace(SERVING, drained=True), "close", "draining"),
        (replace(SERVING, drained=True, answer=LAST_WORK), "close", "draining"),
        (replace(SERVING, drained=True, answer=refusal("draining")), "close", "drained"),
        (replace(SERVING, drained=True, answer=None, refused_s=1.0), "close", "drained"),
        (Observation(refused_s=0.0, program="BACKOFF"), "close", "backoff"),
        (Observation(refused_s=0.0, program="FATAL"), "close", "fatal"),
        (Observation(refused_s=0.0, program="STARTING", beatless_s=3.0), "close", "loading"),
        (Observation(refused_s=0.0), "close", "dead"),
    ],
)
def test_gate_and_state_follow_what_was_seen(seen: Observation, gate: str, state: str) -> None:
    verdict = judge(seen, NOW, RULES)
    assert (verdict.gate, verdict.state) == (gate, state)
    assert verdict.kill is None


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        # Overdue, whatever it answers.
        (
            replace(SERVING, heartbeat=in_phase(Phase.STEP, 5.1, 5.0)),
            "hung in a step: 5.1 s (limit 5.0 s)",
        ),
        (replace(SERVING, heartbeat=in_phase(Phase.DECODE, 9.0, 5.0)), "hung decoding: 9.0 s"),
        (replace(SERVING, heartbeat=in_phase(Phase.LOAD, 901.0, 900.0)), "hung loading the model"),
        (replace(SERVING, heartbeat=in_phase(Phase.COMPILE, 601.0, 600.0)), "hung compiling"),
        (replace(SERVING, heartbeat=in_phase(Phase.BOOT, 61.0, 60.0)), "hung at its start"),
        # Silent.
        (replace(SERVING, silent_s=3.1), "idle and silent for 3.1 s"),
        # Its thread beats on while its event loop stands still.
        (replace(SERVING, silent_s=3.1, heartbeat=in_phase(Phase.IDLE, 0.4)), "idle and silent"),
        (
            replace(SERVING, silent_s=5.6, heartbeat=in_phase(Phase.STEP, 0.1, 5.0)),
            "drawing and silent for 5.6 s",
        ),
        # There, but of no use.
        (replace(SERVING, answer=None, refused_s=10.5), "nobody listens for 10.5 s"),
        (replace(SERVING, heartbeat=in_phase(Phase.ENDED, 31.0, 0.0)), "after its orderly end"),
        (Observation(program="STARTING", beatless_s=61.0), "no heartbeat 61 s after its start"),
    ],
)
def test_what_hangs_is_closed_and_killed(seen: Observation, reason: str) -> None:
    verdict = judge(seen, NOW, RULES)
    assert verdict.kill is not None
    assert reason in verdict.kill
    assert (verdict.gate, verdict.state) == ("close", "stuck")


@pytest.mark.parametrize(
    "seen",
    [
        replace(SERVING, answer=refusal("stuck")),
        replace(SERVING, silent_s=2.9),
        # Silence while the GIL is held by loading or compiling says nothing …
        replace(SERVING, silent_s=500.0, heartbeat=in_phase(Phase.LOAD, 500.0, 900.0)),
        replace(SERVING, silent_s=500.0, heartbeat=in_phase(Phase.COMPILE, 500.0, 600.0)),
        # … nor does it just after that,
        replace(SERVING, silent_s=500.0, excused_s=0.2, heartbeat=in_phase(Phase.IDLE, 0.2)),
        replace(SERVING, silent_s=500.0, excused_s=0.2, heartbeat=in_phase(Phase.STEP, 0.2, 5.0)),
        # nor when a long drawing has just ended.
        replace(SERVING, silent_s=4.0, worked_s=0.1, heartbeat=in_phase(Phase.IDLE, 0.1)),
        # A decoding of a large picture, allowed 60 s, kept the interpreter to itself.
        replace(SERVING, silent_s=9.0, allowed_s=60.0, heartbeat=in_phase(Phase.STEP, 0.1, 5.0)),
        # Supervisor is ending it: its socket goes first.
        replace(SERVING, answer=None, refused_s=60.0, program="STOPPING"),
        replace(SERVING, heartbeat=in_phase(Phase.ENDED, 5.0, 0.0)),
        # A heartbeat whose process is gone belongs to nobody.
        Observation(heartbeat=in_phase(Phase.STEP, 99.0, 5.0), alive=False, refused_s=0.1),
    ],
)
def test_what_may_recover_is_left_alive(seen: Observation) -> None:
    assert judge(seen, NOW, RULES).kill is None


@pytest.mark.parametrize(
    ("seen", "cause"),
    [
        (replace(SERVING, heartbeat=in_phase(Phase.STEP, 5.1, 5.0)), "overdue"),
        # One call that keeps the interpreter to itself is overdue, not only silent.
        (replace(SERVING, silent_s=5.3, heartbeat=in_phase(Phase.STEP, 5.1, 5.0)), "overdue"),
        (replace(SERVING, silent_s=5.6, heartbeat=in_phase(Phase.STEP, 0.1, 5.0)), "silent"),
        (replace(SERVING, silent_s=3.1), "silent"),
        (replace(SERVING, answer=None, refused_s=10.5), "other"),
        (Observation(program="STARTING", beatless_s=61.0), "other"),
    ],
)
def test_a_kill_says_whether_the_step_or_the_event_loop_stood_still(
    seen: Observation, cause: str
) -> None:
    assert judge(seen, NOW, RULES).kill_cause == cause


def test_idle_worker_whose_thread_stands_still_is_killed_for_it_and_nobody_is_to_blame() -> None:
    late = replace(SERVING, heartbeat=in_phase(Phase.IDLE, 6.1, 3.0))
    verdict = judge(late, NOW, RULES)
    assert verdict.kill == "hung while idle: no heartbeat for 6.1 s"
    assert (verdict.gate, verdict.kill_cause) == ("close", "other")
    soon = replace(SERVING, heartbeat=in_phase(Phase.IDLE, 5.9, 3.0))
    assert judge(soon, NOW, RULES).kill is None


def test_half_falling_silent_together_holds_kills() -> None:
    hold = KillHold(RULES)
    hold.silences([NOW - 0.9, NOW - 0.4], serving=4, now=NOW)
    assert hold.active(NOW + 29.9)
    assert not hold.active(NOW + 30.1)


@pytest.mark.parametrize(
    ("onsets", "serving"),
    [([NOW], 1), ([NOW], 2), ([NOW, NOW - 0.1], 5), ([NOW, NOW - 20.0], 3), ([], 0)],
)
def test_few_or_unrelated_silences_hold_nothing(onsets: list[float], serving: int) -> None:
    hold = KillHold(RULES)
    hold.silences(onsets, serving, NOW)
    assert not hold.active(NOW)


def test_the_same_silence_does_not_prolong_the_hold() -> None:
    hold = KillHold(RULES)
    for later in (0.0, 20.0, 31.0):
        hold.silences([NOW - 0.5, NOW - 0.4], serving=3, now=NOW + later)
    assert not hold.active(NOW + 31.0)


def test_own_lateness_holds_kills() -> None:
    hold = KillHold(RULES)
    hold.loop_was_late(0.3, NOW)
    assert not hold.active(NOW)
    hold.loop_was_late(59.0, NOW)
    assert hold.active(NOW + 29.0)


def test_kills_of_a_minute_are_counted() -> None:
    hold = KillHold(Rules(max_kills_per_minute=2))
    hold.count_kill(NOW)
    assert not hold.kill_budget_exhausted(NOW)
    hold.count_kill(NOW + 30)
    assert hold.kill_budget_exhausted(NOW + 59)
    assert not hold.kill_budget_exhausted(NOW + 61)
