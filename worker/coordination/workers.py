"""Who else draws in this cell."""

from pathlib import Path

from worker.coordination.beat import Phase, read_beat
from worker.coordination.processes import is_alive

_LOADING = (Phase.BOOT, Phase.LOAD, Phase.ENDED)


def live_workers(run_dir: Path) -> int:
    """Blocks. How many workers live and have loaded their model; at least one asks."""
    beats = (read_beat(path) for path in run_dir.glob("*.beat"))
    loaded = [beat for beat in beats if beat and beat.phase not in _LOADING]
    return max(1, sum(is_alive(beat.pid, beat.since) for beat in loaded))
