import gc
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.worker.engine.fakes import (
    GatedPipeline,
    Recorder,
    Untimed,
    WholePipeline,
    entry,
    recorder,
    spec,
)
from worker.coordination.heartbeat import HeartbeatFile, Phase, read_heartbeat
from worker.engine.allowance import Allowances
from worker.engine.driver import Driver
from worker.engine.forecast_bias import ForecastBias
from worker.engine.heartbeat_writer import HeartbeatWriter
from worker.engine.limits import Limits
from worker.engine.oom_tracker import Verdict
from worker.engine.queue import Entry, Queue
from worker.engine.request import Event, Partial, Priority, Queued, Stepped
from worker.engine.scheduler import Scheduler
from worker.errors import DeadlinePassed, DrawingFailed, Refused, Unavailable, ZimageError
from worker.models.base import DevicePoisoned, OutOfMemory, Sample
from worker.types import Pixels

MakeDriver = Callable[..., Driver]


@pytest.fixture
def make(heartbeat: HeartbeatFile) -> MakeDriver:
    def make(pipeline: GatedPipeline, *entries: Entry, max_batch: int = 4) -> Driver:
        costs = Untimed(max_batch)
        heartbeat_writer = HeartbeatWriter(heartbeat, Limits(), compiles=False)
        allowances = Allowances(Limits(), costs, stepwise=pipeline.info.stepwise)
        driver = Driver(pipeline, heartbeat_writer, Queue(100), costs, Scheduler(costs), allowances)
        driver.announcements.interval_s = 0.0
        for each in entries:
            driver.queue.add(each)
        return driver

    return make


def run(driver: Driver) -> None:
    for _ in range(1000):
        if not driver.tick():
            return
    raise AssertionError("still drawing after 1000 steps")


def raiser(bad: str, error: Exception) -> Callable[[list[str]], None]:
    def hook(prompts: list[str]) -> None:
        if bad in prompts:
            raise error

    return hook


def test_every_picture_is_drawn_from_its_own_prompt_and_seed(make: MakeDriver) -> None:
    one = entry(specs=(spec("a", seed=1), spec("b", seed=2)))
    other = entry(specs=(spec("c", seed=3, steps=2),))
    run(make(GatedPipeline(), one, other))
    assert recorder(one).texts == ["a|1|4", "b|2|4"]
    assert recorder(other).texts == ["c|3|2"]


def test_a_full_batch_shares_its_steps(make: MakeDriver) -> None:
    pipeline = GatedPipeline()
    run(make(pipeline, *[entry("a") for _ in range(4)]))
    assert pipeline.prompts("step") == [["a"] * 4] * 4


def test_overflow_of_a_batch_is_drawn_afterwards(make: MakeDriver) -> None:
    pipeline = GatedPipeline()
    run(make(pipeline, entry("a"), entry("b"), entry("c"), max_batch=2))
    assert pipeline.prompts("step") == [["a", "b"]] * 4 + [["c"]] * 4


def test_a_newcomer_joins_at_the_next_step(make: MakeDriver) -> None:
    pipeline = GatedPipeline()
    driver = make(pipeline, entry("a"))
    driver.tick()
    driver.queue.add(entry("b"))
    run(driver)
    assert pipeline.prompts("step") == [["a"], ["a", "b"], ["a", "b"], ["a", "b"], ["b"]]


def test_interactive_request_goes_ahead_of_batch_work_within_a_step(make: MakeDriver) -> None:
    pipeline = GatedPipeline()
    driver = make(pipeline, entry("batch", priority=Priority.BATCH), max_batch=1)
    driver.tick()
    driver.queue.add(entry("now"))
    run(driver)
    assert pipeline.prompts("step") == [["batch"], *[["now"]] * 4, *[["batch"]] * 3]


def test_another_size_waits_until_the_older_is_drawn(make: MakeDriver) -> None:
    pipeline = GatedPipeline()
    run(make(pipeline, entry("a"), entry(specs=(spec("b", width=256),))))
    assert pipeline.prompts("step") == [["a"]] * 4 + [["b"]] * 4


def test_nothing_of_an_answer_waits_for_the_garbage_collector(make: MakeDriver) -> None:
    def entries() -> int:
        there = (each for each in gc.get_objects() if type(each) is Entry)
        return sum(each.request.specs[0].prompt.startswith("fleeting") for each in there)

    driver = make(GatedPipeline(), entry("fleeting 1"), entry("fleeting 2"))
    gc.collect()
    gc.disable()
    try:
        assert entries() == 2
        run(driver)
        assert entries() == 0
    finally:
        gc.enable()


