"""How wrong the clocks of a cluster's machines are, as each has found by the database's."""

import json
import time
from contextlib import suppress
from pathlib import Path

_READ_EVERY_S = 2.0


def host_list(var_dir: Path) -> Path:
    """Where the machines of the cluster are listed, which the program ``membership`` writes."""
    return var_dir / "state" / "hosts.json"


def cluster_models(var_dir: Path) -> Path:
    """Where the models of all of them are listed, in the form of ``served_models``."""
    return var_dir / "state" / "cluster-models.json"


class HostClocks:
    """``hosts_json``: where the machines of the cluster are listed. ``host``: this one's name.

    While the database is away they are taken to be as wrong as they were.
    """

    def __init__(self, hosts_json: Path, host: str) -> None:
        self._path, self._host = hosts_json, host
        self._ahead_s: dict[str, float] = {}
        self._changed_at_ns = 0
        self._read_at = -_READ_EVERY_S

    def here(self, at: float, machine: str) -> float:
        """By this machine's clock, what ``at`` was by that of ``machine``."""
        self._read()
        return at + self._ahead_s.get(self._host, 0.0) - self._ahead_s.get(machine, 0.0)

    def _read(self) -> None:
        now = time.monotonic()
        if now - self._read_at < _READ_EVERY_S:
            return
        self._read_at = now
        with suppress(OSError, ValueError, KeyError, TypeError):
            changed_at_ns = self._path.stat().st_mtime_ns
            if changed_at_ns != self._changed_at_ns:
                listed = json.loads(self._path.read_bytes())["hosts"]
                self._ahead_s = {host["id"]: float(host["skew_s"]) for host in listed}
                self._changed_at_ns = changed_at_ns
