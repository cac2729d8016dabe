import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.worker.poisonous import ROUTE
from tests.worker.processes import WorkerProcess, wait_until, worker
from worker.api.routes.images import fingerprint_of
from worker.api.schemas import wire
from worker.coordination.heartbeat import (
    HeartbeatFile,
    Kill,
    KillCause,
    Phase,
    Running,
    digest,
    read_heartbeat,
    write_kill,
)
from worker.coordination.inflight import Handling, InFlight
from worker.coordination.poison_requests import PoisonRequests, _holds
from worker.models.synthetic import SyntheticPipeline
from worker.settings import Settings

TTL_S = 600.0


@pytest.fixture
def strikes(home: Path) -> PoisonRequests:
    (home / "run").mkdir()
    return PoisonRequests(home, home / "run", home / "pool", "w2", TTL_S)


def write_beat(
    home: Path,
    pid: int,
    phase: Phase,
    *,
    name: str = "w1",
    alone: bool = False,
    patient: bool = False,
) -> Path:
    """What process ``pid`` would have left while it drew request ``r`` (fingerprint ``f``)."""
    running, path = [Running(digest("r"), digest("f"))], home / "run" / f"{name}.beat"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "getpid", lambda: pid)
        HeartbeatFile(path).enter(phase, 60.0, running, alone=alone, patient=patient)
    return path


def killed(path: Path, cause: KillCause = "overdue", *, since: float | None = None) -> None:
    """As the guard would have: because of the phase in the heartbeat at ``path``."""
    heartbeat = read_heartbeat(path)
    assert heartbeat
    write_kill(path, Kill(heartbeat.pid, heartbeat.since if since is None else since, cause))


@pytest.fixture
def dead() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_replay_of_what_a_dead_worker_drew_is_struck(
    strikes: PoisonRequests, home: Path, dead: int
) -> None:
    write_beat(home, dead, Phase.STEP)
    assert strikes.arrive("r", "f").strikes == 1
    assert [p.name for p in home.glob("strikes/*/*")] == [f"w1-{dead}"]


def test_nobody_is_struck_where_all_workers_died_together(
    strikes: PoisonRequests, home: Path, dead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_beat(home, dead, Phase.STEP)
    write_beat(home, dead, Phase.STEP, name="w2")
    time.sleep(0.05)  # starts are known to a hundredth of a second
    with subprocess.Popen(["sleep", "60"]) as successor:
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: successor.pid)
            strikes.inherit()
        assert strikes.record("f").strikes == 0
        write_beat(home, os.getpid(), Phase.IDLE, name="w1")  # which has seen it die
        write_beat(home, dead, Phase.STEP, name="w2")
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: successor.pid)
            strikes.inherit()
        assert strikes.record("f").strikes == 1
        successor.kill()


def test_zombie_counts_as_dead(strikes: PoisonRequests, home: Path) -> None:
    process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    write_beat(home, process.pid, Phase.STEP)
    assert strikes.arrive("r", "f").strikes == 1
    process.wait()


def test_same_death_counts_once(strikes: PoisonRequests, home: Path, dead: int) -> None:
    write_beat(home, dead, Phase.STEP, alone=True)
    strikes.arrive("r", "f")
    PoisonRequests(home, home / "run", home / "pool", "w1", TTL_S).inherit()
    assert strikes.record("f").strikes == 1
    assert strikes.record("f").alone == 1


def test_living_worker_gives_no_strike(strikes: PoisonRequests, home: Path) -> None:
    write_beat(home, os.getpid(), Phase.STEP)
    assert strikes.arrive("r", "f").strikes == 0


def test_overdue_worker_gives_a_strike(strikes: PoisonRequests, home: Path) -> None:
    heartbeat = HeartbeatFile(home / "run" / "w1.beat")
    heartbeat.enter(Phase.STEP, -1.0, [Running(digest("r"), digest("f"))])
    assert strikes.arrive("r", "f").strikes == 1


def test_other_requests_and_other_phases_give_none(
    strikes: PoisonRequests, home: Path, dead: int
) -> None:
    write_beat(home, dead, Phase.STEP)
    assert strikes.arrive("another", "g").strikes == 0
    write_beat(home, dead, Phase.ENDED)
    assert strikes.arrive("r", "f").strikes == 0
    assert PoisonRequests(home, home / "run", home / "pool", "w1", TTL_S).inherit() == 0


