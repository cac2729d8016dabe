import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.worker.engine.conftest import Running
from tests.worker.engine.fakes import PATIENCE_S, GatedPipeline, Hook, WholePipeline, request, spec
from worker.coordination.heartbeat import HeartbeatFile, Phase, read_heartbeat
from worker.engine import Costs, Drawn, Engine, Limits, Queued, Ticket, announcements, oom_tracker
from worker.engine.forecast import forecast
from worker.engine.queue import Entry
from worker.errors import (
    DeadlinePassed,
    DrawingFailed,
    HandedBack,
    InvalidRequest,
    NotReady,
    Overloaded,
    Refused,
    Unavailable,
    WorkerFailed,
    ZimageError,
)
from worker.models.base import DevicePoisoned, OutOfMemory
from worker.models.synthetic import text_of

pytestmark = pytest.mark.anyio


def raiser(error: BaseException) -> Hook:
    def hook(prompts: list[str]) -> None:
        raise error

    return hook


async def texts(ticket: Ticket) -> list[str]:
    drawn = await asyncio.wait_for(ticket.result(), PATIENCE_S)
    return [text_of(each.pixels) for each in drawn]


async def answer(ticket: Ticket) -> ZimageError:
    with pytest.raises(ZimageError) as caught:
        await asyncio.wait_for(ticket.result(), PATIENCE_S)
    return caught.value


async def test_pictures_are_drawn_from_their_requests(running: Running) -> None:
    async with running(GatedPipeline()) as engine:
        one, other = engine.submit(request("a", "b")), engine.submit(request("c"))
        assert await texts(one) == ["a|7|4", "b|7|4"]
        assert await texts(other) == ["c|7|4"]


async def test_events_begin_with_the_position_and_end_with_the_picture(running: Running) -> None:
    async with running(GatedPipeline()) as engine:
        events = [event async for event in engine.submit(request("a")).events()]
    assert isinstance(events[0], Queued)
    assert isinstance(events[-1], Drawn)


async def test_batch_size_counts_the_pictures_of_a_shared_step(running: Running) -> None:
    pipeline = GatedPipeline(gated=True)
    async with running(pipeline) as engine:
        first = engine.submit(request("a"))
        await pipeline.next_step()
        second = engine.submit(request("b"))
        pipeline.open()
        sizes = [(await ticket.result())[0].batch_size for ticket in (first, second)]
    assert sizes == [2, 2]


async def test_cancelling_while_queued_leaves_at_once(running: Running) -> None:
    pipeline = GatedPipeline(gated=True)
    async with running(pipeline, max_batch=1) as engine:
        engine.submit(request("a"))
        await pipeline.next_step()
        waiting = engine.submit(request("b"))
        waiting.cancel()
        assert (await answer(waiting)).code == "cancelled"
        assert engine.state().queued == 0


async def test_cancelling_while_drawing_does_not_hurt_the_neighbour(running: Running) -> None:
    pipeline = GatedPipeline(gated=True)
    async with running(pipeline) as engine:
        one, other = engine.submit(request("a")), engine.submit(request("b"))
        while await pipeline.next_step() != ["a", "b"]:
            pipeline.permit()
        one.cancel()
        pipeline.permit()
        assert await pipeline.next_step() == ["b"]
        pipeline.open()
        assert await texts(other) == ["b|7|4"]


async def test_cancelling_again_or_afterwards_changes_nothing(running: Running) -> None:
    async with running(GatedPipeline()) as engine:
        done = engine.submit(request("a"))
        assert await texts(done) == ["a|7|4"]
        done.cancel()
        done.cancel()
        assert engine.state().totals["requests_cancelled"] == 0


async def test_cancelling_after_a_failure_keeps_the_failure(running: Running) -> None:
    pipeline = GatedPipeline()
    pipeline.hooks["step"] = raiser(RuntimeError())
    async with running(pipeline) as engine:
        failed = engine.submit(request("a"))
        assert isinstance(await answer(failed), DrawingFailed)
        failed.cancel()
        assert isinstance(await answer(failed), DrawingFailed)


async def test_whole_call_stops_at_the_step_in_which_its_last_waiter_left(
    running: Running,
) -> None:
    pipeline = WholePipeline(gated=True)
    async with running(pipeline) as engine:
        gone = engine.submit(request("a"))
        await pipeline.next_step()
        gone.cancel()
        pipeline.permit()
        kept = engine.submit(request("b"))
        assert await pipeline.next_step() == ["b"]
        pipeline.open()
        assert await texts(kept) == ["b|7|4"]


async def test_full_queue_refuses_with_a_time_to_come_again(running: Running) -> None:
    pipeline = GatedPipeline(gated=True)
    async with running(pipeline, max_batch=1, max_queued_requests=1) as engine:
        engine.submit(request("a"))
        await pipeline.next_step()
        engine.submit(request("b"))
        with pytest.raises(Overloaded) as caught:
            engine.submit(request("c"))
        assert 1.0 <= caught.value.retry_after_s <= 120.0


