"""Names a process as the holder of leases, so that another can tell when it is dead."""

import functools
import os
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

import sqlalchemy as sa

from worker.coordination.processes import is_alive


def this_process(worker: str, host: str = "") -> str:
    """Where its number means something, that number, a moment at which it ran, and the worker's
    name with that of its host."""
    name = f"{worker}@{host}" if host else worker
    return f"{_here()}/{os.getpid()}/{time.monotonic():.3f}/{name}"


def host_of(holder: str) -> str:
    """The host of ``holder``; "" where it is none of a cluster."""
    return holder.rpartition("/")[2].partition("@")[2]


def is_dead(holder: str) -> bool:
    """Whether ``holder`` has certainly ended. Of another machine or container, or of this one
    before it was started again, nothing is certain: their leases end by time, or with their host.
    """
    here, pid, at, _ = holder.split("/")
    return here == _here() and not is_alive(int(pid), float(at))


Others = Callable[[sa.Connection, float], tuple[frozenset[str], int]]
"""Of hosts that share the database, now: which hold nothing any more, and how many workers draw on
the others, those of this host excepted."""


def nobody(_: sa.Connection, __: float) -> tuple[frozenset[str], int]:
    """``Others`` of a host of its own."""
    return frozenset(), 0


def gone(holders: Iterable[str], lost_hosts: Collection[str]) -> list[str]:
    """Those of ``holders`` that hold nothing any more: dead, or on a host that is lost."""
    return [each for each in holders if is_dead(each) or host_of(each) in lost_hosts]


@functools.cache
def _here() -> str:
    """The boot of the machine, which its containers share, and the space of process numbers, which
    they do not."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    return f"{boot}.{os.stat('/proc/self/ns/pid').st_ino}"  # noqa: PTH116 — a link to no path
