"""Whether this host of a cluster is wanted out: a flag in the run directory, of all its workers."""

from pathlib import Path


def flag(run_dir: Path) -> Path:
    """There while operators want the host out."""
    return run_dir / "host.drained"
