"""Processes of a cell whose supervisord was killed: they go on drawing until somebody follows.

Each is known by what it is (guard, nginx, a worker by name), so that its successor can take its
place one at a time.
"""

import signal
from dataclasses import dataclass
from pathlib import Path

from deploy.host import processes
from deploy.host.processes import Process
from deploy.layout import Layout


@dataclass(frozen=True)
class Orphans:
    guards: tuple[Process, ...]
    nginxes: tuple[Process, ...]
    attendants: tuple[Process, ...]
    """Of an nginx that was adopted: each passes on to it whatever signal but SIGKILL it gets."""
    workers: dict[str, Process]
    links: tuple[Process, ...]
    """Of a front, to hosts, each with its worker process. One that ends in order takes away the
    sockets that its successor has."""
    others: tuple[Process, ...]

    @property
    def all(self) -> tuple[Process, ...]:
        nginx = (*self.nginxes, *self.attendants)
        return (*self.guards, *nginx, *self.workers.values(), *self.links, *self.others)


def find(layout: Layout) -> Orphans:
    """What runs outside the session of the living supervisord, or of none."""
    leader = processes.leader(layout.processes)
    living = processes.members(layout.processes)
    if leader is not None:
        living = [p for p in living if p.session != leader.pid]
    guards = [p for p in living if "deploy.guard" in p.command]
    attendants = [p for p in living if "deploy.supervision.nginx_program" in p.command]
    workers = {_name(p): p for p in living if p.pid == p.group and "-m worker" in p.command}
    of_links = {p.group for p in living if f"{layout.links_dir}/" in p.command}
    links = [p for p in living if p.group in of_links]
    nginxes = [p for p in living if p.command.startswith("nginx:") and p not in links]
    known = {p.pid for p in (*guards, *nginxes, *attendants, *workers.values(), *links)}
    others = [p for p in living if p.pid not in known]
    nginx = tuple(nginxes), tuple(attendants)
    return Orphans(tuple(guards), *nginx, workers, tuple(links), tuple(others))


def end(orphans: Orphans, drain_s: float) -> list[Process]:
    """End them all: the guard first, which would restart what ends; nginx when it is idle."""
    left = processes.end(orphans.guards, 5.0, signal.SIGTERM)
    left += end_attendants(orphans)
    left += processes.end(orphans.nginxes, drain_s, signal.SIGQUIT)
    workers = (*orphans.workers.values(), *orphans.links, *orphans.others)
    return left + processes.end(workers, drain_s, signal.SIGTERM)


def end_attendants(orphans: Orphans) -> list[Process]:
    """End them, and not the nginx that they attend to."""
    return processes.end(orphans.attendants, 5.0, signal.SIGKILL)


def _name(process: Process) -> str:
    try:
        pairs = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return str(process.pid)
    names = [p.split(b"=", 1)[1].decode() for p in pairs if p.startswith(b"ZIMAGE_NAME=")]
    return names[0] if names else str(process.pid)
