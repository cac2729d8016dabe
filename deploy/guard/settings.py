"""What ``guard.json`` says: the cell's paths, its workers and every time limit.

Rendered from ``cluster.toml``, so that the guard starts fast and never reads a half-edited file.
"""

import hashlib
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from deploy.config.schema import Front, Guard
from deploy.guard.history import INTERVAL_S


class _Frozen(BaseModel):
    # Not "forbid": the file has all of cluster.toml's [guard], also what is not for the guard.
    model_config = ConfigDict(frozen=True, extra="ignore")


class WorkerSettings(_Frozen):
    name: str
    """Names its supervisor program, socket, heartbeat and gate."""
    device: str = "cpu"
    device_name: str = "CPU"
    """For people."""
    model: str = ""
    """Which of several models it draws with."""


class Rules(Guard):
    """When a worker goes out of the pool, and when it is killed: ``[guard]`` of cluster.toml, and
    what has no key there."""

    model_config = _Frozen.model_config

    idle_allowance_s: float = Field(3.0, gt=0)
    """An idle worker that is silent for longer is killed. The other phases bring their own
    allowances in the heartbeat."""
    boot_allowance_s: float = Field(60.0, gt=0)
    """From the start of the process to its first heartbeat."""
    deaf_allowance_s: float = Field(10.0, gt=0)
    """A live worker past its loading that nobody can connect to for longer is killed."""
    ended_allowance_s: float = Field(30.0, gt=0)
    """From the heartbeat's orderly end to the end of the process."""
    late_loop_s: float = Field(1.0, gt=0)
    """When the guard itself comes so late, the machine froze: ``mass_silence_hold_s`` begins."""
    mass_silence_window_s: float = Field(1.0, gt=0)
    """Workers that fall silent within this time fell silent together."""
    max_start_backoff_s: float = Field(30.0, gt=0)
    """Programs that supervisor gave up on are started again after 1, 2, 4 … so many seconds."""
    chores_interval_s: float = Field(10.0, gt=0)
    """Old files go, logs are rotated and the certificate is looked at so often."""
    history_interval_s: float = Field(INTERVAL_S, gt=0)
    """Between two points of the history."""


class FrontSettings(Front):
    """When a host goes out of a front's pool, and when its link is ended: ``[front]`` of
    cluster.toml, and what has no key there."""

    model_config = _Frozen.model_config

    links: tuple[str, ...]
    """Those that nginx knows, spare ones included."""
    weights: dict[str, int] = Field(default_factory=dict)
    """Of those that had a host when they were rendered: how many workers."""
    serves: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Of those, by which models nginx knows their hosts, where hosts have other ones."""
    relink_command: tuple[str, ...] = ()
    """Renders links anew; empty: nobody does."""
    relink_calm_s: float = Field(5.0, gt=0)
    """The list of hosts stands still for so long before that: several may join at once."""
    relink_every_s: float = Field(60.0, gt=0)
    """At most once in so many seconds, for a reload of nginx makes new processes."""
    relink_again_s: float = Field(600.0, gt=0)
    """So long after one that failed, and before weights alone are set right."""


class GuardSettings(_Frozen):
    cell: str = "zimage"
    var_dir: Path
    run_dir: Path
    short_link: Path | None = None
    """Leads to ``var_dir``; part of ``run_dir`` where there is one."""
    digest: str = ""
    """Of the file: what ``zimage up`` looks for, to know which settings the guard runs with."""
    workers: tuple[WorkerSettings, ...]
    front: FrontSettings | None = None
    """Of a machine that hands requests to hosts."""
    programs: tuple[str, ...] = ("nginx",)
    """Other supervisor programs that are started again when supervisor gave up on them."""
    guard: Rules = Rules()
    log_max_bytes: int = Field(20 << 20, ge=1 << 10)
    """nginx's logs are rotated at this size; supervisor rotates the others."""
    log_keep: int = Field(4, ge=1)

    @model_validator(mode="after")
    def _guards_something(self) -> Self:
        if not self.workers and self.front is None:
            raise ValueError("there is nothing to guard: neither workers nor a front")
        return self


def load(path: Path) -> GuardSettings:
    """Read ``guard.json``; ``OSError``, or pydantic's ``ValidationError`` where it is wrong."""
    text = path.read_bytes()
    read = GuardSettings.model_validate_json(text)
    return read.model_copy(update={"digest": hashlib.sha256(text).hexdigest()})
