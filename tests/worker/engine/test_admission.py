import pytest

from worker.engine.admission import MAX_RETRY_AFTER_S, admit, is_replay, max_waiting, retry_after_s
from worker.engine.limits import Limits
from worker.errors import Overloaded

LIMITS = Limits(max_queued_requests=10, max_queue_wait_s=60.0)


def test_a_request_within_the_limits_is_admitted() -> None:
    admit(LIMITS, waiting=9, wait_s=60.0, replay=False)


def test_too_long_a_wait_is_refused_until_there_is_room() -> None:
    with pytest.raises(Overloaded, match="wait of 80 s is over the limit of 60 s") as caught:
        admit(LIMITS, waiting=1, wait_s=80.0, replay=False)
    assert 20.0 <= caught.value.retry_after_s <= 30.0


def test_a_full_queue_refuses() -> None:
    with pytest.raises(Overloaded, match="10 requests are waiting"):
        admit(LIMITS, waiting=10, wait_s=1.0, replay=False)


def test_a_replay_may_use_the_reserve_but_not_more() -> None:
    admit(LIMITS, waiting=10, wait_s=80.0, replay=True)
    with pytest.raises(Overloaded):
        admit(LIMITS, waiting=10, wait_s=91.0, replay=True)
    with pytest.raises(Overloaded):
        admit(LIMITS, waiting=max_waiting(LIMITS, replay=True), wait_s=0.0, replay=True)


def test_what_is_older_than_a_second_is_a_replay() -> None:
    assert is_replay(1.1)
    assert not is_replay(0.9)


@pytest.mark.parametrize("room_in_s", [0.0, 1.0, 50.0, 1e6])
def test_retry_after_is_jittered_and_never_above_what_clients_accept(room_in_s: float) -> None:
    values = {retry_after_s(room_in_s) for _ in range(50)}
    assert len(values) > 1
    assert all(1.0 <= value <= MAX_RETRY_AFTER_S for value in values)
