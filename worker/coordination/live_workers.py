"""Who else draws in this cell."""

from pathlib import Path

from worker.coordination.heartbeat import Phase, read_heartbeat
from worker.coordination.processes import is_alive

_LOADING = (Phase.BOOT, Phase.LOAD, Phase.ENDED)


def live_workers(run_dir: Path) -> int:
    """Blocks. How many workers live and have loaded their model; at least one asks."""
    beats = (read_heartbeat(path) for path in run_dir.glob("*.beat"))
    loaded = [heartbeat for heartbeat in beats if heartbeat and heartbeat.phase not in _LOADING]
    return max(1, sum(is_alive(heartbeat.pid, heartbeat.since) for heartbeat in loaded))
