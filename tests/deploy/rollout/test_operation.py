"""One command that changes a cell, as it is written down: real files, real processes."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deploy import drains, rollout_record
from deploy.cell import Cell, CellError
from deploy.config import parse
from deploy.host import processes
from deploy.rollout import operation
from deploy.rollout.interrupts import Interrupted
from deploy.rollout_record import Record, Step
from tests import command_line
from tests.deploy.processes import wait_until

HOLDER = "tests.deploy.rollout.holder"


@pytest.fixture
def cell(tmp_path: Path) -> Cell:
    cell = Cell(parse({"cell": {"var_dir": str(tmp_path / "var")}}), tmp_path / "cluster.toml")
    cell.layout.create()
    return cell


def record(cell: Cell) -> Record:
    found = operation.last(cell)
    assert found is not None
    return found


def audit(cell: Cell) -> list[tuple[str, str, str]]:
    [file] = cell.layout.audit_dir.glob("*.jsonl")
    lines = map(json.loads, file.read_text().splitlines())
    return [(line["event"], line["outcome"], line["command"]) for line in lines]


@contextmanager
def holder(cell: Cell) -> Iterator[command_line.Command]:
    """A restart of w1 and w2 that has come to w2."""
    told = (str(cell.layout.var_dir),)
    with command_line.started(told, os.environ, module=HOLDER) as begun:
        wait_until(lambda: begun.said() or not begun.runs, "come to w2")
        assert begun.runs, begun.complained()
        yield begun


def cut_short(cell: Cell) -> None:
    with holder(cell) as killed:
        killed.send_signal(signal.SIGKILL)


def test_each_step_is_written_down_before_it_is_taken(cell: Cell) -> None:
    with operation.begin(cell, "restart", "restart w1", ["w1"]) as rollout:
        assert record(cell).workers == {"w1": Step.WAITING}
        rollout.enter("w1", Step.DRAINING)
        assert record(cell).workers == {"w1": Step.DRAINING}
        assert record(cell).under_way
    assert (record(cell).outcome, record(cell).under_way) == ("done", False)
    assert audit(cell) == [
        ("rollout restart", "under way", "restart w1"),
        ("rollout restart", "done", "restart w1"),
    ]


@pytest.mark.parametrize(
    ("error", "outcome"),
    [(CellError("w1 failed: no\nlog"), "failed"), (Interrupted(signal.SIGHUP), "interrupted")],
)
def test_end_that_is_none_is_told(cell: Cell, error: BaseException, outcome: str) -> None:
    def failing() -> None:
        with operation.begin(cell, "restart", "restart w1", ["w1"]) as rollout:
            rollout.enter("w1", Step.DRAINING)
            raise error

    with pytest.raises(type(error)):
        failing()
    told = operation.in_words(record(cell))
    assert (record(cell).outcome, record(cell).unfinished) == (outcome, True)
    assert "w1 draining; next: zimage up --resume goes on with it" in told
    assert {"w1 failed: no", "SIGHUP"} & {record(cell).why}


def test_what_is_refused_before_it_touches_anything_leaves_the_record_alone(cell: Cell) -> None:
    cut_short(cell)
    before = record(cell)
    with pytest.raises(CellError), operation.begin(cell, "up", "up"):
        raise CellError("this machine cannot run that configuration")
    assert record(cell) == before
    assert audit(cell)[-1] == ("rollout up", "refused", "up")


def test_unfinished_one_is_not_forgotten_over_a_small_command(cell: Cell) -> None:
    cut_short(cell)
    with operation.begin(cell, "drain", "drain w3"):
        pass
    assert record(cell).left == ["w2"]
    with operation.begin(cell, "up", "up") as rollout:
        rollout.aim("digest")
    assert (record(cell).kind, record(cell).outcome) == ("up", "done")


def test_killed_one_is_known_by_its_holder_and_its_drain_goes(
    cell: Cell, capsys: pytest.CaptureFixture[str]
) -> None:
    cut_short(cell)
    assert record(cell).cut_short
    assert "was cut short: w1 done, w2 draining; next: zimage up --resume" in operation.in_words(
        record(cell)
    )
    assert [path.name for path in cell.layout.drained_dir.iterdir()] == ["w2"]
    with operation.begin(cell, "up", "up"):
        assert list(cell.layout.drained_dir.iterdir()) == []
    said = capsys.readouterr()
    assert "w2: let in again; its restart was cut short" in said.out
    assert "did not restart all: zimage restart w2" in said.err
    assert ("rollout restart", "interrupted", "restart --rolling w1 w2") in audit(cell)


def test_second_command_is_told_who_is_at_work(cell: Cell) -> None:
    with holder(cell) as first:
        with (
            pytest.raises(CellError) as refused,
            operation.begin(cell, "down", "down"),
        ):
            pass
        with pytest.raises(CellError, match="is under way"):
            operation.unfinished(cell)
        first.send_signal(signal.SIGKILL)
    me = operation.person()
    assert f"`zimage restart --rolling w1 w2` by {me} (process {first.pid}" in str(refused.value)
    assert "zimage up --abort" in str(refused.value)


def test_abort_ends_one_that_is_under_way_in_order(cell: Cell) -> None:
    with holder(cell) as first:
        assert operation.abort(cell).outcome == "aborted"
        assert first.wait(10) != 0
    assert list(cell.layout.drained_dir.iterdir()) == []
    assert record(cell).outcome == "aborted"
    with pytest.raises(CellError, match="no rollout is under way"):
        operation.abort(cell)


def test_abort_of_one_that_was_killed_leaves_nobody_drained(cell: Cell) -> None:
    cut_short(cell)
    drains.put(cell.layout, "w1")
    operation.abort(cell)
    assert [path.name for path in cell.layout.drained_dir.iterdir()] == ["w1"]
    with pytest.raises(CellError, match="nothing was cut short"):
        operation.unfinished(cell)


def test_full_disk_ends_it_before_a_worker_is_touched_and_not_after(
    cell: Cell, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    def restart() -> None:
        with operation.begin(cell, "restart", "restart w1", ["w1"]) as rollout:
            rollout.enter("w1", Step.DRAINING)
            monkeypatch.setattr(rollout_record, "write", full)
            rollout.enter("w1", Step.RESTARTING)  # begun: it must become whole
            rollout.enter("w1", Step.DONE)
            rollout.enter("w2", Step.DRAINING)

    with pytest.raises(CellError, match="No space left on device; make room, then go on with"):
        restart()
    assert "rollout.json cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("outcome", "word"), [("under way", "zimage up makes the cell equal"), ("done", "")]
)
def test_record_of_a_newer_version_is_told_of_and_set_aside(
    cell: Cell, outcome: str, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after a rollback over a change of the schema."""
    newer = {"schema_version": rollout_record.SCHEMA + 1, "outcome": outcome, "steps": []}
    cell.layout.rollout_json.write_text(json.dumps(newer))
    told = operation.told(cell)
    assert told is not None
    assert word in told["text"]
    with pytest.raises(CellError, match="newer version of the kit"):
        operation.unfinished(cell)
    with operation.begin(cell, "up", "up"):
        assert record(cell).under_way
    aside = cell.layout.rollout_json.with_suffix(".newer.json")
    assert json.loads(aside.read_text()) == newer
    assert f"it is set aside as {aside}" in capsys.readouterr().err.replace("\n", "")
    assert record(cell).outcome == "done"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"id": 1}'])
