from pathlib import Path

import pytest

from deploy.guard.supervisor import Exit, Program, Restarts, Supervisor, SupervisorAway, exits_in

LOG = """
2026-11-22 13:00:01,000 INFO spawned: 'w1' with pid 11
2026-11-22 13:00:02,000 WARN exited: w1 (exit status 70; not expected)
2026-11-22 13:00:03,000 INFO exited: w2 (exit status 0; expected)
2026-11-22 13:00:04,000 WARN exited: w3 (terminated by SIGKILL; not expected)
2026-11-22 13:00:05,000 INFO gave up: w1 entered FATAL state, too many start retries too quickly
"""


def program(state: str, uptime_s: float = 0.0) -> Program:
    return Program("w1", state, 0, uptime_s, "")


def test_exits_are_read_from_the_log() -> None:
    meanings = [(end.name, end.meaning) for end in exits_in(LOG)]
    assert meanings == [
        ("w1", "exit status 70 (model failed to load)"),
        ("w2", "exit status 0 (ended in order)"),
        ("w3", "terminated by SIGKILL"),
    ]


def test_unknown_exit_code_stands_for_itself() -> None:
    assert Exit("now", "w1", "exit status 99").meaning == "exit status 99"


@pytest.mark.parametrize("state", ["STOPPED", "STARTING", "RUNNING", "STOPPING"])
def test_what_runs_or_was_stopped_by_a_person_is_left_alone(state: str) -> None:
    restarts = Restarts(30.0)
    assert not any(restarts.due(program(state), now) for now in range(100))


@pytest.mark.parametrize("state", ["BACKOFF", "FATAL", "EXITED"])
def test_starts_come_ever_later(state: str) -> None:
    restarts = Restarts(max_backoff_s=8.0)
    assert [now for now in range(40) if restarts.due(program(state), now)] == [
        1,
        3,
        7,
        15,
        23,
        31,
        39,
    ]


def test_stable_run_makes_the_next_start_quick_again() -> None:
    restarts = Restarts(30.0)
    for now in range(10):
        restarts.due(program("BACKOFF"), now)
    restarts.due(program("RUNNING", uptime_s=1.0), 10)
    assert restarts.delay_s("w1") == 8.0
    restarts.due(program("RUNNING", uptime_s=61.0), 70)
    assert restarts.delay_s("w1") == 1.0


def test_missing_supervisor_is_away(tmp_path: Path) -> None:
    with pytest.raises(SupervisorAway):
        Supervisor(tmp_path / "supervisor.sock").programs()
