"""The real guard after a command that was killed half-way."""

import subprocess
import time

from deploy import drains, rollout_record
from deploy.host import processes
from deploy.rollout_record import Holder, Kind, Record, Step
from deploy.supervision.supervise import Supervisor
from tests.deploy.guard.conftest import Cell
from tests.deploy.processes import wait_until


def dead() -> processes.Identity:
    with subprocess.Popen(["sleep", "60"]) as command:
        found = processes.Identity.of(command.pid)
        command.kill()
    return found


def cut_short(cell: Cell, kind: Kind, worker: str, step: Step) -> Record:
    """As a command leaves it that was killed at this step of ``worker``."""
    holder = Holder(**vars(dead()), user="alice", command=f"{kind} {worker}")
    record = Record(id="1", kind=kind, holder=holder, since=time.time(), workers={worker: step})
    rollout_record.write(cell.layout, record)
    return record


def test_drain_of_a_killed_command_goes_and_one_by_hand_stays(cell: Cell) -> None:
    drains._write(cell.layout, drains.Drain("w1", "restart", time.time(), dead()))
    drains.put(cell.layout, "w2", by="alice")
    text = "let in again: the restart that drained it is gone"
    wait_until(lambda: text in cell.events("w1"), "cleared")
    cell.wait_open("w1")
    assert {flag.name for flag in cell.layout.drained_dir.iterdir()} == {"w2"}
    drains.remove(cell.layout, "w2")
    cell.wait_open("w2")


def test_worker_that_a_killed_command_had_stopped_is_started_and_told_of(cell: Cell) -> None:
    supervisor, pid = Supervisor(cell.layout), cell.pid("w3")
    supervisor.stop("w3", 10.0)
    record = cut_short(cell, "restart", "w3", Step.RESTARTING)
    cell.wait_replaced("w3", pid)
    wait_until(lambda: "rollout_cut_short" in cell.alarms(), "alarmed")
    assert "start it: the command that had stopped it is gone" in cell.events("w3")
    rollout_record.write(cell.layout, record.model_copy(update={"outcome": "aborted"}))
    wait_until(lambda: "rollout_cut_short" not in cell.alarms(), "over")


def test_worker_that_an_operator_stopped_stays_stopped(cell: Cell) -> None:
    supervisor, pid = Supervisor(cell.layout), cell.pid("w3")
    supervisor.stop("w3", 10.0)
    record = cut_short(cell, "restart", "w1", Step.RESTARTING)
    wait_until(lambda: "rollout_cut_short" in cell.alarms(), "alarmed")
    assert supervisor.states()["w3"].state == "STOPPED"
    rollout_record.write(cell.layout, record.model_copy(update={"outcome": "aborted"}))
    supervisor.start("w3")
    cell.wait_replaced("w3", pid)