def test_cancelled_request_leaves_within_one_step(make: MakeDriver) -> None:
    pipeline, one, other = GatedPipeline(), entry("a"), entry("b")
    driver = make(pipeline, one, other)
    driver.tick()
    (left,) = one.pictures
    driver.settle(one, ZimageError("cancelled"))
    run(driver)
    assert pipeline.prompts("step") == [["a", "b"], ["b"], ["b"], ["b"]]
    assert left.sample is None


def test_deadline_is_kept_in_the_queue_and_within_a_step(make: MakeDriver) -> None:
    late = entry("a", deadline=time.time() - 1.0)
    pipeline = GatedPipeline()
    run(make(pipeline, late, entry("b")))
    assert isinstance(recorder(late).errors[0], DeadlinePassed)
    assert pipeline.prompts("start") == [["b"]]


@pytest.mark.parametrize("call", ["start", "step", "finish"])
def test_one_bad_picture_fails_only_its_request(make: MakeDriver, call: str) -> None:
    pipeline, good, bad = GatedPipeline(), entry("good"), entry("fine", "bad")
    pipeline.hooks[call] = raiser("bad", RuntimeError("boom"))
    run(make(pipeline, good, bad))
    assert recorder(good).texts == ["good|7|4"]
    assert [type(error) for error in recorder(bad).errors] == [DrawingFailed]


def test_worker_that_fails_what_it_drew_before_is_recycled(make: MakeDriver) -> None:
    """As when a library has broken inside the process: every decoding fails from then on."""
    pipeline = GatedPipeline()
    driver = make(pipeline, entry("good"))
    run(driver)

    def broken(prompts: list[str]) -> None:
        raise RuntimeError("could not create a primitive")

    pipeline.hooks["finish"] = broken
    victims = [entry(name) for name in ("a", "b", "c")]
    for each in victims:
        driver.queue.add(each)
    with pytest.raises(DevicePoisoned, match="what was drawn before"):
        run(driver)
    assert [type(recorder(each).errors[0]) for each in victims] == [DrawingFailed] * 3


def test_requests_that_fail_by_their_own_fault_recycle_no_worker(make: MakeDriver) -> None:
    pipeline, good = GatedPipeline(), entry("good")
    driver = make(pipeline, good)
    run(driver)
    pipeline.hooks["step"] = raiser("bad", RuntimeError("boom"))
    for _ in range(20):
        driver.queue.add(entry("bad"))
        run(driver)
    driver.queue.add(last := entry("fine"))
    run(driver)
    assert recorder(last).texts == ["fine|7|4"]
    drawn = pipeline.prompts("finish").count(["good"])
    assert 4 <= drawn <= 8  # once for the user, then to see whose fault it is


def test_a_value_error_is_the_requests_own_fault(make: MakeDriver) -> None:
    pipeline, bad = GatedPipeline(), entry("bad")
    pipeline.hooks["start"] = raiser("bad", ValueError("prompt: too long"))
    run(make(pipeline, bad))
    assert [error.message for error in recorder(bad).errors] == ["prompt: too long"]
    assert isinstance(recorder(bad).errors[0], Refused)


def test_a_pipeline_that_loses_a_sample_fails_its_requests(make: MakeDriver) -> None:
    pipeline, one = GatedPipeline(), entry("a")
    pipeline.start = lambda specs: []  # type: ignore[method-assign]
    run(make(pipeline, one))
    assert isinstance(recorder(one).errors[0], DrawingFailed)


def test_a_step_that_does_not_advance_is_not_repeated_for_ever(make: MakeDriver) -> None:
    pipeline, one = GatedPipeline(), entry("a")
    pipeline.step = lambda samples, on_inner_step: None  # type: ignore[method-assign]
    run(make(pipeline, one))
    assert isinstance(recorder(one).errors[0], DrawingFailed)


@pytest.mark.parametrize("call", ["start", "step", "finish"])
def test_too_large_a_batch_is_halved_and_drawn(make: MakeDriver, call: str) -> None:
    def hook(prompts: list[str]) -> None:
        if len(prompts) > 2:
            raise OutOfMemory

    pipeline, entries = GatedPipeline(), [entry("a") for _ in range(4)]
    pipeline.hooks[call] = hook
    driver = make(pipeline, *entries)
    run(driver)
    assert [recorder(each).texts for each in entries] == [["a|7|4"]] * 4
    assert driver.costs.batch_cap((128, 128)) == 2


