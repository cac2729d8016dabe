import pytest

from worker.engine.admission import (
    MAX_RETRY_AFTER_S,
    Line,
    is_replay,
    max_waiting,
    require_place,
    require_time,
    retry_after_s,
)
from worker.engine.limits import Limits
from worker.errors import Overloaded

LIMITS = Limits(max_queued_requests=10, max_queue_wait_s=60.0)


NOBODY = Line(0)


def line(waiting: int, promised: int = 0) -> Line:
    """Somebody begins every second from now on."""
    return Line(waiting, promised, lambda: [float(k) for k in range(waiting + promised)])


def test_a_request_within_the_limits_is_admitted() -> None:
    require_place(LIMITS, line(9), NOBODY)
    require_time(LIMITS, 60.0)


def test_too_long_a_wait_is_refused_until_there_is_room() -> None:
    with pytest.raises(Overloaded, match="wait of 80 s is over the limit of 60 s") as caught:
        require_time(LIMITS, 80.0)
    assert 20.0 <= caught.value.retry_after_s <= 25.0


def test_a_full_queue_refuses_until_a_place_is_free() -> None:
    with pytest.raises(Overloaded, match="10 requests are waiting") as caught:
        require_place(LIMITS, line(10, promised=2), NOBODY)
    assert 2.0 <= caught.value.retry_after_s <= 2.5


def test_a_replay_may_use_the_reserve_but_not_more() -> None:
    require_place(LIMITS, line(10), line(10), replay=True)
    require_time(LIMITS, 80.0, patient=True)
    with pytest.raises(Overloaded):
        require_time(LIMITS, 91.0, patient=True)
    with pytest.raises(Overloaded):
        require_place(LIMITS, line(max_waiting(LIMITS, replay=True)), NOBODY, replay=True)


def test_one_key_alone_leaves_a_quarter_of_the_places_to_others() -> None:
    require_place(LIMITS, line(7), line(7))
    with pytest.raises(Overloaded, match="8 of your requests are waiting"):
        require_place(LIMITS, line(8), line(8))
    require_place(LIMITS, line(8), NOBODY)


def test_a_promise_reaches_further_but_not_into_the_room_of_others() -> None:
    require_place(LIMITS, line(8), line(8), promised=True)
    with pytest.raises(Overloaded, match="9 of your requests"):
        require_place(LIMITS, line(9), line(9), promised=True)
    with pytest.raises(Overloaded, match="10 requests are waiting"):
        require_place(LIMITS, line(10), NOBODY, promised=True)


def test_a_queue_of_one_place_takes_one() -> None:
    require_place(Limits(max_queued_requests=1), NOBODY, NOBODY)


def test_what_is_older_than_a_second_is_a_replay() -> None:
    assert is_replay(1.1)
    assert not is_replay(0.9)


@pytest.mark.parametrize("room_in_s", [0.0, 1.0, 50.0, 1e6])
def test_retry_after_is_jittered_and_never_above_what_clients_accept(room_in_s: float) -> None:
    values = {retry_after_s(room_in_s) for _ in range(50)}
    assert len(values) > 1
    assert all(1.0 <= value <= MAX_RETRY_AFTER_S for value in values)
