"""Models of hubs, brought to this machine before anything starts: a start downloads nothing.

The download is a process of its own (``worker.models.loading.pull``), whose environment is that of
the cell's workers. Here it is watched: how much has come, and that it goes on.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from deploy import output
from deploy.cell import Cell, CellError
from deploy.config import ClusterConfig
from deploy.host import processes
from deploy.installation import ROOT
from deploy.layout import Layout
from worker.models.loading import hub
from worker.models.loading.hub import HubModel

STALL_S = 120.0
"""So long nothing may come and nothing be read. The hubs' libraries give up a silent connection
earlier; this is for what they do not see."""

_LOOK_S = 0.5
_END_S = 10.0
_TAIL_LINES = 5
_PLACES = ("HF_HOME", "HF_HUB_CACHE", "MODELSCOPE_CACHE")


def environment(config: ClusterConfig, layout: Layout, model: HubModel) -> dict[str, str]:
    """Of ``[model] mirror`` and ``[environment]``, what concerns a hub, with where models lie."""
    mirror = _mirror(config, model)
    return {
        **layout.model_caches,
        **({model.endpoint_variable: mirror} if mirror else {}),
        **config.environment,
    }


def _mirror(config: ClusterConfig, model: HubModel) -> str:
    """Of the entry that names ``model``; of the first for one that none does."""
    naming = (m for m in config.served if model.source in (m.source, m.base))
    return next(naming, config.served[0]).mirror


def ensure(cell: Cell, model: HubModel) -> None:
    """Download ``model`` unless all of it is here."""
    there = hub.copy_of(model, environment(cell.config, cell.layout, model))
    if there is None or any(there.flaws()):
        pull(cell, model)


def pull(cell: Cell, model: HubModel) -> Path:
    """The folder of ``model``, downloaded as far as it was not here, all files with the hashes
    that the hub names. ``CellError``: why not. Whole files are kept for the next time."""
    told = environment(cell.config, cell.layout, model)
    output.step(f"download {model.source} from {model.endpoint(told)}")
    # A person's own variables may lead to a proxy; where models lie, cluster.toml says.
    own = {key: value for key, value in os.environ.items() if key not in _PLACES}
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1", "PYTHONUTF8": "1"}
    # The home of whoever typed it, such as root's, may not be for the cell's user to write in.
    home = {"MODELSCOPE_HOME": str(cell.layout.cache_dir / "modelscope" / ".home")}
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "worker.models.loading.pull", model.source],
        cwd=ROOT,
        env={**own, **quiet, **home, **told},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        preexec_fn=processes.bound(signal.SIGTERM),
    ) as child:
        try:
            last = _watch(child, model, model.home(told))
        except BaseException:
            child.terminate()
            try:
                child.wait(_END_S)
            except subprocess.TimeoutExpired:
                child.kill()
            raise
    if "folder" not in last:
        raise CellError(f"{last['what']}; {last['remedy']}")
    return Path(last["folder"])


def _watch(child: "subprocess.Popen[str]", model: HubModel, home: Path) -> dict[str, Any]:
    """What the child said last, which is how it ended."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    tail: list[str] = []
    assert child.stdout is not None
    assert child.stderr is not None
    readers = [
        threading.Thread(target=_read, args=[child.stdout, lines.put], daemon=True),
        threading.Thread(target=_read, args=[child.stderr, tail.append], daemon=True),
    ]
    for reader in readers:
        reader.start()
    last: dict[str, Any] = {}
    began = occupied(home)
    seen, at = began, time.monotonic()
    with output.transfer(model.source) as transfer:
        while readers[0].is_alive() or not lines.empty():
            try:
                last = json.loads(lines.get(timeout=_LOOK_S))
                at = time.monotonic()
            except (queue.Empty, ValueError):
                pass
            if "need" in last:
                began, transfer.total = occupied(home), last["need"]
            if (now := occupied(home)) != seen:
                seen, at = now, time.monotonic()
            transfer.show(now - began)
            if time.monotonic() - at > STALL_S:
                raise CellError(
                    f"{model.source}: nothing came for {STALL_S:.0f} s; check the network and "
                    f"model.mirror, then zimage models pull {model.source}: it goes on"
                )
    if child.wait() and "what" not in last:
        what = " ".join(tail[-_TAIL_LINES:]) or f"exit code {child.returncode}"
        return {"what": f"the download of {model.source} ended: {what}", "remedy": "try again"}
    return last


def _read(stream: IO[str], take: Any) -> None:
    for line in stream:
        take(line.strip())


def occupied(folder: Path) -> int:
    """Bytes on the disk of all files in ``folder``. What a file will be long is not there yet."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                status = os.lstat(os.path.join(path, name))  # noqa: PTH118
            except OSError:
                continue  # it became another
            total += status.st_blocks * 512
    return total


def environments(cell: Cell) -> Mapping[str, str]:
    """Where the cell's models of all hubs lie."""
    return {**cell.layout.model_caches, **cell.config.environment}
