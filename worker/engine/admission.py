"""Admit a request, or say when to come again. Pure."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from worker.engine.limits import Limits
from worker.errors import Overloaded

MAX_RETRY_AFTER_S = 120.0  # SDKs give up above
REPLAY_AGE_S = 1.0
_RESERVE = 1.5  # a replay has waited elsewhere already: its limits are so much wider
_JITTER = 0.25
_SHARE = 3
"""A key may have at most so many times as many places as are left free (Choudhury and Hahne's
dynamic thresholds): one alone gets three quarters, and a newcomer always finds room."""


@dataclass(frozen=True)
class Line:
    """Who is ahead of a newcomer: all of them, or those of its own key.

    ``waiting`` have a place. ``promised`` were refused one and told when to come again.
    ``starts_s`` gives the seconds until each of both begins, which only a refusal asks for.
    """

    waiting: int
    promised: int = 0
    starts_s: Callable[[], Sequence[float]] = tuple

    def room_in_s(self) -> float:
        """Seconds until those that were promised a place have one, and there is one more."""
        starts_s = sorted(self.starts_s())
        return starts_s[min(self.promised, len(starts_s) - 1)] if starts_s else 1.0


def max_waiting(limits: Limits, *, replay: bool) -> int:
    """Most requests that may wait; replays may use a reserve beyond."""
    bound = limits.max_queued_requests
    return int(bound * _RESERVE) + 1 if replay else bound


def is_replay(age_s: float) -> bool:
    """Whether a request that nginx accepted ``age_s`` ago must have been elsewhere."""
    return age_s > REPLAY_AGE_S


def require_place(
    limits: Limits, everybody: Line, own: Line, *, replay: bool = False, promised: bool = False
) -> None:
    """Raise Overloaded when too many requests are ahead.

    A replay may use places beyond the bound; one that comes when it was told to, more of those
    that are left to its key.
    """
    most = max_waiting(limits, replay=replay)
    if everybody.waiting >= most:
        message = f"{everybody.waiting} requests are waiting, as many as are allowed"
        raise Overloaded(message, retry_after_s=retry_after_s(everybody.room_in_s()))
    share = _SHARE * (2 if promised else 1) * (most - everybody.waiting)
    if not replay and own.waiting >= share:
        message = f"{own.waiting} of your requests are waiting, as many as leave room for others"
        raise Overloaded(message, retry_after_s=retry_after_s(own.room_in_s()))


def require_time(limits: Limits, wait_s: float, *, patient: bool = False) -> None:
    """Raise Overloaded when the predicted wait of ``wait_s`` seconds is too long. ``patient``: a
    replay."""
    most_s = limits.max_queue_wait_s * (_RESERVE if patient else 1.0)
    if wait_s > most_s:
        message = f"the predicted wait of {wait_s:.0f} s is over the limit of {most_s:.0f} s"
        raise Overloaded(message, retry_after_s=retry_after_s(wait_s - most_s))


def retry_after_s(room_in_s: float) -> float:
    """When to come again if there is room in ``room_in_s`` seconds.

    Jittered, so that the clients refused together do not come back together.
    """
    longest = MAX_RETRY_AFTER_S / (1 + _JITTER)
    return min(max(room_in_s, 1.0), longest) * (1 + _JITTER * random.random())
