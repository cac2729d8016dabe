"""A front's links are made anew by the front itself: before the spare ones run out, where hosts
have other models than nginx knows and, much later, so that each weighs what its host does.

That is a command of its own (``zimage reload --links``), for it restarts the guard and reloads
nginx. Its record tells how it ended: the guard that began it may be gone by then.
"""

import asyncio
import os
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from deploy import links, rollout_record
from deploy.guard.host_watch import HostWatch
from deploy.guard.journal import Journal
from deploy.guard.settings import FrontSettings
from deploy.layout import Layout

_LOOK_EVERY_S = 1.0
_FEW_LINKS = 2
_TOLD_AFTER_S = 120.0
"""Few links are an alarm once they were not made more for so long."""
COMMAND = "reload --links"


@dataclass(frozen=True)
class _Need:
    """What new links are wanted for. ``urgent``: a host has none, or the next ones may get none.
    ``models``: nginx does not know whom to ask for some."""

    urgent: bool
    spare: int
    weights: tuple[tuple[str, int], ...]
    models: tuple[tuple[str, tuple[str, ...]], ...] = ()


class Relinking:
    """``watches``: of the hosts that have a link now."""

    def __init__(
        self,
        rules: FrontSettings,
        layout: Layout,
        journal: Journal,
        watches: Callable[[], list[HostWatch]],
    ) -> None:
        self._rules = rules
        self._layout = layout
        self._journal = journal
        self._watches = watches
        self._need: _Need | None = None
        self._since = time.monotonic()
        self._process: subprocess.Popen[bytes] | None = None

    async def follow(self) -> None:
        """For ever."""
        while True:
            self.look()
            await asyncio.sleep(_LOOK_EVERY_S)

    def look(self) -> None:
        """Begin what is due, and tell of what is not done."""
        need = self._needed()
        if need != self._need:
            self._need, self._since = need, time.monotonic()
        if self._process is not None and self._process.poll() is not None:
            self._process = None
        failure = self._failure() if need else ""
        if need and self._is_due(need, failed=bool(failure)):
            self._begin()
        self._tell(need, failure)

    def _needed(self) -> _Need | None:
        rules, watches = self._rules, self._watches()
        spare = len(rules.links) - len(watches)
        urgent = spare < _FEW_LINKS
        present = [watch for watch in watches if not watch.row.gone and watch.out_since is None]
        weights = {watch.link: watch.row.workers for watch in present}
        wrong = {name: w for name, w in weights.items() if rules.weights.get(name) != w}
        models = self._models_of(present)
        if not (urgent or wrong or models):
            return None
        return _Need(urgent, spare, tuple(sorted(wrong.items())), tuple(sorted(models.items())))

    def _models_of(self, present: list[HostWatch]) -> dict[str, tuple[str, ...]]:
        """Those of links that nginx has in other pools. Who is away for now changes nothing."""
        known = self._rules.serves
        now = {watch.link: watch.row.pools for watch in present if watch.row.pools is not None}
        if not known:
            return links.differing(now)
        return {link: pools for link, pools in now.items() if known.get(link) != pools}

    def _is_due(self, need: _Need, *, failed: bool) -> bool:
        rules = self._rules
        if self._process is not None or not rules.relink_command:
            return False
        soon = need.urgent or need.models
        calm_s = rules.relink_calm_s if soon else rules.relink_again_s
        apart_s = rules.relink_again_s if failed else rules.relink_every_s
        is_calm = time.monotonic() - self._since >= calm_s
        return is_calm and time.time() - self._begun_at() >= apart_s

    def _begun_at(self) -> float:
        """When the last one began, by this guard or by another one before it."""
        try:
            return self._layout.links_begun.stat().st_mtime
        except OSError:
            return 0.0

    def _begin(self) -> None:
        self._layout.links_begun.touch()
        os.utime(self._layout.links_begun)
        self._journal.event("makes links anew, for what hosts there are")
        with self._layout.log("links").open("wb") as log:
            self._process = subprocess.Popen(
                self._rules.relink_command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={name: value for name, value in os.environ.items() if name != "CODE"},
                start_new_session=True,  # it ends this program, and its group with it
            )

    def _failure(self) -> str:
        """Why the last one did not make them; empty where it did, or is at work."""
        with suppress(rollout_record.NewerSchema):
            record = rollout_record.read(self._layout)
            if record is None or record.holder.command != COMMAND or record.under_way:
                return ""
            return "" if record.outcome == "done" else record.why or "it was cut short"
        return ""

    def _tell(self, need: _Need | None, failure: str) -> None:
        overdue = bool(failure) or time.monotonic() - self._since > _TOLD_AFTER_S
        few = need is not None and need.urgent and overdue
        old = need is not None and bool(need.models) and overdue
        spare = need.spare if need else 0
        why = f": {failure}" if failure else ""
        text = f"{spare} links for new hosts are left, and no more were made{why}; see zimage up"
        self._journal.set("few_links", few, text)
        text = (
            f"hosts have other models than nginx knows, and no pools were made{why}; see zimage up"
        )
        self._journal.set("old_pools", old, text)
