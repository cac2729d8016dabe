"""Who is kept out of the pool, by whom and why: one flag a worker, which the guard obeys.

A person's drain stays until undrain. A command's own drain (a restart, a calibration) ends with the
command; one that was killed leaves its flag, which the guard or the next command takes away.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.host import processes
from deploy.layout import Layout


@dataclass(frozen=True)
class Drain:
    """``owner`` is the process whose drain it is; None: a person's, by hand, who is ``by``."""

    worker: str
    why: str = "by hand"
    at: float | None = None
    owner: processes.Identity | None = None
    by: str = ""

    @property
    def in_words(self) -> str:
        """Who wanted it, since when and why, as far as that is known."""
        who = f" by {self.by}" if self.by else ""
        since = time.strftime(" since %Y-%m-%d %H:%M", time.localtime(self.at)) if self.at else ""
        return f"drained {self.why}{who}{since}"

    @property
    def left(self) -> bool:
        """Whether its command is gone without having ended it."""
        return self.owner is not None and not self.owner.alive


def by_hand(layout: Layout) -> dict[str, Drain]:
    """The drains that stay, by worker."""
    return {drain.worker: drain for drain in _all(layout) if drain.owner is None}


def put(layout: Layout, worker: str, by: str = "", reason: str = "") -> None:
    """Drain ``worker`` by hand: until ``remove``."""
    why = f"by hand ({reason})" if reason else "by hand"
    _write(layout, Drain(worker, why, time.time(), by=by))


def remove(layout: Layout, worker: str) -> None:
    layout.drained_flag(worker).unlink(missing_ok=True)


@contextmanager
def held(layout: Layout, worker: str, why: str) -> Iterator[bool]:
    """Drain ``worker`` during the block. Yields whether it is drained by hand, and stays so."""
    stays = worker in by_hand(layout)
    if stays:
        yield True
        return
    try:
        me = processes.Identity.of(os.getpid())
        _write(layout, Drain(worker, why, time.time(), me))
        yield False
    finally:
        remove(layout, worker)


def clear_left(layout: Layout) -> list[Drain]:
    """Take away the flags of commands that are gone; whose they were."""
    left = [drain for drain in _all(layout) if drain.left]
    for drain in left:
        remove(layout, drain.worker)
    return left


def _all(layout: Layout) -> list[Drain]:
    flags = sorted(layout.drained_dir.iterdir()) if layout.drained_dir.is_dir() else []
    return [_read(flag) for flag in flags]


def _read(flag: Path) -> Drain:
    try:
        said: dict[str, Any] = json.loads(flag.read_text(encoding="utf-8"))
        owner = said["owner"] and processes.Identity(**said["owner"])
        return Drain(flag.name, str(said["why"]), said["at"], owner, str(said.get("by", "")))
    except (OSError, ValueError, KeyError, TypeError):
        return Drain(flag.name)  # an empty one, such as of `touch`


def _write(layout: Layout, drain: Drain) -> None:
    owner = drain.owner and vars(drain.owner)
    said = {"why": drain.why, "at": drain.at, "owner": owner, "by": drain.by}
    fresh = layout.state_dir / f".drained-{drain.worker}.new"  # a flag from its first byte on
    fresh.write_text(json.dumps(said), encoding="utf-8")
    fresh.replace(layout.drained_flag(drain.worker))
