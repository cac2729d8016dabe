"""One command that changes a cell: alone, written down as it goes, with an end that is told.

``with begin(cell, "restart", "restart --rolling w1", ["w1"]) as rollout:`` holds the lock, puts
``state/rollout.json`` in place and writes both ends into the audit log. Within, ``rollout.enter``
comes before each step of a worker.
"""

import getpass
import os
import secrets
import signal
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from deploy import drains, output, rollout_record
from deploy.cell import Cell, CellError
from deploy.host import processes
from deploy.rollout import interrupts, lock
from deploy.rollout_record import ENDED, Holder, Kind, NewerSchema, Outcome, Record, Step
from deploy.supervision import supervise

_ABORT_MARGIN_S = 60.0


class Rollout:
    """The rollout that this process holds."""

    def __init__(self, cell: Cell, record: Record) -> None:
        self.cell = cell
        self.record = record
        self.touched = False
        """Whether anything has been begun that may be left half done."""

    def aim(self, target: str) -> None:
        """Note the digest of the files that the cell is taken to: from now on it is changed."""
        self._write(target=target)
        self.touched = True

    def concerns(self, names: Collection[str]) -> None:
        """Note the workers that are to be restarted, in their order."""
        known = self.record.workers
        self._write(workers={**known, **{n: Step.WAITING for n in names if n not in known}})

    def enter(self, worker: str, step: Step) -> None:
        """Note what is about to be done to ``worker``.

        What cannot be noted is not begun; what has been begun is finished all the same.
        """
        self._write(
            must=step is Step.DRAINING,
            workers={**self.record.workers, worker: step},
            doing=f"{worker}: {step}",
        )
        self.touched = True

    def say(self, text: str) -> None:
        """Tell whoever watches, and ``zimage status``, what is about to be done."""
        output.step(text)
        self._write(must=False, doing=text)

    def end(self, outcome: Outcome, why: str = "", before: Record | None = None) -> None:
        """``before``: the one that is unfinished still, and stands there again."""
        self._write(must=False, outcome=outcome, why=why, ended=round(time.time(), 3))
        _audit(self.cell, self.record)
        if before is not None:
            self.record = before
            self._write(must=False)

    def _write(self, *, must: bool = True, **changes: object) -> None:
        self.record = self.record.model_copy(update=changes)
        try:
            rollout_record.write(self.cell.layout, self.record)
        except OSError as error:
            text = f"{self.cell.layout.rollout_json} cannot be written: {error.strerror}"
            if must:
                raise CellError(f"{text}; make room, then go on with: zimage up") from None
            output.warn(text)


@contextmanager
def begin(
    cell: Cell, kind: Kind, command: str, names: Collection[str] = (), target: str = ""
) -> Iterator[Rollout]:
    """Be the one command that changes ``cell``; ``command`` in the words that were typed.

    ``CellError`` where another one is at work, named with who runs it and since when.
    """
    cell.layout.create()
    with _alone(cell, command):
        before = _last_or_set_aside(cell)
        supervise.find_again(cell.layout, cell.config.cell.name)
        _settle(cell, before, kind)
        rollout = Rollout(cell, _new(kind, command, target))
        rollout.concerns(names)
        _audit(cell, rollout.record)
        yield from _told(rollout, before if before is not None and before.unfinished else None)


def last(cell: Cell) -> Record | None:
    """The rollout that is under way or was the last; ``CellError``: of a newer version."""
    try:
        return rollout_record.read(cell.layout)
    except NewerSchema as error:
        raise CellError(_of_newer(error)) from None


def _last_or_set_aside(cell: Cell) -> Record | None:
    """As ``last``, for whoever holds the lock: nobody works on what a newer version has left."""
    try:
        return rollout_record.read(cell.layout)
    except NewerSchema as error:
        aside = rollout_record.set_aside(cell.layout)
        output.warn(f"{_of_newer(error)}; it is set aside as {aside}")
        return None


def _of_newer(error: NewerSchema) -> str:
    """Whatever it was about: this version can say what to do."""
    if error.ended:
        return f"{error}; the next command that changes the cell sets it aside"
    return f"{error}, and its rollout has not ended: zimage up makes the cell equal to cluster.toml"


def unfinished(cell: Cell) -> Record:
    """What ``--resume`` goes on with; ``CellError`` where there is nothing."""
    record = last(cell)
    if record is None or record.outcome in ENDED:
        raise CellError("nothing was cut short; see zimage status")
    if record.under_way:
        raise CellError(f"{_by(record)} is under way; wait for its end, or zimage up --abort")
    return record


def abort(cell: Cell) -> Record:
    """End what is under way or was cut short: nobody stays drained or stopped because of it.

    What it changed stays changed. ``CellError`` where there is nothing, or it does not end.
    """
    record = last(cell)
    if record is None or not (record.under_way or record.unfinished):
        raise CellError("no rollout is under way, and none was cut short; see zimage status")
    if record.under_way:
        _ask_to_end(cell, record)
    with _alone(cell, "up --abort"):
        _settle(cell, None, "up")
        found = last(cell) or record
        _start_stopped(cell, found)
        rollout = Rollout(cell, found)
        rollout.end("aborted", f"by {person()}")
        return rollout.record


def person() -> str:
    """Who typed the command, also where that was through sudo."""
    try:
        return os.environ.get("SUDO_USER") or os.environ.get("USER") or getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"


