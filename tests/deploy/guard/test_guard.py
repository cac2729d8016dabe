"""The real guard under a real supervisord, over fake workers that fail in real ways."""

import concurrent.futures
import contextlib
import json
import os
import shutil
import signal
import socket
import time

import pytest

from deploy.guard.supervisor import Program, Supervisor
from deploy.supervision import rpc
from tests.deploy.guard.conftest import WORKERS, Cell
from tests.deploy.processes import PATIENCE_S, cell_state, wait_until
from worker.coordination.heartbeat import read_kill


def draw(cell: Cell, name: str, prompt: str) -> None:
    """Send a drawing that is never answered; returns when the worker is gone."""
    body = json.dumps({"prompt": prompt}).encode()
    head = f"POST /v1/images/generations HTTP/1.0\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.socket(socket.AF_UNIX) as connection, contextlib.suppress(ConnectionError):
        connection.settimeout(PATIENCE_S)
        connection.connect(str(cell.layout.socket(name)))
        connection.sendall(head.encode() + body)
        assert connection.recv(1) == b""


def test_all_ready_workers_are_in(cell: Cell) -> None:
    state = wait_until(
        lambda: (s := cell_state(cell.layout))["pool"]["open"] == 3 and s, "three in the pool"
    )
    assert state["ready"]
    assert [worker["state"] for worker in state["workers"]] == ["ready"] * 3


def test_killed_worker_goes_out_and_comes_back(cell: Cell) -> None:
    pid = cell.pid("w1")
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not cell.is_open("w1"), "closed")
    cell.wait_replaced("w1", pid)
    wait_until(lambda: cell.worker("w1")["last_exit"] == "terminated by SIGKILL", "explained")
    assert cell.worker("w1")["last_fault"]["what"] == "died idle"
    assert cell.worker("w1")["restarts"] >= 1


@pytest.mark.parametrize(("alarm", "days"), [("certificate", 13), ("cluster_certificate", 19)])
def test_certificate_that_ends_soon_rings_until_it_is_renewed(
    cell: Cell, alarm: str, days: float
) -> None:
    layout = cell.layout
    files = {
        "certificate": layout.certificate_json,
        "cluster_certificate": layout.cluster_certificates_json,
    }
    files[alarm].parent.mkdir()
    for left, expected in ((days, {alarm}), (90, set[str]())):
        files[alarm].write_text(json.dumps({"ends_at": time.time() + left * 86_400}))
        wait_until(lambda: cell.alarms() & {alarm} == expected, "noticed")  # noqa: B023


def test_stopped_worker_is_out_then_killed(cell: Cell) -> None:
    pid = cell.pid("w2")
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: not cell.is_open("w2"), "closed")
    assert cell.pid("w2") == pid
    cell.wait_replaced("w2", pid)
    assert "idle and silent" in cell.worker("w2")["last_exit"]
    kill = read_kill(cell.layout.heartbeat("w2"))
    assert kill is not None
    assert (kill.pid, kill.cause) == (pid, "other"), "no request stops a process"


def test_worker_that_goes_on_in_time_is_not_killed(cell: Cell) -> None:
    pid = cell.pid("w3")
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: not cell.is_open("w3"), "closed")
    os.kill(pid, signal.SIGCONT)
    cell.wait_open("w3")
    assert cell.pid("w3") == pid


@pytest.mark.parametrize("fault", ["hang", "block"])
def test_hung_step_is_killed_after_its_allowance(cell: Cell, fault: str) -> None:
    pid = cell.pid("w1")
    with concurrent.futures.ThreadPoolExecutor() as pool:
        drawing = pool.submit(draw, cell, "w1", f"{fault} w1")
        cell.wait_replaced("w1", pid)
        drawing.result()
    assert cell.worker("w1")["last_exit"].startswith("killed: ")
    kill = read_kill(cell.layout.heartbeat("w1"))
    assert kill is not None
    assert (kill.pid, kill.cause) == (pid, "overdue")


def test_unready_worker_is_out_and_lives(cell: Cell) -> None:
    pid = cell.pid("w2")
    cell.ask("w2", "POST", "/fake/ready?no")
    wait_until(lambda: not cell.is_open("w2"), "closed")
    wait_until(lambda: cell.worker("w2")["state"] == "stuck", "reported")
    cell.ask("w2", "POST", "/fake/ready?yes")
    cell.wait_open("w2")
    assert cell.pid("w2") == pid


def test_drained_worker_is_told_also_after_its_restart(cell: Cell) -> None:
    flag, pid = cell.layout.drained_flag("w3"), cell.pid("w3")
    flag.touch()
    wait_until(lambda: cell.worker("w3")["state"] == "drained", "drained")
    assert not cell.is_open("w3")
    assert cell.ask("w3", "GET", "/readyz") == 503
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: cell.pid("w3") not in (0, pid), "replaced")
    wait_until(lambda: cell.events("w3").count("told to drain") == 2, "told again")
    flag.unlink()
    cell.wait_open("w3")
    assert cell.ask("w3", "GET", "/readyz") == 200