def test_successor_strikes_what_its_predecessor_drew(home: Path, dead: int) -> None:
    (home / "run").mkdir()
    write_beat(home, dead, Phase.DECODE)
    successor = PoisonRequests(home, home / "run", home / "pool", "w1", TTL_S)
    assert successor.inherit() == 1
    assert successor.record("f").strikes == 1


def test_two_deaths_alone_refuse(strikes: PoisonRequests, home: Path, dead: int) -> None:
    write_beat(home, dead, Phase.STEP, name="w1", alone=True)
    assert not strikes.arrive("r", "f").refused
    write_beat(home, dead, Phase.STEP, name="w3", alone=True)
    record = strikes.arrive("r", "f")
    assert record.refused
    assert TTL_S - 60 < record.forgotten_in_s <= TTL_S


def test_deaths_in_company_never_refuse(strikes: PoisonRequests, home: Path, dead: int) -> None:
    for name in ("w1", "w3", "w4"):
        write_beat(home, dead, Phase.STEP, name=name)
    record = strikes.arrive("r", "f")
    assert (record.strikes, record.refused) == (3, False)


def test_a_deadline_grants_more_time_and_refuses_only_who_had_it(
    strikes: PoisonRequests, home: Path, dead: int
) -> None:
    killed(write_beat(home, dead, Phase.STEP, name="w1", alone=True))
    record = strikes.arrive("r", "f")
    assert (record.strikes, record.refused, record.patience) == (1, False, 4.0)
    # An equal request that came at the same time had no more time either.
    killed(write_beat(home, dead, Phase.STEP, name="w3", alone=True))
    assert not strikes.arrive("r", "f").refused
    killed(write_beat(home, dead, Phase.STEP, name="w4", alone=True, patient=True))
    record = strikes.arrive("r", "f")
    assert record.refused
    error = record.refusal("1792x1024 in 1 step")
    assert (error.code, error.param) == ("too_slow", "size")
    assert error.message.startswith("1792x1024 in 1 step took too long")
    assert "not over after 60 s" in error.message
    assert "timeouts.step_allowance_s" in error.message
    assert "prompt" not in error.message


def test_crashes_and_deadlines_are_told_apart(
    strikes: PoisonRequests, home: Path, dead: int
) -> None:
    killed(write_beat(home, dead, Phase.STEP, name="w1", alone=True))
    write_beat(home, dead, Phase.STEP, name="w3", alone=True)
    record = strikes.arrive("r", "f")
    assert (record.strikes, record.alone, record.crashes_alone) == (2, 2, 1)
    assert not record.refused


def test_witness_and_successor_tell_one_deadline_once(
    strikes: PoisonRequests, home: Path, dead: int
) -> None:
    killed(write_beat(home, dead, Phase.DECODE, alone=True, patient=True))
    strikes.arrive("r", "f")
    PoisonRequests(home, home / "run", home / "pool", "w1", TTL_S).inherit()
    assert [p.name for p in home.glob("strikes/*/*")] == [f"w1-{dead}-late60-patient-alone"]
    (home / "strikes" / digest("f").hex() / f"w1-{dead}-alone").touch()
    assert strikes.record("f").strikes == 1, "whoever took it for a crash meant the same death"


@pytest.mark.parametrize("cause", ["silent", "other"])
def test_a_kill_for_another_reason_strikes_nobody_in_the_step(
    strikes: PoisonRequests, home: Path, dead: int, cause: KillCause
) -> None:
    killed(write_beat(home, dead, Phase.STEP), cause)
    assert strikes.arrive("r", "f").strikes == 0


def test_who_came_after_the_overdue_call_is_not_struck(
    strikes: PoisonRequests, home: Path, dead: int
) -> None:
    killed(write_beat(home, dead, Phase.STEP), since=1.0)
    assert strikes.arrive("r", "f").strikes == 0
    assert PoisonRequests(home, home / "run", home / "pool", "w1", TTL_S).inherit() == 0


def test_the_kill_of_an_earlier_process_says_nothing(
    strikes: PoisonRequests, home: Path, dead: int
) -> None:
    write_kill(write_beat(home, dead, Phase.STEP), Kill(1, 1.0, "other"))
    record = strikes.arrive("r", "f")
    assert (record.strikes, record.late_s) == (1, 0)


def test_strikes_are_forgotten(strikes: PoisonRequests, home: Path, dead: int) -> None:
    write_beat(home, dead, Phase.STEP, alone=True)
    strikes.arrive("r", "f")
    for path in home.glob("strikes/*/*"):
        os.utime(path, (0, time.time() - TTL_S - 1))
    (home / "run" / "w1.beat").unlink()
    assert strikes.record("f").strikes == 0
    assert list(home.glob("strikes/*/*")) == []