async def test_replay_is_taken_beyond_the_limit_and_keeps_its_place(running: Running) -> None:
    pipeline = GatedPipeline(gated=True)
    async with running(pipeline, max_batch=1, max_queued_requests=1) as engine:
        engine.submit(request("a"))
        await pipeline.next_step()
        engine.submit(request("b"))
        replay = engine.submit(request("replayed", arrived_at=time.time() - 5.0))
        assert isinstance(event := await anext(replay.events()), Queued)
        assert event.position == 0
        pipeline.permit()
        assert await pipeline.next_step() == ["replayed"]


async def drawing_slowly(heartbeat: HeartbeatFile, step_s: float) -> tuple[Engine, GatedPipeline]:
    """An engine that is said to need ``step_s`` a step, draws one picture, and takes nobody who
    would wait for more than a minute."""
    costs = Costs(max_batch=1)
    costs.record("step", (128, 128), 1, step_s)
    pipeline = GatedPipeline(gated=True)
    engine = Engine(pipeline, heartbeat, Limits(max_queue_wait_s=60.0), costs)
    engine.start()
    engine.submit(request("a"))
    await pipeline.next_step()
    return engine, pipeline


async def test_too_long_a_wait_is_refused(heartbeat: HeartbeatFile) -> None:
    engine, pipeline = await drawing_slowly(heartbeat, step_s=100.0)
    with pytest.raises(Overloaded, match="is over the limit of 60 s"):
        engine.submit(request("b"))
    pipeline.open()
    await engine.close()


