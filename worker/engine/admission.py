"""Admit a request, or say when to come again. Pure."""

import random

from worker.engine.limits import Limits
from worker.errors import Overloaded

MAX_RETRY_AFTER_S = 120.0  # SDKs give up above
REPLAY_AGE_S = 1.0
_RESERVE = 1.5  # a replay has waited elsewhere already: its limits are so much wider
_JITTER = 0.5


def max_waiting(limits: Limits, *, replay: bool) -> int:
    """Most requests that may wait; replays may use a reserve beyond."""
    bound = limits.max_queued_requests
    return int(bound * _RESERVE) + 1 if replay else bound


def is_replay(age_s: float) -> bool:
    """Whether a request that nginx accepted ``age_s`` ago must have been elsewhere."""
    return age_s > REPLAY_AGE_S


def admit(limits: Limits, waiting: int, wait_s: float, *, replay: bool) -> None:
    """Raise Overloaded when ``waiting`` requests or ``wait_s`` seconds ahead are too many."""
    max_wait_s = limits.max_queue_wait_s * (_RESERVE if replay else 1.0)
    if wait_s > max_wait_s:
        message = f"the predicted wait of {wait_s:.0f} s is over the limit of {max_wait_s:.0f} s"
        raise Overloaded(message, retry_after_s=retry_after_s(wait_s - max_wait_s))
    if waiting >= max_waiting(limits, replay=replay):
        message = f"{waiting} requests are waiting, as many as are allowed"
        raise Overloaded(message, retry_after_s=retry_after_s(wait_s / waiting))


def retry_after_s(room_in_s: float) -> float:
    """When to come again if there is room in ``room_in_s`` seconds.

    Jittered, so that the clients refused together do not come back together.
    """
    longest = MAX_RETRY_AFTER_S / (1 + _JITTER)
    return min(max(room_in_s, 1.0), longest) * (1 + _JITTER * random.random())