def in_words(record: Record) -> str:
    """One line: what it is, who runs it since when, how far it came, and what comes next."""
    steps = ", ".join(f"{name} {step}" for name, step in record.workers.items())
    steps = f": {steps}" if steps else ""
    if record.under_way:
        doing = f"; {record.doing}" if record.doing else ""
        return f"{_by(record)} is under way{steps}{doing}"
    if not record.unfinished:
        return f"{_by(record)}: {record.outcome}"
    ended = "was cut short" if record.cut_short else f"{record.outcome}"
    why = f" ({record.why})" if record.why else ""
    return f"{_by(record)} {ended}{why}{steps}; next: {remedy(record)}"


def told(cell: Cell) -> dict[str, Any] | None:
    """For programs; ``text`` is what people are told while there is something to tell."""
    try:
        record = rollout_record.read(cell.layout)
    except NewerSchema as error:
        return {"text": "" if error.ended else _of_newer(error)}
    return None if record is None else _as_json(record)


def _as_json(record: Record) -> dict[str, Any]:
    told = record.under_way or record.unfinished
    own = {"under_way": record.under_way, "cut_short": record.cut_short}
    return {**record.model_dump(mode="json"), **own, "text": in_words(record) if told else ""}


def remedy(record: Record) -> str:
    """What to type after an unfinished one."""
    if record.of_versions:
        return f"zimage {record.holder.command} goes on, zimage up goes back to what is current"
    if record.kind in {"up", "restart", "down"}:
        return "zimage up --resume goes on with it, zimage up --abort leaves it"
    if record.kind == "move":
        return "the same command again goes on with it"
    return "zimage up"


def _by(record: Record) -> str:
    since = time.strftime("%H:%M:%S", time.localtime(record.since))
    holder = record.holder
    return f"`zimage {holder.command}` by {holder.user} (process {holder.pid}, since {since})"


def _new(kind: Kind, command: str, target: str) -> Record:
    now, me = time.time(), processes.Identity.of(os.getpid())
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(now))
    return Record(
        id=f"{stamp}-{secrets.token_hex(2)}",
        kind=kind,
        holder=Holder(**vars(me), user=person(), command=command),
        since=round(now, 3),
        target=target,
    )


@contextmanager
def _alone(cell: Cell, command: str) -> Iterator[None]:
    try:
        with lock.exclusive(cell.layout.up_lock, command, person()):
            yield
    except lock.Held as holder:
        raise CellError(
            f"{holder} is changing this cell; wait for its end, or end it: zimage up --abort"
        ) from None


def _told(rollout: Rollout, before: Record | None) -> Iterator[Rollout]:
    """Note how it ends. ``before`` stands there again where nothing has taken its place."""
    kind = rollout.record.kind
    try:
        yield rollout
    except interrupts.Interrupted as signal_seen:
        rollout.end("interrupted", str(signal_seen), _unless(rollout.touched, before))
        raise
    except BaseException as error:
        why = (str(error).splitlines() or [repr(error)])[0]
        rollout.end(
            "failed" if rollout.touched else "refused", why, _unless(rollout.touched, before)
        )
        raise
    replaced = before is None or kind in {"up", "down", before.kind}
    rollout.end("done", before=_unless(replaced, before))


def _unless(replaced: bool, before: Record | None) -> Record | None:
    return None if replaced else before


def _settle(cell: Cell, before: Record | None, kind: Kind) -> None:
    """Take away what dead commands have left, and say what this one takes the place of."""
    for drain in drains.clear_left(cell.layout):
        output.step(f"{drain.worker}: let in again; its {drain.why} was cut short")
    if before is None or not before.unfinished:
        return
    if before.cut_short:
        _audit(cell, before.model_copy(update={"outcome": "interrupted", "why": "killed"}))
    if before.kind == "restart" and before.left and kind == "up":
        names = " ".join(before.left)
        output.warn(f"{_by(before)} did not restart all: zimage restart {names}")


def _start_stopped(cell: Cell, record: Record) -> None:
    """Those that a killed rollout stopped and that do not run."""
    programs = cell.programs()
    for name in record.left:
        if record.kind != "down" and name in programs and programs[name].state == "STOPPED":
            output.step(f"start {name}, which it had stopped")
            cell.supervisor.start(name)


def _ask_to_end(cell: Cell, record: Record) -> None:
    holder = record.holder
    output.step(f"ask {_by(record)} to end; what it has begun it finishes")
    try:
        os.kill(holder.pid, signal.SIGTERM)
    except ProcessLookupError:
        return
    except PermissionError:
        text = f"{_by(record)} is not a process of yours; ask {holder.user}, or be root"
        raise CellError(text) from None
    timeout_s = cell.config.timeouts.drain_timeout_s + _ABORT_MARGIN_S
    if not processes.wait_for(lambda: not holder.alive, timeout_s, every_s=0.1):
        raise CellError(f"{_by(record)} does not end within {timeout_s:g} s: kill -9 {holder.pid}")


def _audit(cell: Cell, record: Record) -> None:
    if not cell.config.audit.log:
        return
    from worker.observability import audit

    details = {
        "rollout": record.id,
        "command": record.holder.command,
        "outcome": record.outcome,
        **({"why": record.why} if record.why else {}),
        **({"target": record.target} if record.target else {}),
        **({"workers": dict(record.workers)} if record.workers else {}),
    }
    who = f"{record.holder.user} on this host"
    note = audit.Note(time.time(), f"rollout {record.kind}", "", record.holder.user, who, details)
    try:
        audit.append(cell.layout.audit_dir, "zimage", note)
    except OSError as error:
        output.warn(f"the audit log {cell.layout.audit_dir} cannot be written: {error.strerror}")
