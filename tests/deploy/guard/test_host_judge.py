from dataclasses import replace

import pytest

from deploy.guard.host_judge import HostObservation, judge
from deploy.guard.settings import FrontSettings

RULES = FrontSettings(links=("h1", "h2"))
READY = HostObservation(status=200, others_answer=True, others_open=True)
ALONE = replace(READY, others_answer=False, others_open=False)


@pytest.mark.parametrize(
    ("seen", "gate", "reading", "state"),
    [
        (READY, "open", "open", "ready"),
        (replace(READY, silent_s=0.49), "open", "open", "ready"),
        (replace(READY, silent_s=0.5), "spare", "spare", "silent"),
        (replace(READY, silent_s=1.5), "spare", "spare", "lost"),
        (replace(READY, unreachable="cannot be reached"), "spare", "spare", "silent"),
        (replace(READY, full=True), "close", "open", "full"),
        (replace(READY, status=503, reason="loading"), "close", "close", "not ready"),
        (replace(READY, status=503, silent_s=9.0), "spare", "spare", "lost"),
        (replace(READY, wanted=False), "close", "close", "out"),
        (replace(READY, row_age_s=60.1), "spare", "spare", "stale"),
        (replace(READY, row_age_s=59.0), "open", "open", "ready"),
        (replace(READY, untrusted="its certificate is refused"), "close", "close", "untrusted"),
        (HostObservation(others_answer=True), "keep", "keep", "unknown"),
    ],
)
def test_gates_and_state_follow_what_was_seen(
    seen: HostObservation, gate: str, reading: str, state: str
) -> None:
    verdict = judge(seen, RULES)
    assert (verdict.gate, verdict.reading, verdict.state) == (gate, reading, state)


def test_link_of_a_lost_host_is_ended_once_another_takes_what_was_on_its_way() -> None:
    lost = replace(READY, silent_s=1.5)
    assert judge(lost, RULES).lost
    assert judge(replace(lost, unreachable="cannot be reached"), RULES).lost
    assert not judge(replace(lost, silent_s=1.4), RULES).lost
    assert not judge(replace(lost, others_open=False), RULES).lost
    assert not judge(replace(READY, status=503), RULES).lost
    assert judge(replace(lost, wanted=False), RULES).lost
    assert not judge(replace(lost, wanted=False, untrusted="revoked"), RULES).lost


def test_where_no_host_answers_the_fronts_own_network_fails_and_nothing_is_closed() -> None:
    for seen in (
        replace(ALONE, silent_s=0.5),
        replace(ALONE, silent_s=60.0),
        replace(ALONE, unreachable="cannot be reached", silent_s=60.0),
        replace(ALONE, silent_s=60.0, others_open=True),
    ):
        verdict = judge(seen, RULES)
        assert (verdict.gate, verdict.reading, verdict.lost) == ("keep", "keep", False)