def test_pool_tells_whether_another_worker_is_open(
    strikes: PoisonRequests, home: Path, dead: int
) -> None:
    pool = home / "pool"
    pool.mkdir()
    (pool / "w2.sock").symlink_to(home / "run" / "w2.sock")
    assert strikes.another_is_open(), "the only worker of its cell waits for nobody"
    (pool / "w1.sock").symlink_to(home / "run" / "closed.sock")
    assert not strikes.another_is_open()
    (pool / "w1.sock").unlink()
    (pool / "w1.sock").symlink_to(home / "run" / "w1.sock")
    write_beat(home, dead, Phase.IDLE)
    assert not strikes.another_is_open(), "the guard has not closed the gate of a dead one yet"
    write_beat(home, os.getpid(), Phase.IDLE)
    assert strikes.another_is_open()


def test_request_that_kills_two_workers_alone_is_refused_by_the_third(home: Path) -> None:
    request_id = "f" * 32
    with worker(home, "w1") as first, worker(home, "w2") as second, worker(home, "w3") as third:
        for each in (first, second, third):
            each.wait_ready()
        for victim in (first, second):
            with pytest.raises(httpx.TransportError):
                victim.draw("fault:exit", request_id)
            assert victim.wait() == 139
        refused = third.draw("fault:exit", request_id)
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "request_refused")
        assert "ended 2 workers" in refused.json()["error"]["message"]
        assert third.draw("fault:exit", "0" * 32).status_code == 422, "a fresh id changes nothing"
        assert third.draw("an innocent neighbour").status_code == 200


def test_struck_request_waits_until_its_victim_is_not_the_last(home: Path) -> None:
    (home / "pool").mkdir()
    (home / "pool" / "w1.sock").symlink_to(home / "run" / "w1.sock")
    (home / "pool" / "w2.sock").symlink_to(home / "run" / "closed.sock")
    generation = wire.parse(b'{"prompt": "a"}', Settings(), SyntheticPipeline().info)
    folder = home / "strikes" / digest(fingerprint_of("local", generation)).hex()
    folder.mkdir(parents=True)
    (folder / "w2-1-alone").touch()
    with worker(home) as last:
        last.wait_ready()
        with pytest.raises(httpx.ReadTimeout):
            last.client.post("/v1/images/generations", json={"prompt": "a"}, timeout=1.0)
        assert last.totals()["steps"] == 8, "more than the warm-up was drawn"
        (home / "pool" / "w2.sock").unlink()
        (home / "pool" / "w2.sock").symlink_to(home / "run" / "w2.sock")
        write_beat(home, os.getpid(), Phase.IDLE, name="w2")
        assert last.draw("a").status_code == 200


def test_a_request_is_found_in_heartbeats_that_come_and_go(
    strikes: PoisonRequests, home: Path
) -> None:
    assert strikes.surely_clean("r", time.time())
    write_beat(home, os.getpid(), Phase.STEP, name="w3")
    time.sleep(0.02)  # the folder is not looked at for every request
    assert not strikes.surely_clean("r", time.time())
    assert strikes.surely_clean("another", time.time())
    write_beat(home, os.getpid(), Phase.IDLE, name="w3")  # its successor's, in a file of its own
    (home / "run" / "w3.beat").write_bytes(b"")
    time.sleep(0.02)
    assert strikes.surely_clean("r", time.time())


def test_a_request_is_found_in_a_heartbeat_that_goes_on(
    strikes: PoisonRequests, home: Path
) -> None:
    heartbeat = HeartbeatFile(home / "run" / "w1.beat")
    time.sleep(0.2)  # so that the file is mapped once and for all
    assert strikes.surely_clean("r", time.time())
    heartbeat.enter(Phase.STEP, 60.0, [Running(digest("r"), digest("f"))])
    assert not strikes.surely_clean("r", time.time())
    heartbeat.enter(Phase.STEP, 60.0, [Running(digest("another"), digest("f"))])
    assert strikes.surely_clean("r", time.time())


def handle(
    home: Path, pid: int, phase: Phase, *handled: tuple[str, bool], **heartbeat: bool
) -> Path:
    """What process ``pid`` would have left while it drew request ``r`` and handled others (their
    name, and whether they were struck)."""
    path = home / "run" / "w1.beat"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "getpid", lambda: pid)
        writer = HeartbeatFile(path)
    table = InFlight(writer.mapped)
    for name, struck in handled:
        one = Handling(table, digest(name))
        one.call(digest(f"{name}'s"), struck=struck)
        one.resume()
    writer.enter(phase, 60.0, [Running(digest("r"), digest("f"))], **{"alone": True, **heartbeat})
    return path


