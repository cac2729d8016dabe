"""Admit a request, or say when to come again. Pure."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from worker.engine.limits import Limits
from worker.errors import Overloaded

MAX_RETRY_AFTER_S = 120.0  # SDKs give up above
REPLAY_AGE_S = 1.0
_RESERVE = 1.5  # a replay or a promised request has waited already: its limits are so much wider
_JITTER = 0.25
_SHARE = 3
"""A key may have at most so many times as many places as are left free (Choudhury and Hahne's
dynamic thresholds): one alone gets three quarters, and a newcomer always finds room."""


@dataclass(frozen=True)
class Line:
    """The queue as a newcomer finds it; promised places count as taken.

    ``starts_s``: seconds until each of those that wait begins.
    """

    waiting: int
    of_key: int
    starts_s: Sequence[float] = ()


def max_waiting(limits: Limits, *, reserve: bool) -> int:
    """Most requests that may wait; replays and promised requests may use a reserve beyond."""
    bound = limits.max_queued_requests
    return int(bound * _RESERVE) + 1 if reserve else bound


def is_replay(age_s: float) -> bool:
    """Whether a request that nginx accepted ``age_s`` ago must have been elsewhere."""
    return age_s > REPLAY_AGE_S


def admit(limits: Limits, line: Line, wait_s: float, *, reserve: bool) -> None:
    """Raise Overloaded when ``wait_s`` seconds or the requests ahead are too many."""
    max_wait_s = limits.max_queue_wait_s * (_RESERVE if reserve else 1.0)
    if wait_s > max_wait_s:
        message = f"the predicted wait of {wait_s:.0f} s is over the limit of {max_wait_s:.0f} s"
        raise Overloaded(message, retry_after_s=retry_after_s(wait_s - max_wait_s))
    most = max_waiting(limits, reserve=reserve)
    if line.waiting >= most:
        message = f"{line.waiting} requests are waiting, as many as are allowed"
        raise Overloaded(message, retry_after_s=retry_after_s(_leaves_s(line, most)))
    if not reserve and line.of_key >= _SHARE * (most - line.waiting):
        message = f"{line.of_key} of your requests are waiting, as many as others leave you"
        raise Overloaded(message, retry_after_s=retry_after_s(_leaves_s(line, most)))


def retry_after_s(room_in_s: float) -> float:
    """When to come again if there is room in ``room_in_s`` seconds.

    Jittered, so that the clients refused together do not come back together.
    """
    longest = MAX_RETRY_AFTER_S / (1 + _JITTER)
    return min(max(room_in_s, 1.0), longest) * (1 + _JITTER * random.random())


def _leaves_s(line: Line, most: int) -> float:
    """Seconds until so many have begun that there is a place for one more."""
    starts_s = sorted(line.starts_s)
    if not starts_s:
        return 1.0
    return starts_s[min(max(0, line.waiting - most), len(starts_s) - 1)]
