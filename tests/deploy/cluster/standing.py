"""A machine that stands in a cluster: the real program ``membership``, told by a guard of ours."""

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.deploy.cluster import cells
from tests.deploy.processes import running, wait_until

_EVERY_S = 0.2


class Guard:
    """Writes ``workers`` again and again, as a guard does."""

    def __init__(self, path: Path) -> None:
        self.workers = [cells.worker()]
        self._path = path
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def _write(self) -> None:
        fresh = self._path.with_suffix(".new")
        while not self._ended.wait(_EVERY_S):
            fresh.write_text(json.dumps(cells.cell(*self.workers, at=time.time())))
            fresh.replace(self._path)

    def end(self) -> None:
        self._ended.set()
        self._thread.join()


@contextmanager
def machine(folder: Path, name: str, url: str, **changes: Any) -> Iterator[Guard]:
    """Host ``name``, whose guard's words can be changed."""
    folder = folder / name
    folder.mkdir()
    settings = cells.settings(folder, host=name, address=f"{name}:7862", database_url=url)
    settings = settings.model_copy(update=changes)
    file = folder / "membership.json"
    file.write_text(settings.model_dump_json())
    guard = Guard(settings.cell_json)
    wait_until(settings.cell_json.exists, "written")
    command = [sys.executable, "-m", "deploy.cluster", str(file)]
    try:
        with running(command, folder / "log"):
            wait_until(settings.hosts_json.exists, "listed")
            yield guard
    finally:
        guard.end()
