"""The rollout as it is written down in ``state/rollout.json``: who holds it, and how far it came.

A rollout is one command that changes a cell. It writes down each step before it takes it, so that
whoever comes after a killed one knows what is half done: the guard, ``zimage status`` and the next
command. What is "under way" ends in one of the other outcomes; that it was killed shows in its
holder, who is gone.
"""

import os
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deploy.host import processes
from deploy.layout import Layout

SCHEMA = 1
"""Of the file. It grows where an older version would misread a record: that one then sets it aside
and says so, since a rollback must not wait for it. ``outcome`` keeps its place and meaning."""

Kind = Literal[
    "up", "restart", "drain", "undrain", "calibrate", "down", "reload", "restore", "move"
]
Outcome = Literal["under way", "done", "failed", "interrupted", "aborted", "refused"]
"""``refused``: it failed before it touched anything."""
ENDED = frozenset({"done", "aborted", "refused"})


class NewerSchema(Exception):
    """The file is of a newer version of the kit. ``ended``: nothing of that rollout is left to
    do."""

    def __init__(self, path: Path, *, ended: bool) -> None:
        super().__init__(f"{path} is of a newer version of the kit")
        self.ended = ended


class Step(StrEnum):
    """How far one worker came. ``restarting``: it may be stopped at this moment."""

    WAITING = "waiting"
    DRAINING = "draining"
    RESTARTING = "restarting"
    OPENING = "opening"
    DONE = "done"


class Holder(BaseModel):
    """Whose rollout it is: a process for good, over a reboot, too."""

    model_config = ConfigDict(frozen=True)

    boot: str
    pid: int
    started: int
    user: str
    command: str
    """As it was typed, without ``zimage``."""

    @property
    def alive(self) -> bool:
        return processes.Identity(self.boot, self.pid, self.started).alive


class Record(BaseModel):
    """Times are seconds since the epoch."""

    model_config = ConfigDict(frozen=True)

    schema_version: int = SCHEMA
    id: str
    kind: Kind
    holder: Holder
    since: float
    target: str = ""
    """Digest of the rendered files that it takes the cell to; empty: it renders none."""
    doing: str = ""
    """The last thing that it began, for people."""
    workers: dict[str, Step] = Field(default_factory=dict)
    """Those that it restarts or drains, in their order."""
    outcome: Outcome = "under way"
    why: str = ""
    ended: float | None = None

    @property
    def under_way(self) -> bool:
        return self.outcome == "under way" and self.holder.alive

    @property
    def cut_short(self) -> bool:
        """Whether its process is gone without having ended it."""
        return self.outcome == "under way" and not self.holder.alive

    @property
    def unfinished(self) -> bool:
        """Whether nobody works on it and something of it is left to do."""
        return self.cut_short or self.outcome in {"failed", "interrupted"}

    @property
    def of_versions(self) -> bool:
        """Whether it is a part of `zimage upgrade` or `zimage rollback`."""
        return self.holder.command.split()[:1] in (["upgrade"], ["rollback"])

    @property
    def left(self) -> list[str]:
        """The workers that it has yet to finish."""
        return [name for name, step in self.workers.items() if step is not Step.DONE]


def read(layout: Layout) -> Record | None:
    """The last rollout; None where there is none, or nothing that one can read."""
    try:
        text = layout.rollout_json.read_bytes()
    except OSError:
        return None
    with suppress(ValidationError):
        about = _About.model_validate_json(text)
        if about.schema_version > SCHEMA:
            raise NewerSchema(layout.rollout_json, ended=about.outcome in ENDED)
        return Record.model_validate_json(text)
    return None


def set_aside(layout: Layout) -> Path:
    """Take a record that this version cannot read out of the way; where it lies then."""
    aside = layout.rollout_json.with_suffix(".newer.json")
    layout.rollout_json.replace(aside)
    return aside


def write(layout: Layout, record: Record) -> None:
    """All of it or nothing, also over a power cut; ``OSError`` where the disk is full."""
    fresh = layout.rollout_json.with_suffix(".json.new")
    with fresh.open("w", encoding="utf-8") as file:
        file.write(record.model_dump_json(indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(layout.rollout_json)
    _sync_folder(fresh.parent)


def stopped_by_a_dead_one(layout: Layout) -> frozenset[str]:
    """Workers that a rollout may have stopped, and that nobody starts again: it was killed."""
    try:
        record = read(layout)
    except NewerSchema:
        return frozenset()
    if record is None or not record.cut_short or record.kind == "down":
        return frozenset()
    return frozenset(n for n, step in record.workers.items() if step is Step.RESTARTING)


class _About(BaseModel):
    """What any version says of a record."""

    schema_version: int
    outcome: str = ""


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
