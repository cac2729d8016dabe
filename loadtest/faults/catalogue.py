"""Every fault by name: what it does, for how long, and what users may see of it."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from loadtest.faults import clients, database, programs, workers
from loadtest.faults.cell import Cell

Inject = Callable[[Cell, str], AbstractContextManager[None]]


def _nothing_missing() -> str:
    return ""


@dataclass(frozen=True)
class Fault:
    """``inject`` holds it for ``hold_s``; the cell must be whole again within ``heal_s``."""

    what: str
    inject: Inject
    hold_s: float = 0.0
    heal_s: float = 120.0
    of_worker: bool = True
    """It hits one worker; otherwise the cell as a whole."""
    leaves: bool = True
    """The worker must leave the pool."""
    at_once: bool = True
    """It can be told from work as soon as it happens; a hanging step only after its allowance."""
    unseen: bool = True
    """No request may fail while another worker is in the pool."""
    missing: Callable[[], str] = _nothing_missing
    """Why it cannot be injected here; empty where it can."""


def _around(what: str, inject: Inject, hold_s: float = 0.0, *, unseen: bool = True) -> Fault:
    return Fault(what, inject, hold_s, of_worker=False, leaves=False, unseen=unseen)


FAULTS: dict[str, Fault] = {
    "kill": Fault("SIGKILL of a worker", workers.killed),
    "stop": Fault("SIGSTOP of a worker until it is killed for it", workers.stopped, 20.0),
    "pause": Fault("SIGSTOP of a worker, SIGCONT after 1.5 s", workers.stopped, 1.5),
    "step-hangs": Fault(
        "a worker hangs in a step while its event loop answers",
        workers.step_hangs,
        20.0,
        at_once=False,
    ),
    "idle-hangs": Fault(
        "an idle worker's threads stand still while its event loop answers",
        workers.idle_hangs,
        20.0,
        at_once=False,
    ),
    "slow": Fault("a worker gets a tenth of its time", workers.slow, 10.0, leaves=False),
    "warm-up-exit": Fault("killed, and twice again while it starts", workers.dies_in_warm_up),
    "crash-loop": Fault("a worker that ends at once, for 10 s", workers.crash_loop, 10.0),
    "out-of-memory": Fault(
        "a worker that gets no more memory", workers.out_of_memory, 10.0, leaves=False
    ),
    "loop-blocked": Fault("a worker's event loop stands still", workers.loop_blocked, 20.0),
    "socket-deleted": Fault("a worker's socket file is deleted", workers.socket_deleted),
    "descriptors": Fault(
        "a worker that may open no more files", workers.descriptors_exhausted, 10.0, leaves=False
    ),
    "restart-killed": Fault(
        "killed while supervisord restarts it", workers.killed_while_restarting
    ),
    "guard-killed": _around("SIGKILL of the guard", programs.guard_killed),
    "guard-stopped": _around("SIGSTOP of the guard for 5 s", programs.guard_stopped, 5.0),
    "nginx-worker-killed": _around(
        "SIGKILL of one of nginx's worker processes", programs.nginx_worker_killed, unseen=False
    ),
    "nginx-reloaded": _around("nginx reads its configuration again", programs.nginx_reloaded),
    "disk-full": Fault(
        "no room for images, strikes, state and temporary files, for 10 s",
        programs.disk_full,
        10.0,
        of_worker=False,
        leaves=False,
        missing=programs.may_mount,
    ),
    "database-locked": _around(
        "somebody writes to the database and does not end, for 15 s",
        database.database_locked,
        15.0,
    ),
    "database-missing": _around(
        "the database's file is gone for 10 s", database.database_missing, 10.0
    ),
    "database-full": _around(
        "no worker may write to any file, for 10 s", database.database_full, 10.0
    ),
    "idle-connections": _around(
        "10,000 connections that send nothing, for 15 s", clients.idle_connections, 15.0
    ),
    "slow-loris": _around("200 bodies of one byte a second, for 15 s", clients.slow_loris, 15.0),
    "half-closed": _around("clients that close their side at once", clients.half_closed, 5.0),
    "giant-bodies": _around("bodies of 64 MiB, for 5 s", clients.giant_bodies, 5.0),
    "malformed-bodies": _around("what is no request, for 5 s", clients.malformed_bodies, 5.0),
}
