"""What the real guard tells Prometheus, over its socket."""

import os
import shutil
import signal
import time

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.deploy.guard.conftest import Cell
from tests.deploy.processes import wait_until


def samples(cell: Cell) -> dict[str, float]:
    transport = httpx.HTTPTransport(uds=str(cell.layout.guard_socket))
    with httpx.Client(transport=transport, base_url="http://guard") as client:
        reply = client.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=")
    found = {}
    for family in text_string_to_metric_families(reply.text):
        for sample in family.samples:
            labels = ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def test_pool_and_workers_are_told(cell: Cell) -> None:
    found = samples(cell)
    assert (found["zimage_pool_members"], found["zimage_pool_workers"]) == (3, 3)
    assert found["zimage_worker_in_pool{worker=w1}"] == 1
    assert found["zimage_worker_state{state=ready,worker=w1}"] == 1
    assert found["zimage_worker_state{state=dead,worker=w1}"] == 0
    assert found["zimage_worker_faults_total{kind=died,worker=w1}"] == 0
    assert found["zimage_worker_resident_memory_bytes{worker=w1}"] > 1 << 20
    assert 0 < found["zimage_disk_free_bytes"] < found["zimage_disk_size_bytes"]
    assert found["zimage_guard_lag_seconds_count"] > 0
    assert found["process_resident_memory_bytes"] > 1 << 20


def test_a_death_is_a_fault_an_ejection_and_a_restart(cell: Cell) -> None:
    before, pid = samples(cell), cell.pid("w2")
    os.kill(pid, signal.SIGKILL)
    cell.wait_replaced("w2", pid)
    wait_until(lambda: cell.worker("w2")["restarts"] > 0, "counted")
    after = samples(cell)
    for name in (
        "zimage_worker_faults_total{kind=died,worker=w2}",
        "zimage_pool_ejections_total{reason=gone,worker=w2}",
        "zimage_worker_restarts_total{worker=w2}",
    ):
        assert after[name] == before[name] + 1


def test_a_drained_worker_is_out_for_that_reason(cell: Cell) -> None:
    flag = cell.layout.drained_flag("w3")
    flag.touch()
    wait_until(lambda: cell.worker("w3")["state"] == "drained", "drained")
    found = samples(cell)
    flag.unlink()
    assert found["zimage_pool_ejections_total{reason=drained,worker=w3}"] == 1
    assert found["zimage_worker_drain_wanted{worker=w3}"] == 1
    assert found["zimage_pool_members"] == 2
    cell.wait_open("w3")


def test_alarms_are_there_while_they_are_on(cell: Cell) -> None:
    pids = [cell.pid(name) for name in ("w1", "w2")]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: "mass_silence" in cell.alarms(), "alarmed")
    found = samples(cell)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    assert found["zimage_alarm{alarm=mass_silence,worker=}"] == 1
    cell.wait_open("w1", "w2")


def test_history_is_kept_and_served_whole(cell: Cell) -> None:
    wait_until(cell.layout.history_json.exists, "written")
    wait_until(lambda: cell.history()["points"], "a first interval")
    assert set(cell.history()["lanes"]) == {"w1", "w2", "w3"}
    wait_until(lambda: cell.history()["lanes"]["w1"][-1][1] == "in", "in the pool")


def test_pictures_that_wait_for_their_store_are_told_with_their_age(cell: Cell) -> None:
    assert "zimage_spool_files" not in samples(cell)
    day = cell.layout.var_dir / "spool" / "pictures" / "2026-01-01"
    day.mkdir(parents=True)
    for name, age_s in (("img_a.png", 1000.0), ("img_b.png", 10.0)):
        (day / name).touch()
        os.utime(day / name, (time.time() - age_s,) * 2)
    found = samples(cell)
    shutil.rmtree(cell.layout.var_dir / "spool")
    assert found["zimage_spool_files"] == 2
    assert 1000 <= found["zimage_spool_oldest_seconds"] < 1100
