"""The rollout as it is written down in ``state/rollout.json``: who holds it, and how far it came.

A rollout is one command that changes a cell. It writes down each step before it takes it, so that
whoever comes after a killed one knows what is half done: the guard, ``zimage status`` and the next
command. What is "under way" ends in one of the other outcomes; that it was killed shows in its
holder, who is gone.
"""

import os
from enum import StrEnum
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deploy.host import processes
from deploy.layout import Layout

SCHEMA = 1
"""Of the file. A version of the kit that reads a newer one says so and touches nothing."""

Kind = Literal["up", "restart", "drain", "undrain", "calibrate", "down", "reload", "restore"]
Outcome = Literal["under way", "done", "failed", "interrupted", "aborted", "refused"]
"""``refused``: it failed before it touched anything."""


class NewerSchema(Exception):
    """The file is of a newer version of the kit."""


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
    def left(self) -> list[str]:
        """The workers that it has yet to finish."""
        return [name for name, step in self.workers.items() if step is not Step.DONE]


def read(layout: Layout) -> Record | None:
    """The last rollout; None where there is none, or nothing that one can read."""
    try:
        text = layout.rollout_json.read_bytes()
    except OSError:
        return None
    try:
        found = Record.model_validate_json(text)
    except ValidationError:
        if _schema(text) > SCHEMA:
            raise NewerSchema(f"{layout.rollout_json} is of a newer version of the kit") from None
        return None
    if found.schema_version > SCHEMA:
        raise NewerSchema(f"{layout.rollout_json} is of a newer version of the kit")
    return found


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


class _Schema(BaseModel):
    schema_version: int = 0


def _schema(text: bytes) -> int:
    try:
        return _Schema.model_validate_json(text).schema_version
    except ValidationError:
        return 0


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