async def test_hundreds_are_refused_with_a_few_forecasts(
    heartbeat: HeartbeatFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    forecasts = []

    def counted(*args: Any, **kwargs: Any) -> dict[Entry, Queued]:
        forecasts.append(args)
        return forecast(*args, **kwargs)

    monkeypatch.setattr(announcements, "forecast", counted)
    pipeline, costs = GatedPipeline(gated=True), Costs(1)
    costs.record("step", (128, 128), 1, 1.0)
    engine = Engine(pipeline, heartbeat, Limits(max_batch=1, max_queue_wait_s=20.0), costs)
    engine.start()
    waits_s = []
    for k in range(300):
        try:
            engine.submit(request(str(k)))
        except Overloaded as refused:
            waits_s.append(refused.retry_after_s)
    assert len(waits_s) > 290
    assert len(forecasts) < 40
    # Whoever comes later is told to come later, but for the jitter of a quarter.
    assert waits_s[10] > 1.25 * waits_s[0]
    assert waits_s[25] > 1.25 * waits_s[10]
    pipeline.open()
    await engine.close()


async def test_coming_early_gets_the_same_answer_and_costs_no_forecast(
    heartbeat: HeartbeatFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, pipeline = await drawing_slowly(heartbeat, step_s=10.0)
    engine.submit(request("b"))
    with pytest.raises(Overloaded) as refused:
        engine.submit(request("c", fingerprint="c"))
    monkeypatch.delattr(announcements, "forecast")
    for _ in range(3):
        with pytest.raises(Overloaded, match="when you were told to") as again:
            engine.submit(request("c", fingerprint="c"))
        assert again.value.retry_after_s == pytest.approx(refused.value.retry_after_s, abs=2.0)
    monkeypatch.undo()
    pipeline.open()
    await engine.close()


async def test_the_wait_that_is_told_of_a_full_queue_is_until_it_has_room(
    heartbeat: HeartbeatFile,
) -> None:
    """Though somebody new would be drawn next, if he had a place."""
    pipeline, costs = GatedPipeline(gated=True), Costs(1)
    costs.record("step", (128, 128), 1, 1.0)
    engine = Engine(pipeline, heartbeat, Limits(max_batch=1, max_queued_requests=2), costs)
    engine.start()
    engine.submit(request("begun", key="busy"))
    await pipeline.next_step()
    for k in range(2):
        engine.submit(request(str(k), key="busy"))

    def refused_for_s(k: int) -> float:
        with pytest.raises(Overloaded) as refused:
            engine.submit(request("x", key=f"another {k}", fingerprint=str(k)))
        return refused.value.retry_after_s

    refusals_s = [refused_for_s(k) for k in range(4)]
    wait_s = engine.state().predicted_wait_s
    assert wait_s > refusals_s[0] / 1.3  # jittered
    assert wait_s == pytest.approx(refused_for_s(4), rel=0.3)
    pipeline.open()
    await engine.close()


async def test_room_that_nobody_comes_for_keeps_nobody_out_of_an_idle_worker(
    heartbeat: HeartbeatFile,
) -> None:
    pipeline, costs = GatedPipeline(gated=True), Costs(1)
    costs.record("step", (128, 128), 1, 1.0)
    engine = Engine(pipeline, heartbeat, Limits(max_batch=1, max_queue_wait_s=20.0), costs)
    engine.start()
    admitted, refused = [], 0
    for k in range(100):
        try:
            admitted.append(engine.submit(request(str(k))))
        except Overloaded:
            refused += 1
    assert refused > 50
    for ticket in admitted:
        ticket.cancel()
    async with asyncio.timeout(PATIENCE_S):
        # At first all who were promised a place count; later those who are due, and soon nobody.
        while engine.state().predicted_wait_s >= 5.0:  # noqa: ASYNC110 — nothing tells it
            await asyncio.sleep(0.05)
    new = engine.submit(request("new"))
    pipeline.open()
    assert await texts(new) == ["new|7|4"]
    await engine.close()


async def test_draining_hands_back_what_has_not_begun_and_finishes_the_rest(
    running: Running,
) -> None:
    pipeline = GatedPipeline(gated=True)
    async with running(pipeline, max_batch=1) as engine:
        begun = engine.submit(request("a"))
        await pipeline.next_step()
        waiting, kept = engine.submit(request("b")), engine.submit(request("c"))
        kept.keep = True
        engine.drain()
        engine.drain()
        assert isinstance(await answer(waiting), HandedBack)
        with pytest.raises(HandedBack):
            engine.submit(request("d"))
        pipeline.open()
        await asyncio.wait_for(engine.drained(), PATIENCE_S)
        assert (await texts(begun), await texts(kept)) == (["a|7|4"], ["c|7|4"])


@pytest.mark.parametrize("another_came", [False, True])
async def test_who_is_told_to_finish_draws_what_waits_unless_another_comes(
    running: Running, another_came: bool
) -> None:
    pipeline = GatedPipeline(gated=True)
    async with running(pipeline, max_batch=1) as engine:
        begun = engine.submit(request("a"))
        await pipeline.next_step()
        waiting = engine.submit(request("b"))
        engine.drain(finish=True)
        with pytest.raises(HandedBack):
            engine.submit(request("c"))
        if another_came:
            engine.drain()
            assert isinstance(await answer(waiting), HandedBack)
        pipeline.open()
        assert await texts(begun) == ["a|7|4"]
        if not another_came:
            assert await texts(waiting) == ["b|7|4"]


async def test_undrained_engine_takes_work_again(running: Running) -> None:
    async with running(GatedPipeline()) as engine:
        engine.drain()
        await asyncio.wait_for(engine.drained(), PATIENCE_S)
        engine.undrain()
        assert await texts(engine.submit(request("a"))) == ["a|7|4"]


async def test_drained_waits_for_the_running_call(running: Running) -> None:
    pipeline = GatedPipeline(gated=True)
    async with running(pipeline) as engine:
        ticket = engine.submit(request("a"))
        await pipeline.next_step()
        ticket.cancel()
        drained = asyncio.create_task(engine.drained())
        await answer(ticket)
        assert not drained.done()
        pipeline.open()
        await asyncio.wait_for(drained, PATIENCE_S)


async def test_closing_answers_everybody_and_closes_the_pipeline(running: Running) -> None:
    pipeline = GatedPipeline(gated=True)
    async with running(pipeline, max_batch=1) as engine:
        begun = engine.submit(request("a"))
        await pipeline.next_step()
        waiting = engine.submit(request("b"))
        closing = asyncio.create_task(engine.close())
        assert isinstance(await answer(begun), Unavailable)
        assert isinstance(await answer(waiting), Unavailable)
        pipeline.open()
        await closing
    assert pipeline.closed
    with pytest.raises(HandedBack):
        engine.submit(request("c"))


async def test_closing_does_not_wait_for_ever_for_a_hung_call(running: Running) -> None:
    pipeline = GatedPipeline(gated=True)
    async with running(pipeline) as engine:
        hung = engine.submit(request("a"))
        await pipeline.next_step()
        await engine.close(timeout_s=0.0)
        assert isinstance(await answer(hung), Unavailable)


@pytest.mark.parametrize("error", [DevicePoisoned("dead"), SystemExit(1)])
async def test_fatal_error_answers_everybody_and_is_reported(
    running: Running, error: BaseException, tmp_path: Path
) -> None:
    pipeline, fatal = GatedPipeline(gated=True), asyncio.Queue[BaseException]()
    async with running(pipeline, max_batch=1) as engine:
        engine.on_fatal = fatal.put_nowait
        inside = engine.submit(request("a"))
        await pipeline.next_step()
        waiting = engine.submit(request("b"))
        pipeline.hooks["step"] = raiser(error)
        pipeline.open()
        assert type(await answer(inside)) is type(await answer(waiting)) is WorkerFailed
        assert await asyncio.wait_for(fatal.get(), PATIENCE_S) is error
        assert engine.state().broken
        assert not engine.state().ready
        with pytest.raises(NotReady):
            engine.submit(request("c"))
        await asyncio.wait_for(engine.drained(), PATIENCE_S)
    heartbeat = read_heartbeat(tmp_path / "w1.beat")
    assert heartbeat
    assert (heartbeat.phase, len(heartbeat.running), heartbeat.alone) == (Phase.STEP, 1, True)


async def test_shape_that_never_fits_is_refused_at_once(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oom_tracker, "DOUBT_S", 0.0)
    pipeline = GatedPipeline()
    pipeline.hooks["step"] = raiser(OutOfMemory())
    async with running(pipeline) as engine:
        assert type(await answer(engine.submit(request("a")))) is WorkerFailed
        assert isinstance(await answer(engine.submit(request("a"))), Refused)
        with pytest.raises(Refused, match="128x128 does not fit this device"):
            engine.submit(request("b"))
        assert engine.state().refused_sizes == ("128x128",)


async def test_senseless_requests_are_refused_before_they_queue(running: Running) -> None:
    async with running(GatedPipeline()) as engine:
        with pytest.raises(InvalidRequest):
            engine.submit(request())
        with pytest.raises(DeadlinePassed):
            engine.submit(request("a", deadline=time.time() - 1.0))


async def test_engine_that_was_not_started_takes_nothing(heartbeat: HeartbeatFile) -> None:
    engine = Engine(GatedPipeline(), heartbeat, Limits())
    with pytest.raises(NotReady):
        engine.submit(request("a"))
    assert not engine.state().ready


async def test_call_beyond_its_allowance_is_reported_as_stuck(running: Running) -> None:
    pipeline = GatedPipeline(gated=True)
    async with running(pipeline, step_allowance_s=0.0, compile_allowance_s=0.0) as engine:
        engine.submit(request("a"))
        await pipeline.next_step()
        state = engine.state()
        assert state.stuck
        assert (state.phase, state.ready) == (Phase.STEP, False)


async def test_state_counts_what_waits_and_what_runs(running: Running) -> None:
    pipeline = GatedPipeline(gated=True)
    async with running(pipeline, max_batch=2) as engine:
        engine.submit(request("a", "b"))
        await pipeline.next_step()
        engine.submit(request("c"))
        state = engine.state()
        assert (state.running, state.queued, state.batch) == (1, 1, 2)
        assert state.predicted_wait_s > 0


async def test_measured_costs_can_be_saved(running: Running) -> None:
    async with running(GatedPipeline()) as engine:
        await texts(engine.submit(request(specs=(spec("a", width=256),))))
        assert "1" in Costs.load(engine.costs()).dump()["step"]["256x128"]


class SpareWork:
    """Three pieces, each of which the test lets begin; ``fails``: the second one raises."""

    def __init__(self, *, fails: bool = False) -> None:
        self.fails = fails
        self.begun = 0
        self.may_begin = threading.Semaphore(0)

    def pieces(self) -> Iterator[int]:
        for number in range(1, 4):
            assert self.may_begin.acquire(timeout=PATIENCE_S)
            self.begun = number
            if self.fails and number == 2:
                raise ValueError("not now")
            yield number


@pytest.fixture
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.engine.engine._SPARE_AFTER_S", 0.0)


@pytest.mark.usefixtures("_at_once")
async def test_who_comes_in_spare_time_waits_for_one_piece_of_its_work(running: Running) -> None:
    spare = SpareWork()
    async with running(GatedPipeline(), spare=spare.pieces()) as engine:
        ticket = engine.submit(request("a"))
        spare.may_begin.release()  # of the piece that waits, if one does
        assert await texts(ticket) == ["a|7|4"]
        assert spare.begun <= 1
        spare.may_begin.release(3)


@pytest.mark.usefixtures("_at_once")
async def test_spare_work_that_fails_harms_nobody(running: Running) -> None:
    spare = SpareWork(fails=True)
    spare.may_begin.release(3)
    async with running(GatedPipeline(), spare=spare.pieces()) as engine:
        assert await texts(engine.submit(request("a"))) == ["a|7|4"]
        await asyncio.wait_for(engine.drained(), PATIENCE_S)
        assert await texts(engine.submit(request("b"))) == ["b|7|4"]
        assert engine.trouble() is None
    assert spare.begun <= 2


async def test_work_for_nobody_waits_until_nothing_was_drawn_for_a_while(running: Running) -> None:
    spare = SpareWork()
    spare.may_begin.release(3)
    async with running(GatedPipeline(), spare=spare.pieces()) as engine:
        assert await texts(engine.submit(request("a"))) == ["a|7|4"]
        await asyncio.wait_for(engine.drained(), PATIENCE_S)
    assert spare.begun == 0