def test_a_picture_that_does_not_fit_alone_is_sent_on_and_its_shape_remembered(
    make: MakeDriver,
) -> None:
    pipeline, large, small = GatedPipeline(), entry(specs=(spec("L", width=512),)), entry("S")
    pipeline.hooks["step"] = raiser("L", OutOfMemory())
    driver = make(pipeline, large, small)
    run(driver)
    assert isinstance(recorder(large).errors[0], Unavailable)
    closed = driver.oom.closed_to(((512, 128), 1))
    assert closed
    assert closed.verdict is Verdict.DOUBTED
    assert recorder(small).texts == ["S|7|4"]


def test_memory_lost_for_a_shape_that_was_drawn_before_recycles_the_worker(
    make: MakeDriver,
) -> None:
    pipeline = GatedPipeline()
    driver = make(pipeline, entry("good"))
    run(driver)
    pipeline.hooks["step"] = raiser("bad", OutOfMemory())
    for _ in range(3):
        driver.queue.add(entry("bad"))
    with pytest.raises(DevicePoisoned):
        run(driver)
    assert driver.oom.closed_to(((128, 128), 1)) is None


def test_one_culprit_out_of_memory_does_not_shrink_the_batches_of_others(make: MakeDriver) -> None:
    pipeline = GatedPipeline()
    driver = make(pipeline, entry("good"))
    run(driver)
    pipeline.hooks["step"] = raiser("bad", OutOfMemory())
    for prompt in ("x", "y", "bad", "z"):
        driver.queue.add(entry(prompt))
    run(driver)
    assert driver.costs.batch_cap((128, 128)) == 4


def test_a_retry_holds_no_exception(make: MakeDriver) -> None:
    held: list[object] = []
    pipeline = GatedPipeline()

    def hook(prompts: list[str]) -> None:
        held.append(sys.exception())
        if len(prompts) > 1:
            raise OutOfMemory

    pipeline.hooks["step"] = hook
    run(make(pipeline, entry("a"), entry("b")))
    assert held[:3] == [None, None, None]


def test_a_poisoned_device_ends_the_driver(make: MakeDriver, tmp_path: Path) -> None:
    pipeline = GatedPipeline()
    pipeline.hooks["step"] = raiser("a", DevicePoisoned())
    driver = make(pipeline, entry("a"), entry("b"))
    with pytest.raises(DevicePoisoned):
        run(driver)
    heartbeat = read_heartbeat(tmp_path / "w1.beat")
    assert heartbeat
    assert (heartbeat.phase, len(heartbeat.running)) == (Phase.STEP, 2)


def test_exclusive_requests_share_no_call(make: MakeDriver) -> None:
    pipeline = GatedPipeline()
    run(make(pipeline, entry("a"), entry("struck", exclusive=True), entry("b")))
    assert all(prompts == ["struck"] for _, prompts in pipeline.calls if "struck" in prompts)
    assert ["a", "b"] in pipeline.prompts("step")


def test_heartbeat_says_who_is_inside_and_whether_alone(make: MakeDriver, tmp_path: Path) -> None:
    seen: list[tuple[Phase, int, bool]] = []

    def hook(prompts: list[str]) -> None:
        heartbeat = read_heartbeat(tmp_path / "w1.beat")
        assert heartbeat
        seen.append((heartbeat.phase, len(heartbeat.running), heartbeat.alone))

    pipeline = GatedPipeline()
    pipeline.hooks = dict.fromkeys(("start", "step", "finish"), hook)
    run(make(pipeline, entry(specs=(spec("a", steps=1), spec("b", steps=1)))))
    run(make(pipeline, entry("c"), entry("d", exclusive=True)))
    assert {(Phase.ENCODE, 1, True), (Phase.STEP, 1, True), (Phase.DECODE, 1, True)} == set(seen)


def test_every_step_is_told(make: MakeDriver) -> None:
    one = entry("a")
    run(make(GatedPipeline(), one))
    steps = [event for event in recorder(one).events if isinstance(event, Stepped)]
    assert [(event.step, event.steps) for event in steps] == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_positions_are_told_when_they_change(make: MakeDriver) -> None:
    waiting = [entry("a"), entry("b"), entry("c")]
    run(make(GatedPipeline(), *waiting, max_batch=1))
    events = [event for event in recorder(waiting[2]).events if isinstance(event, Queued)]
    assert events[0].position == 2
    assert sorted({event.position for event in events}) == [0, 1, 2]


def test_waits_are_told_as_they_became_lately(make: MakeDriver) -> None:
    waiting = entry("a")
    driver = make(GatedPipeline(), waiting)
    for _ in range(200):
        driver.announcements.bias.learn(2.0, 2.2)
    driver.announcements.tell(waiting, Queued(3, 10.0))
    assert recorder(waiting).events == [Queued(3, 11.0)]


