"""A running cell, seen through its files."""

import contextlib
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from deploy import cell as deployed
from deploy.config import ClusterConfig
from deploy.layout import Layout
from loadtest.auth import Entry
from worker.coordination.heartbeat import Heartbeat, read_heartbeat

_FRESH_S = 2.5
"""The guard writes every second."""


@dataclass(frozen=True)
class Cell:
    """``url`` is where clients find it, without a slash at the end; ``key`` is what they show."""

    layout: Layout
    url: str
    key: str = field(default="", repr=False)

    @classmethod
    def of(cls, config: ClusterConfig, path: Path, key: str = "") -> "Cell":
        return cls(Layout.of(config), deployed.Cell(config, path).url.rstrip("/"), key)

    @property
    def entry(self) -> Entry:
        """How a client of this machine gets in."""
        https = self.url.startswith("https:")
        return Entry(self.key, str(self.layout.certificate) if https else "")

    def state(self) -> dict[str, Any]:
        """What the guard last wrote."""
        state: dict[str, Any] = json.loads(self.layout.cell_json.read_text())
        return state

    def workers(self) -> list[str]:
        return [worker["name"] for worker in self.state()["workers"]]

    def heartbeat(self, worker: str) -> Heartbeat:
        """The worker's heartbeat; LookupError where it has none."""
        for _ in range(20):
            heartbeat = read_heartbeat(self.layout.heartbeat(worker))
            if heartbeat is not None:
                return heartbeat
            time.sleep(0.005)  # torn: its writer is in the middle of it
        raise LookupError(f"{worker} has no heartbeat")

    def pid(self, worker: str) -> int:
        """Process id in the worker's heartbeat; LookupError where it has none."""
        return self.heartbeat(worker).pid

    def open(self) -> set[str]:
        """Workers that nginx would reach now."""
        return {
            gate.stem
            for gate in self.layout.pool_dir.glob("*.sock")
            if gate.readlink().name != self.layout.closed_socket.name
        }

    def serves(self, *workers: str) -> bool:
        """``workers`` are in the pool, and guard and nginx are at work."""
        with contextlib.suppress(OSError, ValueError, KeyError, httpx.HTTPError):
            fresh = time.time() - self.state()["at"] < _FRESH_S
            return fresh and self.open().issuperset(workers) and self._nginx_answers()
        return False

    def whole(self) -> bool:
        """Every worker that nobody drained serves."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            drained = {flag.name for flag in self.layout.drained_dir.iterdir()}
            return self.serves(*(set(self.workers()) - drained))
        return False

    def _nginx_answers(self) -> bool:
        # Whether it answers, not who it is: this is asked many times a second.
        return httpx.get(f"{self.url}/healthz", timeout=1.0, verify=False).status_code == 200


def process_ids(under: Path) -> set[int]:
    """Processes of this machine whose command line names ``under``."""
    return {
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if process.pid != os.getpid() and str(under) in " ".join(process.info["cmdline"] or ())
    }
