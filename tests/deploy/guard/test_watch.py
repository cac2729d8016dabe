import os
import struct
import time

from deploy.guard.settings import GuardSettings, WorkerSettings
from deploy.guard.supervisor import Program
from deploy.guard.watch import Watch
from deploy.layout import Layout
from worker.coordination.beat import BeatWriter, Phase, read_beat

W1 = WorkerSettings(name="w1")


def test_torn_heartbeat_is_no_missing_one(layout: Layout) -> None:
    settings = GuardSettings(var_dir=layout.var_dir, run_dir=layout.run_dir, workers=(W1,))
    watch = Watch(W1, settings, layout)
    BeatWriter(layout.beat("w1"))
    program = Program("w1", "RUNNING", os.getpid(), 500.0, "")
    watch.look(program, time.monotonic())
    with layout.beat("w1").open("r+b") as file:
        file.seek(8)
        file.write(struct.pack("<Q", 3))  # an odd sequence: a write that is not finished
    assert read_beat(layout.beat("w1")) is None
    seen = watch.look(program, time.monotonic())
    assert seen.beat is not None
    assert seen.beatless_s == 0.0


def test_silence_is_measured_by_the_longest_call_in_it(layout: Layout) -> None:
    settings = GuardSettings(var_dir=layout.var_dir, run_dir=layout.run_dir, workers=(W1,))
    watch, beat = Watch(W1, settings, layout), BeatWriter(layout.beat("w1"))
    beat.enter(Phase.DECODE, 60.0)
    watch.look(None, time.monotonic())
    beat.enter(Phase.STEP, 5.0)
    assert watch.look(None, time.monotonic()).allowed_s == 60.0