def test_a_request_that_begins_teaches_how_well_that_was_foreseen_once(make: MakeDriver) -> None:
    late = entry("a", "b", "c")
    driver = make(GatedPipeline(), late, max_batch=1)
    late.foreseen = time.monotonic() - 4.0, 2.0
    run(driver)
    taught = ForecastBias()
    taught.learn(2.0, 4.0)
    assert driver.announcements.bias.factor == pytest.approx(taught.factor, abs=0.005)


@pytest.mark.parametrize(
    ("wanted", "steps", "after"), [(0, 4, []), (1, 4, [2]), (3, 8, [2, 4, 6]), (9, 3, [1, 2])]
)
def test_previews_are_evenly_spaced(
    make: MakeDriver, wanted: int, steps: int, after: list[int]
) -> None:
    one = entry(specs=(spec("a", steps=steps),), partial_images=wanted)
    run(make(GatedPipeline(), one))
    step, previewed = 0, []
    for event in recorder(one).events:
        step = event.step if isinstance(event, Stepped) else step
        if isinstance(event, Partial):
            previewed.append(step)
    assert previewed == after


def test_a_failing_preview_does_not_hurt_the_picture(make: MakeDriver) -> None:
    pipeline, one = GatedPipeline(), entry("a", partial_images=2)
    pipeline.preview = lambda sample: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    run(make(pipeline, one))
    assert recorder(one).texts == ["a|7|4"]


def test_whole_calls_tell_their_inner_steps(make: MakeDriver) -> None:
    one = entry("a", partial_images=1)
    run(make(WholePipeline(), one))
    steps = [event.step for event in recorder(one).events if isinstance(event, Stepped)]
    assert steps == [1, 2, 3, 4]
    assert recorder(one).texts == ["a|7|4"]


def test_whole_call_stops_when_nobody_waits_for_it(make: MakeDriver) -> None:
    pipeline, one = WholePipeline(), entry("a")
    driver = make(pipeline, one)

    class Leaver(Recorder):
        def post(self, event: Event) -> None:
            super().post(event)
            if isinstance(event, Stepped):
                driver.settle(one, ZimageError("cancelled"))

    one.waiter = leaver = Leaver()
    run(driver)
    assert [event for event in leaver.events if isinstance(event, Stepped)][1:] == []
    assert [name for name, _ in pipeline.calls] == ["start", "step"]


def test_steps_are_measured(make: MakeDriver) -> None:
    driver = make(GatedPipeline(), entry("a", "b"))
    run(driver)
    assert "2" in driver.costs.dump()["step"]["128x128"]
    assert driver.totals.steps == 4
    assert driver.totals.requests_done == 1


def test_time_inside_the_pipeline_is_told_from_time_beside_it(make: MakeDriver) -> None:
    pipeline = GatedPipeline()
    pipeline.options["step_ms"] = 20.0
    driver = make(pipeline, entry("a"))
    run(driver)
    assert 0.08 <= driver.totals.device_s <= driver.totals.busy_s


def test_a_preview_has_an_allowance_of_its_own_and_is_one_requests(
    make: MakeDriver, tmp_path: Path
) -> None:
    seen: list[tuple[Phase, float, int]] = []

    class Looking(GatedPipeline):
        def preview(self, sample: Sample) -> Pixels | None:
            heartbeat = read_heartbeat(tmp_path / "w1.beat")
            assert heartbeat
            seen.append((heartbeat.phase, heartbeat.allowance_s, len(heartbeat.running)))
            return super().preview(sample)

    driver = make(Looking(), entry("a", partial_images=1), entry("b"))
    driver.costs.record("decode", (128, 128), 1, 3.0)
    run(driver)
    assert seen == [(Phase.DECODE, 30.0, 1)]


def test_a_struck_picture_waits_while_another_suspect_is_handled(
    make: MakeDriver, tmp_path: Path
) -> None:
    pipeline, one = GatedPipeline(), entry("struck", exclusive=True)
    driver = make(pipeline, one)
    driver.apart.acquire()
    drawing = threading.Thread(target=run, args=(driver,))
    drawing.start()
    drawing.join(0.1)
    heartbeat = read_heartbeat(tmp_path / "w1.beat")
    assert heartbeat
    # Whatever ends the worker now, it is not this picture.
    assert (pipeline.calls, heartbeat.running) == ([], ())
    driver.apart.release()
    drawing.join(20)
    assert recorder(one).texts == ["struck|7|4"]
