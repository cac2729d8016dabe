"""A machine that stands in a cluster: the real program ``membership``, told by a guard of ours."""

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests import command_line
from tests.deploy.cluster import cells
from tests.deploy.processes import PATIENCE_S, wait_until

_EVERY_S = 0.2


class Guard:
    """Writes ``workers`` again and again, as a guard does, and ``hosts`` as that of a front."""

    def __init__(self, path: Path) -> None:
        self.workers = [cells.worker()]
        self.hosts: list[dict[str, Any]] = []
        self._path = path
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def _write(self) -> None:
        fresh = self._path.with_suffix(".new")
        while not self._ended.wait(_EVERY_S):
            fresh.write_text(
                json.dumps(cells.cell(*self.workers, at=time.time(), hosts=self.hosts))
            )
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
    ended = threading.Event()
    program = threading.Thread(target=_run_again_and_again, args=(folder, file, ended))
    program.start()
    try:
        wait_until(settings.hosts_json.exists, "listed")
        yield guard
    finally:
        ended.set()
        program.join()
        guard.end()


def _run_again_and_again(folder: Path, file: Path, ended: threading.Event) -> None:
    """As supervisord does: started when it has ended, until it is asked to end."""
    while not ended.is_set():
        with command_line.started((str(file),), os.environ, module="deploy.cluster") as program:
            (folder / "pid").write_text(str(program.pid))
            while program.runs and not ended.wait(0.05):
                pass
            with contextlib.suppress(ProcessLookupError):
                program.send_signal(signal.SIGTERM)
            program.wait(PATIENCE_S)


def upgrade_command(folder: Path, name: str, refused: str = "") -> tuple[str, ...]:
    """In place of ``zimage upgrade``: the program of host ``name`` is of the other version once it
    was started again. Refused while the file ``refused`` is there; else ``order`` names it."""
    file = folder / f"upgrade-{name}"
    here = folder / name
    file.write_text(
        "#!/bin/sh\nset -e\n"
        f'if [ -e "{folder}/{refused or "never"}" ]; then echo "$1 was refused"; exit 1; fi\n'
        f"echo {name} >> {folder}/order\n"
        f'sed -i \'s/"version":"[^"]*"/"version":"\'$1\'"/\' {here}/membership.json\n'
        f"kill $(cat {here}/pid)\n"
    )
    file.chmod(0o755)
    return (str(file),)
