import pytest

from worker.engine.admission import (
    MAX_RETRY_AFTER_S,
    Line,
    admit,
    is_replay,
    max_waiting,
    retry_after_s,
)
from worker.engine.limits import Limits
from worker.errors import Overloaded

LIMITS = Limits(max_queued_requests=10, max_queue_wait_s=60.0)


def line(waiting: int, of_key: int = 0) -> Line:
    return Line(waiting, of_key, [float(k) for k in range(waiting)])


def test_a_request_within_the_limits_is_admitted() -> None:
    admit(LIMITS, line(9), wait_s=60.0, reserve=False)


def test_too_long_a_wait_is_refused_until_there_is_room() -> None:
    with pytest.raises(Overloaded, match="wait of 80 s is over the limit of 60 s") as caught:
        admit(LIMITS, line(1), wait_s=80.0, reserve=False)
    assert 20.0 <= caught.value.retry_after_s <= 25.0


def test_a_full_queue_refuses_until_a_place_is_free() -> None:
    with pytest.raises(Overloaded, match="12 requests are waiting") as caught:
        admit(LIMITS, line(12), wait_s=1.0, reserve=False)
    assert 2.0 <= caught.value.retry_after_s <= 2.5


def test_a_replay_may_use_the_reserve_but_not_more() -> None:
    admit(LIMITS, line(10), wait_s=80.0, reserve=True)
    with pytest.raises(Overloaded):
        admit(LIMITS, line(10), wait_s=91.0, reserve=True)
    with pytest.raises(Overloaded):
        admit(LIMITS, line(max_waiting(LIMITS, reserve=True)), wait_s=0.0, reserve=True)


def test_one_key_alone_leaves_a_quarter_of_the_places_to_others() -> None:
    admit(LIMITS, line(7, of_key=7), wait_s=1.0, reserve=False)
    with pytest.raises(Overloaded, match="8 of your requests are waiting"):
        admit(LIMITS, line(8, of_key=8), wait_s=1.0, reserve=False)
    admit(LIMITS, line(8, of_key=0), wait_s=1.0, reserve=False)


def test_a_queue_of_one_place_takes_one() -> None:
    limits = Limits(max_queued_requests=1)
    admit(limits, line(0), wait_s=0.0, reserve=False)


def test_what_is_older_than_a_second_is_a_replay() -> None:
    assert is_replay(1.1)
    assert not is_replay(0.9)


@pytest.mark.parametrize("room_in_s", [0.0, 1.0, 50.0, 1e6])
def test_retry_after_is_jittered_and_never_above_what_clients_accept(room_in_s: float) -> None:
    values = {retry_after_s(room_in_s) for _ in range(50)}
    assert len(values) > 1
    assert all(1.0 <= value <= MAX_RETRY_AFTER_S for value in values)
