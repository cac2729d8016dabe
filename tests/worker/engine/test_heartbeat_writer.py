from pathlib import Path

import pytest

from tests.worker.engine.fakes import entry, spec
from worker.coordination.heartbeat import (
    Heartbeat,
    HeartbeatFile,
    Phase,
    Running,
    digest,
    read_heartbeat,
)
from worker.engine.heartbeat_writer import HeartbeatWriter
from worker.engine.limits import Limits
from worker.types import ChosenLoras

LIMITS = Limits(step_allowance_s=5.0, compile_allowance_s=600.0)


@pytest.fixture
def read(tmp_path: Path, heartbeat: HeartbeatFile) -> "Read":
    return Read(tmp_path / "w1.beat")


class Read:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self) -> Heartbeat:
        found = read_heartbeat(self.path)
        assert found
        return found


def test_a_call_names_the_requests_inside_it(heartbeat: HeartbeatFile, read: Read) -> None:
    one, other = entry("a", "b", fingerprint="f"), entry("c")
    HeartbeatWriter(heartbeat, LIMITS, compiles=False).enter(
        Phase.STEP, [*one.pictures, *other.pictures], 0.1
    )
    assert read().running[0] == Running(digest(one.request.id), digest("f"))
    assert len(read().running) == 2
    assert not read().alone


def test_one_request_with_several_pictures_is_alone(heartbeat: HeartbeatFile, read: Read) -> None:
    HeartbeatWriter(heartbeat, LIMITS, compiles=False).enter(
        Phase.STEP, entry("a", "b").pictures, 0.1
    )
    assert read().alone


def test_a_request_that_was_late_before_gets_more_time_and_the_heartbeat_says_so(
    heartbeat: HeartbeatFile, read: Read
) -> None:
    late = entry("a", exclusive=True, patience=4.0)
    HeartbeatWriter(heartbeat, LIMITS, compiles=False).enter(Phase.STEP, late.pictures, 20.0)
    assert (read().allowance_s, read().patient, read().struck) == (80.0, True, True)
    HeartbeatWriter(heartbeat, LIMITS, compiles=False).enter(Phase.STEP, entry("b").pictures, 20.0)
    assert (read().allowance_s, read().patient, read().struck) == (20.0, False, False)


def test_first_step_of_a_shape_may_compile_on_a_gpu(heartbeat: HeartbeatFile, read: Read) -> None:
    heartbeat_writer, pictures = (
        HeartbeatWriter(heartbeat, LIMITS, compiles=True),
        entry("a", "b").pictures,
    )
    shape = heartbeat_writer.enter(Phase.STEP, pictures, 0.1)
    assert (read().phase, read().allowance_s) == (Phase.COMPILE, 600.0)
    assert not heartbeat_writer.learn(shape)
    heartbeat_writer.enter(Phase.STEP, pictures, 0.1)
    assert read().phase is Phase.STEP
    heartbeat_writer.enter(Phase.STEP, pictures[:1], 0.1)
    assert read().phase is Phase.COMPILE


def test_first_step_with_adapters_may_compile_too(heartbeat: HeartbeatFile, read: Read) -> None:
    heartbeat_writer = HeartbeatWriter(heartbeat, LIMITS, compiles=True)
    plain = entry("a", "b").pictures
    heartbeat_writer.learn(heartbeat_writer.enter(Phase.STEP, plain, 0.1))
    (adapted,) = entry(specs=(spec(lora=ChosenLoras("ink*1@0")),)).pictures
    shape = heartbeat_writer.enter(Phase.STEP, [plain[0], adapted], 0.1)
    assert read().phase is Phase.COMPILE
    heartbeat_writer.learn(shape)
    heartbeat_writer.enter(Phase.STEP, [adapted, plain[0]], 0.1)
    assert read().phase is Phase.STEP


def test_nothing_compiles_on_a_cpu(heartbeat: HeartbeatFile, read: Read) -> None:
    heartbeat_writer = HeartbeatWriter(heartbeat, LIMITS, compiles=False)
    shape = heartbeat_writer.enter(Phase.STEP, entry("a").pictures, 0.1)
    assert read().phase is Phase.STEP
    assert heartbeat_writer.learn(shape)


def test_an_idle_worker_names_nobody(heartbeat: HeartbeatFile, read: Read) -> None:
    heartbeat_writer = HeartbeatWriter(heartbeat, LIMITS, compiles=False)
    heartbeat_writer.enter(Phase.STEP, entry("a").pictures, 0.1)
    heartbeat_writer.idle()
    assert (read().phase, read().running) == (Phase.IDLE, ())
