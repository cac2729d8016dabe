"""Which code of ours runs: a digest of the sources, as the process found them at its start.

``zimage up`` compares it with what lies there. A worker that was not restarted, or that a half
finished upgrade started between two versions, so shows itself.
"""

import hashlib
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORKER = ("worker", "constraints.txt")
"""What a worker runs, below ``ROOT``."""


def of(*paths: str) -> str:
    """Ten digits that change with any Python source below ``paths``, or listed file."""
    digest = hashlib.sha256()
    for path in (ROOT / name for name in paths):
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            if file.is_file():
                name = file.relative_to(ROOT).as_posix()
                digest.update(name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:10]


@cache
def own() -> str:
    """Of this worker. Asked first at its start: the files may change later."""
    return of(*WORKER)
