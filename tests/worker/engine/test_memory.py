"""Out of memory as torch raises it, through the translation that every pipeline uses."""

import asyncio
from collections.abc import Sequence

import pytest
import torch

from tests.worker.engine.conftest import Running
from tests.worker.engine.fakes import PATIENCE_S, GatedPipeline, request, spec
from worker.coordination.heartbeat import HeartbeatFile
from worker.engine import Costs, Engine, Limits, Ticket, oom_tracker
from worker.errors import Refused, Unavailable, WorkerFailed
from worker.models.base import OnInnerStep, Sample
from worker.models.faults import translate
from worker.models.synthetic import text_of

pytestmark = pytest.mark.anyio


class SmallDevice(GatedPipeline):
    """Holds ``room`` pixels at a time."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.oom = room

    @translate
    def step(self, samples: Sequence[Sample], on_inner_step: OnInnerStep) -> None:
        if sum(s.spec.parameters.width * s.spec.parameters.height for s in samples) > self.oom:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        super().step(samples, on_inner_step)


async def texts(ticket: Ticket) -> list[str]:
    drawn = await asyncio.wait_for(ticket.result(), PATIENCE_S)
    return [text_of(each.pixels) for each in drawn]


async def test_a_batch_that_does_not_fit_is_split_and_drawn(running: Running) -> None:
    async with running(SmallDevice(room=2 * 128 * 128)) as engine:
        assert await texts(engine.submit(request(*"abcd"))) == [f"{p}|7|4" for p in "abcd"]
        assert engine.state().totals["out_of_memory"] > 0
        assert await texts(engine.submit(request("e"))) == ["e|7|4"]


async def test_a_size_that_finds_no_room_is_sent_on_and_not_tried_for_a_while(
    running: Running,
) -> None:
    pipeline = SmallDevice(room=128 * 128)
    async with running(pipeline) as engine:
        large, small = request(specs=(spec("L", width=256),)), request("s")
        tickets = engine.submit(large), engine.submit(small)
        with pytest.raises(WorkerFailed, match="run out of memory"):
            await texts(tickets[0])
        assert await texts(tickets[1]) == ["s|7|4"]
        pipeline.oom = 256 * 128
        with pytest.raises(Unavailable, match="256x128 found no room in this worker") as raised:
            engine.submit(request(specs=(spec("L", width=256),)))
        assert 25 < raised.value.retry_after_s <= 30
        assert engine.state().refused_sizes == ()


async def test_memory_that_was_gone_for_a_while_refuses_nobody(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oom_tracker, "DOUBT_S", 0.0)
    pipeline = SmallDevice(room=128 * 128)
    async with running(pipeline) as engine:
        with pytest.raises(Unavailable):
            await texts(engine.submit(request(specs=(spec("L", width=256),))))
        pipeline.oom = 256 * 128
        assert await texts(engine.submit(request(specs=(spec("L", width=256),)))) == ["L|7|4"]


async def test_a_size_that_finds_no_room_twice_is_refused_from_then_on(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oom_tracker, "DOUBT_S", 0.0)
    async with running(SmallDevice(room=128 * 128)) as engine:
        with pytest.raises(Unavailable):
            await texts(engine.submit(request(specs=(spec("L", width=256),))))
        with pytest.raises(Refused, match="no room for a picture of this size"):
            await texts(engine.submit(request(specs=(spec("L", width=256),))))
        with pytest.raises(Refused, match="256x128 does not fit"):
            engine.submit(request(specs=(spec("L", width=256),)))
        assert engine.state().refused_sizes == ("256x128",)


async def test_memory_that_went_elsewhere_recycles_the_worker(running: Running) -> None:
    pipeline, fatal = SmallDevice(room=128 * 128), asyncio.Queue[BaseException]()
    async with running(pipeline) as engine:
        engine.on_fatal = fatal.put_nowait
        assert await texts(engine.submit(request("a"))) == ["a|7|4"]
        pipeline.oom = 0
        for _ in range(3):  # not the request's fault: another worker shall draw it
            with pytest.raises(Unavailable):
                await texts(engine.submit(request("b")))
        assert await asyncio.wait_for(fatal.get(), PATIENCE_S)


async def test_what_is_predicted_not_to_fit_is_refused_before_it_is_tried(
    heartbeat: HeartbeatFile,
) -> None:
    pipeline, costs = SmallDevice(room=1 << 30), Costs(4, memory_limit=100)
    costs.record_peak((128, 128), 1, peak=60, resident=20)
    engine = Engine(pipeline, heartbeat, Limits(), costs)
    engine.start()
    with pytest.raises(Refused, match="256x256 does not fit"):
        engine.submit(request(specs=(spec("L", width=256, height=256),)))
    assert await texts(engine.submit(request("a"))) == ["a|7|4"]
    await engine.close()
    assert pipeline.prompts("start") == [["a"]]