def struck(strikes: PoisonRequests, *fingerprints: str) -> list[tuple[int, int]]:
    """Strikes, and those while alone, that each has once the dead worker's successor has come."""
    PoisonRequests(strikes._folder.parent, strikes._run_dir, strikes._pool, "w1", TTL_S).inherit()
    records = [strikes.record(fingerprint) for fingerprint in fingerprints]
    return [(record.strikes, record.alone) for record in records]


def test_who_was_handled_is_suspect_of_a_crash(
    strikes: PoisonRequests, home: Path, dead: int
) -> None:
    handle(home, dead, Phase.IDLE, ("post", False))
    assert strikes.arrive("post", "post's").alone == 1
    assert struck(strikes, "post's", "f") == [(1, 1), (0, 0)]


def test_in_company_nobody_is_held_to_be_alone(
    strikes: PoisonRequests, home: Path, dead: int
) -> None:
    handle(home, dead, Phase.STEP, ("post", False), ("other", False))
    assert struck(strikes, "f", "post's", "other's") == [(1, 0)] * 3


def test_who_was_suspect_before_is_the_only_one_now(
    strikes: PoisonRequests, home: Path, dead: int
) -> None:
    handle(home, dead, Phase.STEP, ("post", True), ("innocent", False))
    assert struck(strikes, "f", "post's", "innocent's") == [(0, 0), (1, 1), (0, 0)]


def test_a_struck_drawing_is_not_cleared_by_who_is_handled_beside_it(
    strikes: PoisonRequests, home: Path, dead: int
) -> None:
    handle(home, dead, Phase.STEP, ("innocent", False), struck=True)
    assert struck(strikes, "f", "innocent's") == [(1, 1), (0, 0)]


def test_an_event_loop_that_stood_still_is_held_against_who_was_handled(
    strikes: PoisonRequests, home: Path, dead: int
) -> None:
    killed(handle(home, dead, Phase.STEP, ("post", False)), "silent")
    assert struck(strikes, "f", "post's") == [(0, 0), (1, 1)]


def test_a_call_that_was_too_long_is_held_against_nobody_else(
    strikes: PoisonRequests, home: Path, dead: int
) -> None:
    killed(handle(home, dead, Phase.STEP, ("post", False)), "overdue")
    assert struck(strikes, "f", "post's") == [(1, 1), (0, 0)]


def post(worker: WorkerProcess, content: str, request_id: str) -> httpx.Response:
    headers = {"X-Request-ID": request_id}
    return worker.client.post(ROUTE, json=content, headers=headers)


def test_a_post_of_any_route_that_kills_two_workers_is_refused_and_its_neighbours_are_not(
    home: Path,
) -> None:
    model, module = "synthetic:step_ms=100", "tests.worker.poisonous"
    poison_id, drawing_id = "e" * 32, "d" * 32
    with ExitStack() as stack:
        pool = [
            stack.enter_context(worker(home, name, model=model, module=module))
            for name in ("w1", "w2", "w3", "w4")
        ]
        for each in pool:
            each.wait_ready()
        with ThreadPoolExecutor() as threads:
            # The first in company, so that it counts for neither; then two by itself.
            for victim in pool[:3]:
                drawing = threads.submit(victim.draw, "innocent", drawing_id, steps=30)
                # Whoever waits for his first step is in nobody's company.
                wait_until(lambda: victim.readiness()["running"] == 1)  # noqa: B023
                with pytest.raises(httpx.TransportError):
                    post(victim, "exit", poison_id)
                assert victim.wait() == 139
                with suppress(httpx.TransportError):
                    assert drawing.result().status_code == 200
        refused = post(pool[3], "exit", poison_id)
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "request_refused")
        assert "ended 2 workers" in refused.json()["error"]["message"]
        assert post(pool[3], "exit", "0" * 32).status_code == 422, "a fresh id changes nothing"
        assert post(pool[3], "fine", "1" * 32).status_code == 200
        assert pool[3].draw("innocent", drawing_id).status_code == 200


@given(
    table=st.lists(st.sampled_from([0, 0, 0, 1, 2]), max_size=60).map(bytes),
    request=st.lists(st.sampled_from([0, 1, 2]), min_size=1, max_size=4).map(bytes),
)
def test_a_request_is_found_in_a_table_wherever_it_stands(table: bytes, request: bytes) -> None:
    assert _holds(table, request) is (request in table)
