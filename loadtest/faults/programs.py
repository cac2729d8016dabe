"""Faults of what is around the workers: guard, nginx, disk. Contexts, as in ``workers``."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from deploy.host import processes
from loadtest.faults.cell import Cell, process_ids

_FULL_DISK_BYTES = 2 << 20


@contextlib.contextmanager
def guard_killed(cell: Cell, _worker: str) -> Iterator[None]:
    os.kill(_guard(cell), signal.SIGKILL)
    yield


@contextlib.contextmanager
def guard_stopped(cell: Cell, _worker: str) -> Iterator[None]:
    pid = _guard(cell)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def nginx_worker_killed(cell: Cell, _worker: str) -> Iterator[None]:
    """One of the processes that carry connections; what it carries is cut."""
    os.kill(_nginx_workers(cell)[0], signal.SIGKILL)
    yield


@contextlib.contextmanager
def nginx_reloaded(cell: Cell, _worker: str) -> Iterator[None]:
    os.kill(int(cell.layout.nginx_pid.read_text()), signal.SIGHUP)
    yield


@contextlib.contextmanager
def disk_full(cell: Cell, _worker: str) -> Iterator[None]:
    """Images, strikes, state and nginx's temporary files lie on a small disk that is full."""
    layout = cell.layout
    folders = (layout.images_dir, layout.strikes_dir, layout.state_dir, layout.tmp_dir)
    with contextlib.ExitStack() as undo:
        for folder in folders:
            undo.enter_context(_on_full_disk(folder))
        yield


def may_mount() -> str:
    """Why a small disk cannot be mounted here; empty where it can."""
    with tempfile.TemporaryDirectory() as folder:
        if _mount(Path(folder)).returncode:
            return "mounting a tmpfs needs root"
        subprocess.run(["umount", folder], check=True)
    return ""


@contextlib.contextmanager
def _on_full_disk(folder: Path) -> Iterator[None]:
    with tempfile.TemporaryDirectory() as aside:
        shutil.copytree(folder, aside, dirs_exist_ok=True, ignore=_gone_meanwhile)
        if failed := _mount(folder).stderr:
            raise PermissionError(failed)
        try:
            shutil.copytree(aside, folder, dirs_exist_ok=True)
            _fill(folder / "filler")
            yield
        finally:
            # Lazily: nginx may still write into a file there.
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _gone_meanwhile(folder: str, names: list[str]) -> list[str]:
    # Names of half-written files, and pictures that would not fit.
    return [n for n in names if n.endswith(".new") or Path(folder, n).suffix in {".png", ".webp"}]


def _mount(folder: Path) -> subprocess.CompletedProcess[str]:
    size = f"size={_FULL_DISK_BYTES},mode=0700"
    command = ["mount", "-t", "tmpfs", "-o", size, "zimage-full-disk", str(folder)]
    return subprocess.run(command, capture_output=True, text=True)


def _fill(file: Path) -> None:
    with contextlib.suppress(OSError), file.open("wb", buffering=0) as out:
        while out.write(b"\0" * 4096):
            pass


def _guard(cell: Cell) -> int:
    found = process_ids(cell.layout.guard_json)
    if not found:
        raise LookupError("the guard does not run")
    return min(found)


def _nginx_workers(cell: Cell) -> list[int]:
    master = int(cell.layout.nginx_pid.read_text())
    found = [p for p in processes.members(cell.layout.processes) if p.parent == master]
    return [p.pid for p in found if "worker process" in p.command and "shutting" not in p.command]
