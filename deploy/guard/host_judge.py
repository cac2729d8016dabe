"""What a front is to do about a host, from what was seen of it. No clock, files or sockets here.

===============================  ==========================================================
seen                             done
===============================  ==========================================================
200                              in
200, and it says that it is full out for drawing, in for all else
another answer                   out
wanted out, or removed           out
its certificate is not ours      out
unreachable                      out while another is in, and in again with the next 200
silent for ``silence_s``         the same
unreachable or silent for        and its link is ended while another is in: what was on its way
``lost_s``, wanted or not        goes to that one
no row for 60 s                  out while another is in
===============================  ==========================================================

Where no host answers, the front's own network is what fails: nothing is closed and nothing ended.
"""

from dataclasses import dataclass
from typing import Literal

from deploy.guard.judge import GateVerdict
from deploy.guard.settings import FrontSettings

HostState = Literal[
    "unknown", "ready", "full", "not ready", "out", "stale", "untrusted", "silent", "lost"
]

NO_ROW_S = 60.0


@dataclass(frozen=True)
class HostObservation:
    """One host at one moment. Seconds are durations up to that moment."""

    status: int | None = None
    """Of its last answer; None: it never gave one."""
    reason: str = ""
    """Why it is not ready, as it says itself."""
    silent_s: float = 0.0
    """Since its last answer, or since the guard began to ask."""
    unreachable: str = ""
    """Why connections to it fail since that answer; empty where they do not."""
    untrusted: str = ""
    """What is wrong with the certificate that it shows."""
    full: bool = False
    """Each of its workers that is in its pool would refuse a newcomer."""
    wanted: bool = True
    """Nobody wants it out."""
    row_age_s: float = 0.0
    """Since it last wrote into the database, when that was last read."""
    others_answer: bool = False
    """Another one has answered since this one failed to."""
    others_open: bool = False


@dataclass(frozen=True)
class HostVerdict:
    """``gate`` is for drawings, ``reading`` for all else. ``lost``: end its link."""

    gate: GateVerdict
    reading: GateVerdict
    state: HostState
    why: str
    lost: bool = False


def judge(seen: HostObservation, rules: FrontSettings) -> HostVerdict:
    if not seen.wanted:
        return _both("close", "out", "wanted out", _frees(seen, rules))
    if seen.untrusted:
        return _both("close", "untrusted", seen.untrusted)
    if trouble := _trouble(seen, rules):
        return trouble
    if seen.status is None:
        return _both("keep", "unknown", "not heard yet")
    if seen.status != 200:
        why = seen.reason or f"answered {seen.status}"
        return _both("close", "not ready", why)
    if seen.row_age_s > NO_ROW_S:
        return _both("spare", "stale", f"no row of it for {seen.row_age_s:.0f} s")
    if seen.full:
        return HostVerdict("close", "open", "full", "its workers refuse newcomers")
    return _both("open", "ready", "ready")


def _trouble(seen: HostObservation, rules: FrontSettings) -> HostVerdict | None:
    """Of a host that does not answer; None where it does."""
    if not seen.unreachable and seen.silent_s < rules.silence_s:
        return None
    silence = f"silent for {seen.silent_s:.1f} s"
    why = f"{seen.unreachable}; {silence}" if seen.unreachable else silence
    gate: GateVerdict = "spare" if seen.others_answer else "keep"
    state: HostState = "lost" if seen.silent_s >= rules.lost_s else "silent"
    return _both(gate, state, why, _frees(seen, rules))


def _frees(seen: HostObservation, rules: FrontSettings) -> bool:
    """Whether what is on its way to it is better off elsewhere. Whoever shows a certificate that is
    refused is there, and finishes what it has."""
    lost = seen.silent_s >= rules.lost_s and not seen.untrusted
    return lost and seen.others_answer and seen.others_open


def _both(gate: GateVerdict, state: HostState, why: str, lost: bool = False) -> HostVerdict:
    return HostVerdict(gate, gate, state, why, lost)
