"""What a command that was killed has left half done: its drains, and workers that it had stopped.

Whoever changes a cell lets its workers in again when it ends, by a signal, too. After SIGKILL, or
a lost session, nobody would.
"""

import asyncio
import time

from deploy import drains, rollout_record
from deploy.guard.journal import Journal
from deploy.guard.troubles import Troubles
from deploy.layout import Layout
from deploy.rollout_record import NewerSchema

_INTERVAL_S = 1.0


class LeftBehind:
    def __init__(self, layout: Layout, journal: Journal, troubles: Troubles) -> None:
        self._layout = layout
        self._journal = journal
        self._troubles = troubles

    async def clear_for_ever(self) -> None:
        """Let in again who was drained by a command that is gone, and tell of half a rollout."""
        while True:
            with self._troubles.survived("clearing what dead commands left"):
                self._clear()
            await asyncio.sleep(_INTERVAL_S)

    def stopped(self) -> frozenset[str]:
        """Workers that such a command had stopped, to start them again."""
        return rollout_record.stopped_by_a_dead_one(self._layout)

    def _clear(self) -> None:
        for drain in drains.clear_left(self._layout):
            text = f"let in again: the {drain.why} that drained it is gone"
            self._journal.event(text, drain.worker)
        try:
            record = rollout_record.read(self._layout)
        except NewerSchema:
            return
        cut_short = record is not None and record.cut_short
        text = ""
        if record is not None:
            holder, since = record.holder, time.strftime("%H:%M", time.localtime(record.since))
            text = f"`zimage {holder.command}` of {holder.user} at {since} was killed half-way"
        self._journal.set("rollout_cut_short", cut_short, f"{text}: zimage status")
