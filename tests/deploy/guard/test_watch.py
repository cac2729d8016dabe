import os
import struct
import time

from deploy.guard.settings import GuardSettings, WorkerSettings
from deploy.guard.supervisor import Program
from deploy.guard.watch import Watch
from deploy.layout import Layout
from worker.coordination.heartbeat import HeartbeatFile, Phase, read_heartbeat

W1 = WorkerSettings(name="w1")


def test_torn_heartbeat_is_no_missing_one(layout: Layout) -> None:
    settings = GuardSettings(var_dir=layout.var_dir, run_dir=layout.run_dir, workers=(W1,))
    watch = Watch(W1, settings, layout)
    HeartbeatFile(layout.heartbeat("w1"))
    program = Program("w1", "RUNNING", os.getpid(), 500.0, "")
    watch.look(program, time.monotonic())
    with layout.heartbeat("w1").open("r+b") as file:
        file.seek(8)
        file.write(struct.pack("<Q", 3))  # an odd sequence: a write that is not finished
    assert read_heartbeat(layout.heartbeat("w1")) is None
    seen = watch.look(program, time.monotonic())
    assert seen.heartbeat is not None
    assert seen.beatless_s == 0.0


def test_silence_is_measured_by_the_longest_call_in_it(layout: Layout) -> None:
    settings = GuardSettings(var_dir=layout.var_dir, run_dir=layout.run_dir, workers=(W1,))
    watch, heartbeat = Watch(W1, settings, layout), HeartbeatFile(layout.heartbeat("w1"))
    heartbeat.enter(Phase.DECODE, 60.0)
    watch.look(None, time.monotonic())
    heartbeat.enter(Phase.STEP, 5.0)
    assert watch.look(None, time.monotonic()).allowed_s == 60.0
