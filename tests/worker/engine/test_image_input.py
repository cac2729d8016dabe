"""Pictures that drawings go on from: encoded before the start, foreseen, and let go."""

from dataclasses import replace

import pytest

from tests.worker.engine.conftest import Running
from tests.worker.engine.fakes import GatedPipeline, edit, entry, request, spec
from tests.worker.engine.test_engine import answer, raiser, texts
from tests.worker.engine.test_forecast import ahead, begin
from worker.engine.costs import Costs
from worker.engine.forecast import work_s
from worker.models.base import OutOfMemory
from worker.types import DrawSpec

pytestmark = pytest.mark.anyio
SIZE = 128, 128


@pytest.fixture
def costs() -> Costs:
    """Steps of 1 s, text and decode 0.5 s each, a picture 2 s."""
    costs = Costs(max_batch=1)
    for kind, seconds in (("encode", 0.5), ("image", 2.0), ("step", 1.0), ("decode", 0.5)):
        costs.record(kind, SIZE, 1, seconds)  # type: ignore[arg-type]
    return costs


def variants(first: DrawSpec, number: int) -> tuple[DrawSpec, ...]:
    return tuple(replace(first, seed=seed) for seed in range(number))


async def test_a_picture_is_encoded_once_for_all_that_go_on_from_it(running: Running) -> None:
    pipeline = GatedPipeline()
    async with running(pipeline, max_batch=1) as engine:
        ticket = engine.submit(request(specs=variants(edit("a", strength=0.5), 3)))
        assert await texts(ticket) == ["a|0|2", "a|1|2", "a|2|2"]
    assert pipeline.prompts("image") == [["a"]]


async def test_drawings_from_pictures_and_from_text_share_steps(running: Running) -> None:
    pipeline = GatedPipeline(gated=True)
    async with running(pipeline) as engine:
        text = engine.submit(request("a"))
        await pipeline.next_step()
        picture = engine.submit(request(specs=(edit("b", strength=0.5),)))
        pipeline.permit()
        assert await pipeline.next_step() == ["a", "b"]
        pipeline.open()
        assert await texts(text) == ["a|7|4"]
        assert await texts(picture) == ["b|7|2"]


async def test_a_picture_that_cannot_be_encoded_fails_its_own_request_alone(
    running: Running,
) -> None:
    pipeline = GatedPipeline()
    pipeline.hooks["image"] = raiser(OutOfMemory("no room"))
    async with running(pipeline) as engine:
        bad, good = engine.submit(request(specs=(edit("a"),))), engine.submit(request("b"))
        assert (await answer(bad)).code != "cancelled"
        assert await texts(good) == ["b|7|4"]
        assert engine.state().queued == engine.state().running == 0


async def test_nothing_of_a_picture_stays_on_the_device(running: Running) -> None:
    pipeline, wanted = GatedPipeline(), edit("a")
    assert wanted.source is not None
    async with running(pipeline) as engine:
        await texts(engine.submit(request(specs=(wanted,))))
        await texts(engine.submit(request("b")))  # the boundary after it
    assert (wanted.source.pixels, wanted.source.encoded) == (None, None)


async def test_a_worker_that_doubts_itself_needs_no_picture_again(running: Running) -> None:
    """What was drawn last is drawn once more after failures, and its picture is gone."""
    pipeline = GatedPipeline()
    async with running(pipeline) as engine:
        await texts(engine.submit(request(specs=(edit("good", strength=0.5),))))

        def fails(prompts: list[str]) -> None:
            if "good" not in prompts:
                raise ValueError("their fault")

        pipeline.hooks["step"] = fails
        for _ in range(4):
            await answer(engine.submit(request("bad")))
        pipeline.hooks.clear()
        assert await texts(engine.submit(request("b"))) == ["b|7|4"]


def test_weak_strength_costs_fewer_steps_and_an_encoding(costs: Costs) -> None:
    def seconds(wanted: DrawSpec) -> float:
        return work_s(entry(specs=(wanted,)), costs)

    assert seconds(spec()) == pytest.approx(0.5 + 4 * 1.0 + 0.5)
    assert seconds(edit(strength=0.5)) == pytest.approx(2.0 + 0.5 + 2 * 1.0 + 0.5)


def test_the_encoding_counts_once_for_a_request(costs: Costs) -> None:
    one = work_s(entry(specs=variants(edit(), 1)), costs)
    assert work_s(entry(specs=variants(edit(), 3)), costs) == pytest.approx(3 * one - 2 * 2.0)


def test_who_waits_behind_a_picture_waits_for_its_encoding(costs: Costs) -> None:
    first, second = entry(specs=(edit(strength=0.5),)), entry("b")
    waits = ahead([first, second], costs)
    assert waits[second].wait_s == pytest.approx(2.0 + 0.5 + 2.0 + 0.5)


def test_a_picture_that_is_started_is_not_encoded_again(costs: Costs) -> None:
    first, second = entry(specs=(edit(strength=0.5),)), entry("b")
    begin(first.pictures[0], steps_done=0)
    assert first.pictures[0].sample is not None
    first.pictures[0].sample.steps = 2
    assert ahead([first, second], costs)[second].wait_s == pytest.approx(2.0 + 0.5)


def test_an_encoding_that_was_never_timed_is_foreseen_as_long_as_a_decoding() -> None:
    costs = Costs()
    costs.record("decode", SIZE, 1, 0.25)
    assert costs.predict_s("image", SIZE, 1) == 0.25


def test_tables_of_the_version_before_are_read() -> None:
    costs = Costs()
    costs.record("image", SIZE, 1, 2.0)
    table = costs.dump()
    assert Costs.load(table).predict_s("image", SIZE, 1) == 2.0
    del table["image"]
    assert Costs.load(table).predict_s("step", SIZE, 1) > 0