def test_what_nobody_can_read_is_none(cell: Cell, text: str) -> None:
    cell.layout.rollout_json.write_text(text)
    assert operation.last(cell) is None
    assert rollout_record.stopped_by_a_dead_one(cell.layout) == frozenset()


def test_workers_that_a_killed_one_stopped_are_known(cell: Cell) -> None:
    with operation.begin(cell, "restart", "restart w1", ["w1"]) as rollout:
        rollout.enter("w1", Step.RESTARTING)
        assert rollout_record.stopped_by_a_dead_one(cell.layout) == frozenset()
        alive = record(cell)
    dead = alive.model_copy(update={"holder": alive.holder.model_copy(update={"started": 1})})
    rollout_record.write(cell.layout, dead)
    assert rollout_record.stopped_by_a_dead_one(cell.layout) == {"w1"}
    down = dead.model_copy(update={"kind": "down"})
    rollout_record.write(cell.layout, down)
    assert rollout_record.stopped_by_a_dead_one(cell.layout) == frozenset()


def test_holder_is_one_process_for_good(cell: Cell) -> None:
    with operation.begin(cell, "up", "up"):
        pass
    me = processes.Identity.of(os.getpid())
    found = record(cell).holder
    assert (found.boot, found.pid, found.started) == (me.boot, me.pid, me.started)
    assert wait_until(lambda: found.alive, "alive")


@pytest.mark.parametrize("command", ["upgrade 1.2.0", "rollback"])
def test_part_of_an_upgrade_says_what_goes_on_and_what_goes_back(cell: Cell, command: str) -> None:
    def failing() -> None:
        with operation.begin(cell, "up", command) as rollout:
            rollout.aim("digest")
            raise CellError("w1 failed")

    with pytest.raises(CellError):
        failing()
    told = operation.in_words(record(cell))
    assert f"next: zimage {command} goes on, zimage up goes back to what is current" in told