def test_killed_guard_leaves_the_pool_as_it_is(cell: Cell) -> None:
    gates = {name: cell.layout.gate(name).lstat().st_ino for name in WORKERS}
    [pid] = _pids_of("deploy.guard", str(cell.layout.guard_json))
    os.kill(pid, signal.SIGKILL)
    at = cell_state(cell.layout)["at"]
    wait_until(lambda: cell_state(cell.layout)["at"] > at + 2, "guarded again")
    assert {name: cell.layout.gate(name).lstat().st_ino for name in WORKERS} == gates


def test_worker_that_missed_its_stop_is_asked_again(cell: Cell) -> None:
    supervisor, pid = Supervisor(cell.layout.supervisor_socket), cell.pid("w1")
    assert cell.ask("w1", "POST", "/fake/lose-a-stop") == 200
    supervisor._call("supervisor.stopProcess", "w1", False)
    wait_until(lambda: supervisor.programs()["w1"].state == "STOPPED", "stopped")
    assert "asked again to stop" in cell.events("w1")
    supervisor._call("supervisor.startProcess", "w1", False)
    cell.wait_replaced("w1", pid)


def test_start_leaves_alone_what_supervisor_has_started_meanwhile(cell: Cell) -> None:
    supervisor, pid = Supervisor(cell.layout.supervisor_socket), cell.pid("w2")
    supervisor.start(Program("w2", "BACKOFF", 0, 0.0, ""))
    assert supervisor.programs()["w2"].pid == pid


def test_crashing_worker_is_given_up_reported_and_started_again(cell: Cell) -> None:
    crash, pid = cell.layout.run_dir / "w1.crash", cell.pid("w1")
    crash.touch()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: "start it" in str(cell.events("w1")), "started by the guard")
    meaning = "exit status 70 (model failed to load)"
    wait_until(lambda: cell.worker("w1")["last_exit"] == meaning, "reported")
    crash.unlink()
    cell.wait_replaced("w1", pid)
    wait_until(lambda: cell.worker("w1")["state"] == "ready", "ready")


def test_half_the_pool_falling_silent_together_is_not_killed(cell: Cell) -> None:
    pids = {name: cell.pid(name) for name in ("w2", "w3")}
    for pid in pids.values():
        os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: "mass_silence" in cell.alarms(), "alarmed")
    wait_until(lambda: cell.worker("w2")["state"] == "stuck", "due to be killed")
    assert {name: cell.pid(name) for name in pids} == pids
    for pid in pids.values():
        os.kill(pid, signal.SIGCONT)
    cell.wait_open("w2", "w3")
    assert {name: cell.pid(name) for name in pids} == pids


def test_last_open_worker_stays_in_while_it_is_merely_silent(cell: Cell) -> None:
    for name in ("w1", "w2"):
        cell.ask(name, "POST", "/fake/ready?no")
    wait_until(lambda: not (cell.is_open("w1") or cell.is_open("w2")), "closed")
    pid = cell.pid("w3")
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: cell.worker("w3")["state"] == "silent", "silent")
    assert cell.is_open("w3")
    cell.ask("w1", "POST", "/fake/ready?yes")
    wait_until(lambda: cell.is_open("w1") and not cell.is_open("w3"), "handed over")
    os.kill(pid, signal.SIGCONT)
    cell.ask("w2", "POST", "/fake/ready?yes")
    cell.wait_open(*WORKERS)


def _pids_of(*words: str) -> list[int]:
    found = []
    for entry in os.scandir("/proc"):
        with contextlib.suppress(OSError), open(f"/proc/{entry.name}/cmdline", "rb") as file:  # noqa: PTH123
            if set(words) <= set(file.read().decode().split("\0")):
                found.append(int(entry.name))
    return found


def test_gate_that_cannot_be_moved_costs_nobody_else(cell: Cell) -> None:
    """Neither the other gates, nor the guard: it goes on, and says so."""
    guard = guard_pid(cell)
    gate = cell.layout.gate("w1")
    gate.unlink()
    (gate / "in the way").mkdir(parents=True)
    wait_until(lambda: any("judging failed" in what for what in cell.events("w1")), "told")
    pid = cell.pid("w2")
    os.kill(pid, signal.SIGKILL)
    cell.wait_replaced("w2", pid)
    assert guard_pid(cell) == guard
    shutil.rmtree(gate)
    cell.wait_open("w1")


def guard_pid(cell: Cell) -> int:
    path = cell.layout.supervisor_socket
    return int(rpc.call(path, 5.0, "supervisor.getProcessInfo", "guard")["pid"])
