"""What the guard does beside watching: old files go, logs are rotated, names are kept."""

import asyncio
from collections.abc import Callable
from functools import partial

from deploy.guard import housekeeping
from deploy.guard.journal import Journal
from deploy.guard.keeping import Keeping
from deploy.guard.settings import GuardSettings
from deploy.guard.troubles import Troubles
from deploy.layout import Layout
from worker.bounds import UNDELIVERED_S

_SHORT_LINK_INTERVAL_S = 1.0
_REPLY_TTL_S = 15.0  # nginx opens an answer's file within milliseconds
_CLUSTER_CERTIFICATE_DAYS = 20.0  # renewal has been tried for ten days by then
_CERTIFICATE_DAYS = 14.0  # certbot has tried to renew it for two weeks by then


class Chores:
    def __init__(
        self,
        keeping: Keeping,
        settings: GuardSettings,
        layout: Layout,
        journal: Journal,
        troubles: Troubles,
    ) -> None:
        self._keeping = keeping
        self._settings = settings
        self._layout = layout
        self._journal = journal
        self._troubles = troubles

    async def do_for_ever(self) -> None:
        """Once an interval."""
        layout = self._layout
        chores: dict[str, Callable[[], object]] = {
            "keeping the run directory": self._keeping.touch,
            "pruning strikes": partial(
                housekeeping.prune, layout.strikes_dir, self._settings.guard.strike_ttl_s
            ),
            "pruning answers": partial(housekeeping.prune, layout.replies_dir, _REPLY_TTL_S),
            "pruning answers that nobody asked for again": partial(
                housekeeping.prune, layout.undelivered_dir, UNDELIVERED_S
            ),
            "rotating logs": self._rotate_logs,
            "watching the certificate": self._watch_certificate,
            "watching the cluster's certificates": self._watch_cluster_certificates,
        }
        while True:
            for what, chore in chores.items():
                with self._troubles.survived(what):
                    chore()
            await asyncio.sleep(self._settings.guard.chores_interval_s)

    def _rotate_logs(self) -> None:
        layout, size, keep = self._layout, self._settings.log_max_bytes, self._settings.log_keep
        logs = (layout.access_log, layout.nginx_error_log, layout.host_access_log)
        moved = [housekeeping.rotate(log, size, keep) for log in logs]
        if any(moved):
            housekeeping.reopen_logs(layout.nginx_pid, layout.nginx_conf)

    async def keep_the_short_link(self) -> None:
        """Make it again where somebody has removed it."""
        while True:
            with self._troubles.survived("making the short name again"):
                self._keeping.again()
            await asyncio.sleep(_SHORT_LINK_INTERVAL_S)

    def _watch_certificate(self) -> None:
        days = housekeeping.days_of_certificate(self._layout.certificate_json)
        ends_soon = days is not None and days < _CERTIFICATE_DAYS
        text = f"the certificate of HTTPS ends in {days or 0:.0f} days: zimage doctor"
        self._journal.set("certificate", ends_soon, text)

    def _watch_cluster_certificates(self) -> None:
        days = housekeeping.days_of_certificate(self._layout.cluster_certificates_json)
        if days is not None:  # part of a cluster
            text = (
                f"this machine's certificate in its cluster ends in {days:.0f} days: zimage doctor"
            )
            self._journal.set("cluster_certificate", days < _CLUSTER_CERTIFICATE_DAYS, text)
